"""Allow lists by themselves, and the configuration that is closed by default."""

from __future__ import annotations

from pathlib import Path

import pytest

from pulmo_node.config import Config, resolve
from pulmo_node.errors import ConfigError
from pulmo_node.network.access import (
    CALLED_NOT_RECOGNISED,
    CALLING_NOT_RECOGNISED,
    Access,
    is_loopback,
    parse_network,
)

ANYWHERE = "0.0.0.0"  # noqa: S104


@pytest.mark.parametrize(
    ("networks", "address", "admitted"),
    [
        ((), "203.0.113.9", True),
        (("192.0.2.0/24",), "192.0.2.255", True),
        (("192.0.2.0/24",), "192.0.3.0", False),
        (("192.0.2.17",), "192.0.2.17", True),
        (("192.0.2.17",), "192.0.2.18", False),
        (("192.0.2.17", "2001:db8::/32"), "2001:db8::5", True),
        (("2001:db8::/32",), "2001:db9::5", False),
        (("192.0.2.0/24",), "::ffff:192.0.2.3", True),  # IPv4 on a socket of both
        (("192.0.2.0/24",), "::ffff:198.51.100.3", False),
        (("192.0.2.0/24",), "2001:db8::5", False),
        (("fe80::/10",), "fe80::1%eth0", True),
    ],
)
def test_networks(networks: tuple[str, ...], address: str, admitted: bool) -> None:
    assert Access(networks=networks).admits_address(address) is admitted


def test_titles() -> None:
    access = Access(calling=("CT1",), called=("PULMO",))
    assert access.refusal(calling="CT1", called="PULMO") is None
    assert access.refusal(calling="ct1", called="PULMO") is CALLING_NOT_RECOGNISED
    assert access.refusal(calling="CT1", called="OTHER") is CALLED_NOT_RECOGNISED
    assert Access().refusal(calling="X", called="Y") is None


@pytest.mark.parametrize("text", ["", "host.example", "192.0.2.0/33", "192.0.2.1/24", "1.2.3"])
def test_what_is_no_network(text: str) -> None:
    with pytest.raises(ValueError, match=r"does not appear|has host bits"):
        parse_network(text)


@pytest.mark.parametrize(
    ("bind", "loopback"),
    [("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("localhost", True), (ANYWHERE, False), ("::", False),
     ("192.0.2.1", False), ("pulmo.example", False)],
)  # fmt: skip
def test_loopback(bind: str, loopback: bool) -> None:
    assert is_loopback(bind) is loopback


def with_receive(bind: str, **receive: object) -> Config:
    return resolve({"node": {"bind": bind}, "receive": receive}, base=Path())


def test_an_open_address_needs_a_list_or_the_word_open() -> None:
    with pytest.raises(ConfigError) as caught:
        with_receive(ANYWHERE, require_called_ae_title=True)
    (problem,) = caught.value.problems
    assert problem.startswith("node.bind: 0.0.0.0 can be reached from other machines")
    for allowed in ({"accept_calling": ["CT1"]}, {"accept_networks": ["192.0.2.0/24"]}, {"open": True}):
        assert with_receive(ANYWHERE, **allowed).node.bind == ANYWHERE
    assert with_receive("::1").node.bind == "::1"


def test_a_wrong_network_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        with_receive("127.0.0.1", accept_networks=["192.0.2.0/24", "192.0.2.1/24"])
    (problem,) = caught.value.problems
    assert problem.startswith("receive.accept_networks[1]: ")


def test_tls_files_belong_together_and_are_relative_to_the_configuration(tmp_path: Path) -> None:
    peer = {"ae_title": "P", "host": "h", "port": 1, "tls_ca": "ca.pem"}
    with pytest.raises(ConfigError) as caught:
        resolve({"tls": {"certificate": "c.pem"}, "peers": {"p": peer}}, base=tmp_path)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "tls.certificate, tls.private_key",
        "peers.p.tls",
    ]
    config = resolve(
        {"tls": {"certificate": "c.pem", "private_key": "k.pem"}, "peers": {"p": {**peer, "tls": True}}}, base=tmp_path
    )
    tls = config.peer("p").tls
    assert tls is not None
    assert (tls.ca, tls.certificate, tls.private_key, tls.hostname) == (
        str(tmp_path / "ca.pem"), str(tmp_path / "c.pem"), str(tmp_path / "k.pem"), "",
    )  # fmt: skip
