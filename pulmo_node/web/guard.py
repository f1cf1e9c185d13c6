"""Every request passes here: is it for this host, who asks, may they; and what every answer says to the browser.

What is not allowed expressly is refused: without a login there are the login, its stylesheet, and health alone.
"""

from __future__ import annotations

import logging
from urllib.parse import quote, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pulmo_node import logs
from pulmo_node.config import WebSection
from pulmo_node.domain.accounts import Role
from pulmo_node.errors import PulmoError
from pulmo_node.ports import Clock
from pulmo_node.web.access import Client, Sessions, Visitor, client_of, new_token, only_value, within

log = logging.getLogger(__name__)

_ANYBODY = ("/healthz", "/readyz")
_WITHOUT_LOGIN = ("/login", "/static/")
_METRICS = "/metrics"
_LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
_LONGEST_NAME = 64

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


def cookie_name(*, secure: bool) -> str:
    """With TLS a prefix that a browser takes from nobody but this host, and by TLS alone (RFC 6265bis)."""
    return "__Host-pulmo" if secure else "pulmo"


def set_cookie(response: Response, token: str, *, secure: bool) -> None:
    """Give the browser a token; no script can read it, and no other site's form sends it along."""
    response.set_cookie(cookie_name(secure=secure), token, httponly=True, samesite="lax", secure=secure, path="/")


class Guard:
    """Middleware around the whole application."""

    def __init__(self, inner: ASGIApp, *, settings: WebSection, sessions: Sessions, clock: Clock) -> None:
        self._inner = inner
        self._settings = settings
        self._hosts = frozenset(host.lower() for host in settings.hosts)  # as browsers write them
        self._sessions = sessions
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        headers = Headers(scope=scope)
        peer = (scope.get("client") or ("", 0))[0]
        client = client_of(peer, scope.get("scheme", "http"), headers, self._settings.trusted_proxies)
        token = HTTPConnection(scope).cookies.get(cookie_name(secure=client.secure), "")
        try:
            visitor = await self._visitor(scope["path"], token, headers, client)
        except PulmoError as exc:
            log.warning("page: %s", exc)
            await PlainTextResponse("The database does not answer.\n", 503)(scope, receive, self._sending(send, client))
            return
        fresh = not token
        token = token or new_token()
        scope.setdefault("state", {}).update(
            client=client,
            visitor=visitor,
            token=token,
            can_leave=self._settings.access == "login" and visitor is not None,
        )
        refused = self._refusal(scope["path"], scope["method"], headers, client, visitor)
        answer = self._inner if refused is None else refused
        give = token if fresh and scope["path"] not in (*_ANYBODY, _METRICS) else None
        await self._answered(answer, scope, receive, self._sending(send, client, give))

    @staticmethod
    async def _answered(answer: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noting(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await answer(scope, receive, noting)
        except Exception as exc:  # noqa: BLE001
            # The boundary of one request. Only places are logged, since a text may quote a data set.
            log.error("page: unexpected error: %s", logs.places(exc))
            if not begun:
                await PlainTextResponse("Internal error; the log says where.\n", 500)(scope, receive, send)

    async def _visitor(self, path: str, token: str, headers: Headers, client: Client) -> Visitor | None:
        """Whose the token of the browser is, or whom the proxy names.

        Health is for anybody: it is not to wait for a database or a thread, whatever else is being asked.
        """
        if path in _ANYBODY:
            return None
        match self._settings.access:
            case "open":
                return Visitor(name="anybody", role=Role.OPERATOR)
            case "proxy":
                return self._named_by_proxy(headers, client)
        return await run_in_threadpool(self._sessions.visitor, token, self._clock.now())

    def _named_by_proxy(self, headers: Headers, client: Client) -> Visitor | None:
        name = only_value(headers, self._settings.proxy_user_header)[:_LONGEST_NAME]
        if not (client.proxy and name):
            return None
        operates = only_value(headers, self._settings.proxy_role_header).lower() == Role.OPERATOR.value
        return Visitor(name=name, role=Role.OPERATOR if operates else Role.VIEWER)

    def _refusal(
        self, path: str, method: str, headers: Headers, client: Client, visitor: Visitor | None
    ) -> Response | None:
        """An answer in the place of what was asked for; None where it is allowed."""
        if path in _ANYBODY or (path == _METRICS and self._may_measure(client, visitor)):
            return None
        if path == _METRICS:
            return PlainTextResponse("Not from here.\n", 403)
        if not self._is_own_host(headers.get("host", "")):
            return PlainTextResponse("This server is not called by that name.\n", 421)
        if method not in ("GET", "HEAD") and not _same_origin(headers):
            return PlainTextResponse("The form comes from another site.\n", 403)
        return None if visitor is not None or path.startswith(_WITHOUT_LOGIN) else self._stranger(path, method)

    def _may_measure(self, client: Client, visitor: Visitor | None) -> bool:
        """Whoever says that it was passed on, without a proxy that is trusted, is not where it seems to be."""
        near = within(client.address, self._settings.metrics_networks) and (client.proxy or not client.forwarded)
        return near or visitor is not None

    def _stranger(self, path: str, method: str) -> Response:
        """What somebody is told who has not said who they are."""
        if self._settings.access == "proxy":
            return PlainTextResponse("The proxy did not say who you are.\n", 403)
        if method in ("GET", "HEAD") and path != "/live":
            return RedirectResponse(f"/login?next={quote(path, safe='/')}", 303)
        return PlainTextResponse("Log in first.\n", 401)

    def _is_own_host(self, host: str) -> bool:
        """A page of another site whose name was pointed at this machine must not read what the node shows."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in _LOOPBACK_HOSTS or name in self._hosts

    def _sending(self, send: Send, client: Client, token: str | None = None) -> Send:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
                if client.secure:
                    headers.setdefault("strict-transport-security", "max-age=31536000")
                if token is not None and "set-cookie" not in headers:
                    cookie = Response()
                    set_cookie(cookie, token, secure=client.secure)
                    headers.append("set-cookie", cookie.headers["set-cookie"])
            await send(message)

        return with_headers


def _same_origin(headers: Headers) -> bool:
    """What browsers say of where a form comes from; the CSRF token is asked for all the same."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2] == headers.get("host", "")
