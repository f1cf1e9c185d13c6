"""Destinations, pipelines and weights."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pulmo_models import registry
from pulmo_models.errors import ModelError
from pulmo_models.network_sets import NetworkSet, read_any
from pulmo_models.weights import WeightSet, WeightSpec, locate, manifests
from pulmo_node.config import Config
from pulmo_node.domain.deliveries import DeliveryState
from pulmo_node.monitoring.observed import Destination, Model
from pulmo_node.web.parts import Parts, parts_of
from pulmo_node.web.show import page


def destinations(request: Request) -> Response:
    """Every destination: does it answer, what waits for it."""
    parts = parts_of(request)
    return page(
        request,
        "destinations.html",
        {"destinations": _destinations(parts), "message": parts.message(request)},
    )


def _destinations(parts: Parts) -> list[dict[str, Any]]:
    counts, seen = parts.store.counts(), parts.observed.now().destinations
    queues = {queue.destination: queue for queue in counts.queues}
    rows = []
    for name in sorted(parts.config.peers):
        peer = parts.config.peer(name)
        of_state = {state: counts.deliveries.get((name, state.value), 0) for state in DeliveryState}
        rows.append(
            {
                "name": name,
                "address": peer.stow_url or f"{peer.ae_title} at {peer.host}:{peer.port}",
                "tls": peer.tls is not None,
                "seen": seen.get(name, Destination()),
                "queue": queues.get(name),
                "delivered": of_state[DeliveryState.SENT] + of_state[DeliveryState.COMMITTED],
                "failed": of_state[DeliveryState.FAILED],
            }
        )
    return rows


def pipelines(request: Request) -> Response:
    """Every pipeline with its settings and weights, and every set of weights with its hashes."""
    parts = parts_of(request)
    models = parts.observed.now().models
    rows = [
        {
            "entry": entry,
            "configured": entry.label in parts.config.pipelines,
            "settings": parts.config.pipelines.get(entry.label, {}),
            "model": models.get(entry.label, Model()),
            "weights": _weights_of(parts.config, entry.label),
        }
        for entry in registry.entries()
    ]
    return page(request, "pipelines.html", {"pipelines": rows, "sets": _sets(parts.config)})


def _weights_of(config: Config, label: str) -> dict[str, str]:
    """Name and hash of the set that a pipeline uses, or what is wrong with it."""
    settings = registry.entry(label).settings
    name = config.pipelines.get(label, {}).get("weights") or getattr(settings, "weights", "")
    if not isinstance(name, str) or not name:
        return {}
    try:
        weights = read_any(locate(name, config.weights_folder))
    except ModelError as exc:
        return {"name": name, "problem": str(exc)}
    return {"name": weights.name, "version": weights.version, "sha256": weights.sha256}


def _sets(config: Config) -> list[dict[str, Any]]:
    """Every set that can be read, with its files; `pulmo-node weights verify` says what is wrong with others."""
    found = []
    for path in manifests(config.weights_folder):
        with suppress(ModelError):
            weights = read_any(path)
            found.append({"weights": weights, "files": _files(weights)})
    return found


def _files(weights: WeightSet | NetworkSet) -> dict[str, WeightSpec]:
    if isinstance(weights, NetworkSet):
        return dict(weights.networks)
    return {"stage 1": weights.stage1, "stage 2": weights.stage2}
