"""The routes, and what becomes of an error."""

from __future__ import annotations

import logging
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from pulmo_node.errors import PulmoError
from pulmo_node.monitoring.gpu import Gpus
from pulmo_node.web import actions, metrics, operations, pictures, studies
from pulmo_node.web.actions import action
from pulmo_node.web.guard import Guard
from pulmo_node.web.live import Hub
from pulmo_node.web.parts import NotFound, Parts, parts_of
from pulmo_node.web.show import page

log = logging.getLogger(__name__)

_STATIC = Path(__file__).parent / "static"


def build(parts: Parts) -> tuple[Starlette, Hub]:
    """The application; closing the hub ends its open streams."""
    hub = Hub(parts)
    collector = metrics.NodeCollector(
        counts=parts.store.counts,
        observed=parts.observed,
        storage=parts.config.storage,
        destinations=tuple(parts.config.peers),
        callers=frozenset(
            {*parts.config.receive.accept_calling, *(peer.ae_title or "" for peer in parts.config.peers.values())}
        ),
        pipelines=parts.config.pipelines_of_rules,
        gpus=Gpus(),
        clock=parts.clock,
    )
    study = "/studies/{uid}"
    app = Starlette(
        routes=[
            Route("/", studies.studies),
            Route("/search", action(studies.search, operator=False), methods=["POST"]),
            Route(study, studies.study),
            Route(f"{study}/jobs/{{job}}/nodules/{{number}}.png", pictures.endpoint()),
            Route(f"{study}/requeue", action(actions.requeue), methods=["POST"]),
            Route(f"{study}/redeliver", action(actions.redeliver), methods=["POST"]),
            Route(f"{study}/cancel", action(actions.cancel), methods=["POST"]),
            Route("/destinations", operations.destinations),
            Route("/destinations/{name}/echo", action(actions.echo), methods=["POST"]),
            Route("/pipelines", operations.pipelines),
            Route("/login", actions.login_page),
            Route("/login", action(actions.log_in, operator=False), methods=["POST"]),
            Route("/logout", action(actions.log_out, operator=False), methods=["POST"]),
            Route("/live", hub.endpoint),
            Route("/healthz", _live),
            Route("/readyz", _ready),
            Route("/metrics", lambda _request: Response(metrics.render(collector), media_type=metrics.CONTENT_TYPE)),
            Mount("/static", StaticFiles(directory=_STATIC)),
        ],
        middleware=[
            Middleware(Guard, settings=parts.config.web, sessions=parts.sessions, clock=parts.clock),
        ],
        exception_handlers={
            NotFound: _not_found,
            HTTPException: _http_error,
            PulmoError: _failed,
        },
    )
    app.state.parts = parts
    return app, hub


async def _live(_request: Request) -> Response:
    """The process answers, also where every thread waits for something."""
    return PlainTextResponse("alive\n")


def _ready(request: Request) -> Response:
    """Every condition; 503 where one is not met. What is wrong in words is for those who log in, or for the log."""
    conditions = parts_of(request).readiness.conditions()
    ready = all(condition.ok for condition in conditions)
    return JSONResponse(
        {"ready": ready, **{condition.name: condition.ok for condition in conditions}}, 200 if ready else 503
    )


def _not_found(request: Request, exc: Exception) -> Response:
    return page(request, "error.html", {"text": str(exc)}, status=404)


def _http_error(request: Request, exc: Exception) -> Response:
    status = exc.status_code if isinstance(exc, HTTPException) else 500
    text = {404: "There is no such page.", 405: "That is not how this page is asked."}.get(status, "That did not work.")
    return page(request, "error.html", {"text": text}, status=status)


def _failed(request: Request, exc: Exception) -> Response:
    log.warning("page: %s", exc)
    return page(request, "error.html", {"text": "That did not work; the log says why."}, status=503)
