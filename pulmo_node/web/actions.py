"""What a form does: log in and out, requeue, redeliver, cancel, echo. Each is a POST with a CSRF token.

What changes something is for operators, and stands in the audit trail before it is done.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from pulmo_node.errors import Transient
from pulmo_node.web.access import csrf_fits, password_fits
from pulmo_node.web.guard import set_cookie
from pulmo_node.web.parts import NotFound, parts_of
from pulmo_node.web.show import page
from pulmo_node.web.studies import detail_of

_LONGEST_FORM = 16_384  # bytes

Form = dict[str, str]
Endpoint = Callable[[Request], Awaitable[Response]]


def action(perform: Callable[[Request, Form], Response], *, operator: bool = True) -> Endpoint:
    """An endpoint that performs once form and visitor are what they must be."""

    async def endpoint(request: Request) -> Response:
        form = await _form(request)
        if form is None or not csrf_fits(request.state.token, form.get("csrf", "")):
            return page(
                request, "error.html", {"text": "This form is no longer valid. Go back and try again."}, status=403
            )
        visitor = request.state.visitor
        if operator and not (visitor is not None and visitor.operates):
            return page(request, "error.html", {"text": "That is for operators."}, status=403)
        return await run_in_threadpool(perform, request, form)

    return endpoint


async def _form(request: Request) -> Form | None:
    """The fields, the last of each name; None where it is no such form."""
    if request.headers.get("content-type", "").partition(";")[0] != "application/x-www-form-urlencoded":
        return None
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _LONGEST_FORM:
            return None
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=20)
    except ValueError:
        return None
    return {name: values[-1] for name, values in fields.items()}


def login_page(request: Request) -> Response:
    """The form."""
    if request.state.visitor is not None:
        return RedirectResponse("/", 303)
    return _login_form(request, request.query_params.get("next", "/"))


def _login_form(request: Request, target: str, problem: str = "", status: int = 200) -> Response:
    nobody = parts_of(request).config.web.access == "login" and not parts_of(request).store.users()
    values = {"target": _own_path(target), "problem": problem, "nobody": nobody}
    return page(request, "login.html", values, status=status)


def log_in(request: Request, form: Form) -> Response:
    """Check the password; the browser gets a new token."""
    parts = parts_of(request)
    name, target = form.get("name", "").strip()[:64], form.get("next", "/")
    address, now = request.state.client.address, parts.clock.now()
    if parts.config.web.access != "login":
        raise NotFound("Nobody logs in here.")
    if not parts.logins.begin(address, name, now):
        # Once a while: a flood of tries is to fill no disk.
        parts.refused.once(address, "login", now, partial(parts.audit, request, "login refused: too many failures"))
        return _login_form(request, target, "Too many failed tries. Wait a few minutes.", 429)
    user = parts.store.user(name)
    if not password_fits(user, form.get("password", "")) or user is None:
        parts.audit(request, "login failed", user=user.name if user is not None else "(unknown)")
        return _login_form(request, target, "Name or password are wrong.", 401)
    parts.logins.right(address, name, now)
    token = parts.sessions.begin(user, now)
    parts.audit(request, "login", user=user.name, role=user.role.value)
    answer = RedirectResponse(_own_path(target), 303)
    set_cookie(answer, token, secure=request.state.client.secure)
    return answer


def log_out(request: Request, _form: Form) -> Response:
    """End the session."""
    parts = parts_of(request)
    parts.audit(request, "logout")
    parts.sessions.end(request.state.token)
    return RedirectResponse("/login", 303)


def _own_path(target: str) -> str:
    """A path of this server; another server's address is none."""
    own = target.startswith("/") and not target.startswith("//")
    return target if own and target.isprintable() and "\\" not in target else "/"


def requeue(request: Request, _form: Form) -> Response:
    """Analyse a study again."""
    parts, uid = parts_of(request), detail_of(request).summary.study_instance_uid
    purged = parts.store.purged_series(uid)
    if purged:
        images = sum(series.images for series in purged)
        return _told(request, f"{images} images were purged: send them again, then requeue.")
    parts.audit(request, "requeue", study_instance_uid=uid)
    return _told(request, f"{parts.store.requeue(study_instance_uid=uid)} requeued.")


def redeliver(request: Request, _form: Form) -> Response:
    """Send the results of a study again."""
    parts, uid = parts_of(request), detail_of(request).summary.study_instance_uid
    parts.audit(request, "redeliver", study_instance_uid=uid)
    return _told(request, f"{parts.store.requeue(study_instance_uid=uid, redeliver=True)} to be delivered again.")


def cancel(request: Request, _form: Form) -> Response:
    """Cancel what is open of a study."""
    parts, uid = parts_of(request), detail_of(request).summary.study_instance_uid
    parts.audit(request, "cancel", study_instance_uid=uid)
    return _told(request, f"{parts.store.cancel(uid)} jobs cancelled.")


def _told(request: Request, text: str) -> Response:
    parts_of(request).messages.tell(request.state.token, text)
    return RedirectResponse(f"/studies/{request.path_params['uid']}", 303)


def echo(request: Request, _form: Form) -> Response:
    """Ask a destination whether it answers."""
    parts, name = parts_of(request), str(request.path_params["name"])
    if name not in parts.config.peers:
        raise NotFound("There is no such destination.")
    parts.audit(request, "echo", destination=name)
    try:
        seconds = parts.sender.echo(parts.config.peer(name))
    except Transient as exc:
        text = f"{name} does not answer: {exc}"
    else:
        text = f"{name} answered in {seconds * 1000:.0f} ms."
    parts.messages.tell(request.state.token, text)
    return RedirectResponse("/destinations", 303)
