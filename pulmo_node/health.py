"""`pulmo-node healthchecks`: what must be right for the node to do its work, each checked by doing it."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pulmo_models import registry
from pulmo_node.analyse import Analyser
from pulmo_node.app import build_analyser, build_result_sender, build_sender, open_store
from pulmo_node.config import Config
from pulmo_node.dimse import decoder_gaps
from pulmo_node.domain.deliveries import Peer
from pulmo_node.errors import Permanent, PulmoError, Transient

_ANY_ADDRESS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, not bound to
_CONNECT_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Check:
    """The outcome of one check."""

    name: str
    ok: bool
    detail: str


def run_checks(config: Config) -> tuple[Check, ...]:
    """Every check, in the order of the data; one that fails does not stop the others."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("storage", lambda: _storage(config)),
        ("database", lambda: _database(config)),
        ("decoders", _decoders),
        ("receiver", lambda: _receiver(config)),
    ]
    analyser = build_analyser(config)
    for label in config.pipelines:
        checks.append((f"pipeline {label}", partial(_pipeline, analyser, label)))
    for name in config.peers:
        checks.append((f"peer {name}", partial(_echo, config, config.peer(name))))
    return tuple(_run(name, check) for name, check in checks)


def _run(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name=name, ok=True, detail=check())
    except (PulmoError, OSError) as exc:
        return Check(name=name, ok=False, detail=str(exc))


def _storage(config: Config) -> str:
    try:
        config.storage.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=config.storage) as probe:
            probe.write(b"\0")
        free = shutil.disk_usage(config.storage).free
    except OSError as exc:
        raise Permanent(f"{config.storage}: {exc.strerror}") from exc
    if free < config.receive.min_free_bytes:
        raise Permanent(f"{config.storage}: only {free / 1024**3:.1f} GiB free, nothing new is accepted")
    if free < config.receive.low_free_bytes:
        raise Permanent(f"{config.storage}: only {free / 1024**3:.1f} GiB free")
    return f"{config.storage}: {free / 1024**3:.1f} GiB free"


def _database(config: Config) -> str:
    with open_store(config) as store:
        found = store.check()
        lost = [queue for queue in store.counts().queues if queue.destination not in config.peers]
    if lost:
        waiting = ", ".join(f"{queue.waiting} results for {queue.destination}" for queue in lost)
        raise Permanent(f"{waiting} wait, but the configuration has no such peer: add it again, or cancel the studies")
    return found


def _decoders() -> str:
    gaps = decoder_gaps()
    if gaps:
        raise Permanent(f"no decoder for {', '.join(gaps)}")
    return "every accepted transfer syntax can be decoded"


def _receiver(config: Config) -> str:
    if config.node.port == 0:
        return "takes any free port"
    host = "localhost" if config.node.bind in _ANY_ADDRESS else config.node.bind
    try:
        with socket.create_connection((host, config.node.port), timeout=_CONNECT_SECONDS):
            pass
    except OSError:
        return f"port {config.node.port} does not answer: the node is not running"
    if config.tls.certificate:
        return f"the node listens on port {config.node.port}, by TLS"
    node = Peer(name="node", ae_title=config.node.ae_title, host=host, port=config.node.port)
    try:
        seconds = build_sender(config).echo(node)
    except Transient as exc:
        return f"the node listens on port {config.node.port} and does not let this machine in: {exc}"
    return f"the node answers on port {config.node.port} in {seconds * 1000:.0f} ms"


def _pipeline(analyser: Analyser, label: str) -> str:
    return f"{registry.entry(label).summary}; weights {analyser.info(label).weights_sha256[:16]}"


def _echo(config: Config, peer: Peer) -> str:
    seconds = build_result_sender(config).echo(peer)
    if peer.stow_url:
        return f"{peer.stow_url} answered in {seconds * 1000:.0f} ms"
    return f"{peer.ae_title} at {peer.host}:{peer.port} answered in {seconds * 1000:.0f} ms"
