"""File and environment -> `Config`, with every error at once."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from pulmo_node.config.checks import inconsistencies, key_of
from pulmo_node.config.whole import Config
from pulmo_node.errors import ConfigError

ENVIRONMENT_PREFIX = "PULMO_NODE__"


def default_path() -> Path | None:
    """The file to read where none is named: $PULMO_NODE_CONFIG, ./config/node.toml, /etc/pulmo-node/node.toml."""
    named = os.environ.get("PULMO_NODE_CONFIG")
    if named:
        return Path(named)
    for candidate in (Path("config/node.toml"), Path("/etc/pulmo-node/node.toml")):
        if candidate.is_file():
            return candidate
    return None


def load(path: Path | None = None, environment: Mapping[str, str] | None = None) -> Config:
    """Read the configuration.

    Raises:
        ConfigError: with one line for every key that is wrong.
    """
    environment = os.environ if environment is None else environment
    raw: dict[str, Any] = {}
    if path is not None:
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as exc:
            raise ConfigError([f"{path}: {exc.strerror}"]) from exc
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise ConfigError([f"{path}: {exc}"]) from exc
    problems = _apply_environment(raw, environment)
    return resolve(raw, base=path.parent if path is not None else Path(), problems=problems)


def resolve(raw: Mapping[str, Any], *, base: Path, problems: list[str] | None = None) -> Config:
    """Validate plain values and make the paths of folders absolute; `base` is the folder of the file.

    Raises:
        ConfigError: with one line for every key that is wrong.
    """
    problems = list(problems or ())
    parts: dict[str, Any] = {}
    hints = get_type_hints(Config, include_extras=True)
    for section, values in raw.items():
        if section not in hints:
            problems.append(f"{section}: unknown section")
            continue
        try:
            parts[section] = TypeAdapter(hints[section]).validate_python(values)
        except ValidationError as exc:
            problems += [f"{key_of((section, *error['loc']))}: {error['msg']}" for error in exc.errors()]
    config = Config(**parts)
    named = raw.get("peers")  # also those whose table is wrong: that is one error, not two
    problems += inconsistencies(config, peers=set(named) if isinstance(named, Mapping) else set())
    if problems:
        raise ConfigError(problems)
    node = replace(config.node, storage=_absolute(base, config.node.storage))
    analysis = config.analysis
    if analysis.weights_folder:
        analysis = replace(analysis, weights_folder=_absolute(base, analysis.weights_folder))
    web = config.web
    if web.certificate:
        certificate, private_key = _absolute(base, web.certificate), _absolute(base, web.private_key)
        web = replace(web, certificate=certificate, private_key=private_key)
    files = {key: _absolute(base, value) for key, value in asdict(config.tls).items() if value}
    peers = {
        name: replace(peer, tls_ca=_absolute(base, peer.tls_ca)) if peer.tls_ca else peer
        for name, peer in config.peers.items()
    }
    audit = config.audit
    if audit.syslog_ca:
        audit = replace(audit, syslog_ca=_absolute(base, audit.syslog_ca))
    tls = replace(config.tls, **files)
    return replace(config, node=node, analysis=analysis, tls=tls, web=web, peers=peers, audit=audit)


def _absolute(base: Path, folder: str) -> str:
    return str((base / Path(folder).expanduser()).resolve())


def _apply_environment(raw: dict[str, Any], environment: Mapping[str, str]) -> list[str]:
    """Overwrite values by PULMO_NODE__SECTION__KEY; a value is TOML where it parses as such, otherwise a string.

    Names are compared without regard to case, and ``_`` stands for ``-`` too (shells know no variable with one).
    """
    problems: list[str] = []
    for name in sorted(environment):
        if not name.upper().startswith(ENVIRONMENT_PREFIX):
            continue
        keys = name[len(ENVIRONMENT_PREFIX) :].split("__")
        if len(keys) < 2 or not all(keys):
            problems.append(f"{name}: must be {ENVIRONMENT_PREFIX}SECTION__KEY")
            continue
        target: Any = raw
        known: Any = asdict(Config())
        for key in keys[:-1]:
            matched = _match(key, target, known)
            target = target.setdefault(matched, {})
            known = known.get(matched, {}) if isinstance(known, dict) else {}
            if not isinstance(target, dict):
                break
        if not isinstance(target, dict):
            problems.append(f"{name}: {'.'.join(keys[:-1]).lower()} is no table")
            continue
        target[_match(keys[-1], target, known)] = _value(environment[name])
    return problems


def _match(key: str, *tables: Any) -> str:
    wanted = key.lower()
    for table in tables:
        for name in table if isinstance(table, dict) else ():
            if name.lower().replace("-", "_") == wanted:
                return str(name)
    return wanted


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
