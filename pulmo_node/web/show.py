"""Templates. Every value is escaped; what is no printable text (a hostile DICOM value) is shown as a replacement."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse

from pulmo_models import __version__
from pulmo_node.web.access import Visitor, csrf_token

_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})  # Cf has the signs that turn the direction of text


def printable(text: str) -> str:
    """Control characters, and those that change how others are shown, replaced."""
    return "".join("\ufffd" if unicodedata.category(sign) in _UNPRINTABLE and sign != "\n" else sign for sign in text)


def _finalized(value: Any) -> Any:
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable(value)
    return "" if value is None else value


def _time(value: datetime | None) -> str:
    return "" if value is None else value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def _date(value: str) -> str:
    return f"{value[:4]}-{value[4:6]}-{value[6:]}" if len(value) == 8 else value


def _words(name: str) -> str:
    """A name in camel case as words."""
    return re.sub(r"(?<=[a-z])[A-Z]", lambda found: f" {found[0].lower()}", name)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pulmo_node.web"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalized,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"time": _time, "date": _date, "words": _words}
    environment.globals["version"] = __version__
    return environment


_ENVIRONMENT = _environment()


def page(
    request: Request,
    template: str,
    values: Mapping[str, Any],
    *,
    status: int = 200,
    headers: dict[str, str] | None = None,
) -> HTMLResponse:
    """A template as an answer."""
    visitor: Visitor | None = request.state.visitor
    text = _ENVIRONMENT.get_template(template).render(
        visitor=visitor,
        path=request.url.path,
        csrf=csrf_token(request.state.token),
        can_leave=request.state.can_leave,
        **values,
    )
    return HTMLResponse(text, status_code=status, headers=headers)
