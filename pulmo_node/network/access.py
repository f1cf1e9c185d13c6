"""Who may open an association: called and calling AE titles, and networks.

An address outside the networks is not answered at all; a wrong title is answered with A-ASSOCIATE-RJ (PS3.8 9.3.4).
An AE title is a claim that anybody can make: on a network with strangers, name the networks too, or use mutual TLS.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TypeAlias

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why an association is rejected, in the numbers of PS3.8 table 9-21 and in words."""

    result: int  # 1: for good, 2: for now
    source: int  # 1: service user, 3: service provider (presentation)
    diagnostic: int
    reason: str


CALLING_NOT_RECOGNISED = Refusal(result=1, source=1, diagnostic=3, reason="calling AE title not in the list")
CALLED_NOT_RECOGNISED = Refusal(result=1, source=1, diagnostic=7, reason="called by an AE title that is not ours")


@dataclass(frozen=True, kw_only=True)
class Access:
    """The allow lists; an empty one allows all."""

    calling: tuple[str, ...] = ()
    called: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()  # addresses or CIDR networks, as `parse_network` takes them

    def admits_address(self, address: str) -> bool:
        """Whether that IP address may connect; an IPv4 address on an IPv6 socket counts as itself."""
        if not self.networks:
            return True
        parsed = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
        return any(parsed in parse_network(network) for network in self.networks)

    def refusal(self, *, calling: str, called: str) -> Refusal | None:
        """What speaks against these AE titles (without padding); None where nothing does."""
        if self.calling and calling not in self.calling:
            return CALLING_NOT_RECOGNISED
        if self.called and called not in self.called:
            return CALLED_NOT_RECOGNISED
        return None


def parse_network(text: str) -> Network:
    """``192.0.2.0/24``, ``2001:db8::/32`` or a single address. Raises `ValueError`, also where host bits are set."""
    return ipaddress.ip_network(text.strip())


def is_loopback(bind: str) -> bool:
    """Whether only this machine can reach a server on that address. A name counts as reachable, but for localhost."""
    if bind == "localhost":
        return True
    try:
        return ipaddress.ip_address(bind).is_loopback
    except ValueError:
        return False
