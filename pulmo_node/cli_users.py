"""Users of the page: `pulmo-node user`."""

from __future__ import annotations

import re
import sys
from types import ModuleType
from typing import Annotated

import typer

from pulmo_node.cli_common import ConfigOption, JsonOption, err, out, print_json, read_config
from pulmo_node.console import print_rows
from pulmo_node.domain.accounts import Role, User
from pulmo_node.errors import ConfigError

app = typer.Typer(help="Users of the page.", no_args_is_help=True)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


@app.command("add")
def user_add(
    name: Annotated[str, typer.Argument(help="Letters, digits, and . _ @ - between them.")],
    role: Annotated[Role, typer.Option(help="viewer: may look; operator: may also requeue, redeliver, cancel.")] = (
        Role.VIEWER
    ),
    replace: Annotated[bool, typer.Option("--replace", help="Give an existing user this role and password.")] = False,
    config: ConfigOption = None,
) -> None:
    """Add a user; the password is asked for, or read from standard input where that is no terminal."""
    from pulmo_node.app import SystemClock, open_audit, open_store  # noqa: PLC0415

    access = _access()
    if not _NAME.fullmatch(name):
        raise typer.BadParameter(f"{name}: letters, digits, and . _ @ - between them, at most 64")
    settings = read_config(config)
    with open_store(settings) as store:
        if store.user(name) is not None and not replace:
            err.print(f"there is a user {name} already; --replace gives them another role and password")
            raise typer.Exit(1)
        if sys.stdin.isatty():
            password = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
        else:
            password = sys.stdin.readline().rstrip("\n")
        if not access.SHORTEST_PASSWORD <= len(password) <= access.LONGEST_PASSWORD:
            raise typer.BadParameter(f"a password has {access.SHORTEST_PASSWORD} characters or more")
        open_audit(settings).record([{"action": "user added", "user": name, "role": role.value}], durable=True)
        hashed = access.hash_password(password)
        store.put_user(User(name=name, role=role, password_hash=hashed, created_at=SystemClock().now()))
    out.print(f"{name} is {role.value}", highlight=False)


@app.command("list")
def user_list(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the users and their roles."""
    from pulmo_node.app import open_store  # noqa: PLC0415

    with open_store(read_config(config)) as store:
        users = store.users()
    headings = ("name", "role", "since")
    rows = [(user.name, user.role.value, user.created_at.isoformat(timespec="seconds")) for user in users]
    if as_json:
        print_json([dict(zip(headings, row, strict=True)) for row in rows])
    else:
        print_rows(out, headings, rows)


@app.command("remove")
def user_remove(name: Annotated[str, typer.Argument(help="Name of the user.")], config: ConfigOption = None) -> None:
    """Remove a user; whoever is logged in by that name is out at once."""
    from pulmo_node.app import open_audit, open_store  # noqa: PLC0415

    settings = read_config(config)
    with open_store(settings) as store:
        if store.user(name) is None:
            err.print(f"there is no user {name}")
            raise typer.Exit(1)
        open_audit(settings).record([{"action": "user removed", "user": name}], durable=True)
        store.remove_user(name)
    out.print(f"{name} removed", highlight=False)


def _access() -> ModuleType:
    """The module with the passwords, which needs the extra `web`."""
    try:
        from pulmo_node.web import access  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        raise ConfigError([f"{exc.name} is not installed; pip install 'pulmo-node[web]'"]) from exc
    return access
