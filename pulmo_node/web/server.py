"""The thread that serves the page: uvicorn on a socket that was bound before, so that a port in use is an error."""

from __future__ import annotations

import logging
import socket
import threading

import uvicorn

from pulmo_node.errors import ConfigError, Transient
from pulmo_node.web.application import build
from pulmo_node.web.live import Hub
from pulmo_node.web.parts import Parts

log = logging.getLogger(__name__)

_END_SECONDS = 3  # for requests that are being answered
_JOIN_SECONDS = 10.0  # for the thread after that
_BACKLOG = 128


class WebServer:
    """Serves from `start` to `stop`."""

    def __init__(self, parts: Parts) -> None:
        """Raises `ConfigError` where certificate or key cannot be used."""
        self._parts = parts
        self._settings = parts.config.web
        self._serving, self._hub = self._built()
        self._thread: threading.Thread | None = None
        self._socket: socket.socket | None = None

    def _built(self) -> tuple[uvicorn.Server, Hub]:
        """One for each start: what was stopped serves no more."""
        app, hub = build(self._parts)
        try:
            config = uvicorn.Config(
                app,
                log_config=None,  # the node's own logging; no line a request, whose address may tell too much
                access_log=False,
                log_level="warning",
                proxy_headers=False,  # `guard` reads them
                server_header=False,
                date_header=True,
                lifespan="off",
                ws="none",
                timeout_graceful_shutdown=_END_SECONDS,
                limit_concurrency=400,
                h11_max_incomplete_event_size=32_768,
                ssl_certfile=self._settings.certificate or None,
                ssl_keyfile=self._settings.private_key or None,
            )
            config.load()
        except OSError as exc:  # ssl.SSLError among them
            raise ConfigError([f"web.certificate, web.private_key: {exc.strerror or exc}"]) from exc
        return uvicorn.Server(config), hub

    @property
    def port(self) -> int:
        """The TCP port it listens on; only after `start`."""
        if self._socket is None:
            raise RuntimeError("the page was not started")
        return int(self._socket.getsockname()[1])

    def start(self) -> None:
        """Listen and return.

        Raises:
            Transient: the address is in use or not one of this machine.
            ConfigError: certificate or key cannot be used any more.
        """
        if self._serving.should_exit:
            self._serving, self._hub = self._built()
        family = socket.AF_INET6 if ":" in self._settings.bind else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # What it accepts takes this over. Header and body are written one after the other: otherwise the body waits
            # until the browser acknowledges the header, which systems put off by 40 ms.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            listener.bind((self._settings.bind, self._settings.port))
            listener.listen(_BACKLOG)
        except OSError as exc:
            listener.close()
            where = f"{self._settings.bind}:{self._settings.port}"
            raise Transient(f"the page cannot listen on {where}: {exc.strerror or exc}") from exc
        self._socket = listener
        self._thread = threading.Thread(target=self._serving.run, args=([listener],), name="page", daemon=True)
        self._thread.start()
        scheme = "https" if self._settings.certificate else "http"
        log.info("page on %s://%s:%d", scheme, self._settings.bind, self.port)

    def stop(self) -> None:
        """Let what is being answered finish, within a limit, and close the port."""
        if self._thread is None:
            return
        self._hub.close()
        self._serving.should_exit = True
        self._thread.join(_END_SECONDS + _JOIN_SECONDS)
        if self._socket is not None:
            self._socket.close()
        self._thread = self._socket = None
