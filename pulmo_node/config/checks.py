"""What the types of the configuration cannot say: keys that contradict each other, names that point nowhere."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError

from pulmo_models import registry
from pulmo_models.errors import UnknownPipeline
from pulmo_node.config.routing import SENDER, PeerSection
from pulmo_node.config.service import NotifySection, WebSection
from pulmo_node.config.whole import Config
from pulmo_node.network.access import is_loopback


def inconsistencies(config: Config, *, peers: Collection[str]) -> list[str]:
    """One line for every key that is wrong; `peers` are all that are named, also those whose table cannot be read."""
    problems = _network_problems(config) + _web_problems(config.web) + _notify_problems(config.notify)
    for label, settings in config.pipelines.items():
        try:
            entry = registry.entry(label)
        except UnknownPipeline as exc:
            problems.append(f"pipelines.{label}: {exc}")
            continue
        try:
            TypeAdapter(entry.settings).validate_python(settings)
        except ValidationError as exc:
            problems += [f"pipelines.{label}.{key_of(error['loc'])}: {error['msg']}" for error in exc.errors()]
    if SENDER in config.peers:
        problems.append(f"peers.{SENDER}: the name is reserved for the AE title that sent the series")
    for number, rule in enumerate(config.rules):
        for pipeline in rule.pipelines:
            if pipeline not in config.pipelines:
                problems.append(f"rules[{number}].pipelines: there is no [pipelines.{pipeline}]")
        for destination in rule.destinations:
            if destination != SENDER and destination not in peers:
                problems.append(f"rules[{number}].destinations: there is no [peers.{destination}]")
    return problems


def _network_problems(config: Config) -> list[str]:
    """A node that others can reach must say who may come; TLS needs certificate and key together."""
    problems: list[str] = []
    receive = config.receive
    if not (is_loopback(config.node.bind) or receive.accept_calling or receive.accept_networks or receive.open):
        problems.append(
            f"node.bind: {config.node.bind} can be reached from other machines; name who may send in"
            " receive.accept_calling or receive.accept_networks, or set receive.open = true"
        )
    if bool(config.tls.certificate) != bool(config.tls.private_key):
        problems.append("tls.certificate, tls.private_key: both are needed, or none")
    if config.tls.client_ca and not config.tls.certificate:
        problems.append("tls.client_ca: needs tls.certificate and tls.private_key")
    if config.audit.syslog_ca and not config.audit.syslog.startswith("tls:"):
        problems.append("audit.syslog_ca: needs audit.syslog with tls://")
    for name, peer in config.peers.items():
        problems += [f"peers.{name}.{problem}" for problem in _peer_problems(peer)]
    return problems


def _peer_problems(peer: PeerSection) -> list[str]:
    if not peer.stow_url:
        problems = [f"{key}: Field required" for key in ("ae_title", "host", "port") if not getattr(peer, key)]
        if not peer.tls and (peer.tls_ca or peer.tls_hostname):
            problems.append("tls: must be true where tls_ca or tls_hostname is given")
        if peer.stow_authorization:
            problems.append("stow_authorization: needs stow_url")
        return problems
    # The certificate of a web server is for the name in its address.
    unused = [key for key in ("host", "port", "tls", "tls_hostname") if getattr(peer, key)]
    problems = [f"{key}: means nothing beside stow_url" for key in unused]
    if peer.gap_repair:
        problems.append("gap_repair: needs a DICOM node, not a stow_url")
    if peer.storage_commitment != "off":
        problems.append("storage_commitment: must be off beside stow_url; STOW-RS has none")
    secure = peer.stow_url.startswith("https:")
    if peer.tls_ca and not secure:
        problems.append("tls_ca: needs a stow_url with https")
    if peer.stow_authorization and not (secure or is_loopback(urlsplit(peer.stow_url).hostname or "")):
        problems.append("stow_authorization: would be readable on the network; needs a stow_url with https")
    return problems


def _web_problems(web: WebSection) -> list[str]:
    """Names and passwords go through no network in the clear, and nobody gets in without saying who they are."""
    problems: list[str] = []
    if bool(web.certificate) != bool(web.private_key):
        problems.append("web.certificate, web.private_key: both are needed, or none")
    if web.access == "proxy" and not web.trusted_proxies:
        problems.append("web.trusted_proxies: needed with access = 'proxy'; who else may say who somebody is")
    if not web.enabled or is_loopback(web.bind):
        return problems
    if web.access == "open":
        problems.append(f"web.access: 'open' is for this machine only, and {web.bind} can be reached from others")
    if not (web.certificate or web.trusted_proxies or web.cleartext):
        problems.append(
            f"web.bind: {web.bind} can be reached from other machines; give web.certificate and web.private_key, or"
            " web.trusted_proxies where a proxy does TLS, or set web.cleartext = true"
        )
    if not web.hosts:
        problems.append("web.hosts: needed, the names by which other machines call the page")
    return problems


def _notify_problems(notify: NotifySection) -> list[str]:
    problems = []
    if notify.mail_to and not (notify.smtp_host and notify.mail_from):
        problems.append("notify.mail_to: needs notify.smtp_host and notify.mail_from")
    if notify.smtp_password and notify.smtp_tls == "off" and not is_loopback(notify.smtp_host):
        problems.append("notify.smtp_password: would be readable on the network; needs notify.smtp_tls")
    secure = notify.webhook_url.startswith("https:")
    if notify.webhook_authorization and not (secure or is_loopback(urlsplit(notify.webhook_url).hostname or "")):
        problems.append("notify.webhook_authorization: would be readable on the network; needs https")
    return problems


def key_of(location: tuple[int | str, ...]) -> str:
    """A place in the configuration as it is written in messages: ``rules[0].pipelines``."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")
