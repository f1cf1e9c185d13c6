"""Writes docs/licences.md: the packages that the node depends on, directly and through others, and their licences.

    python -m tools.licences

From what the installed packages say of themselves (PEP 639, then classifiers), for the versions in constraints.txt. The
full list of an installation with versions, CycloneDX, is `make sbom`.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "licences.md"
EXTRAS = ("", "web", "postgresql", "train")  # what a user installs; not what development needs

_KNOWN = {  # where a package says it in words of its own, or not at all: its licence file, read
    "apscheduler": "MIT",
    "mpmath": "BSD-3-Clause",
    "pylidc": "MIT",
}
_HEAD = """# Licences of what the node depends on

Pulmo Node is licensed under Apache-2.0, its weights under CC BY 4.0. These packages are not part of it; an installation
gets them from their makers. Written by `python -m tools.licences` from what the packages say of themselves.

| package | licence | needed by |
|---|---|---|
"""


def licences() -> dict[str, tuple[str, str]]:
    """Licence, and the first of the extras that need it, of every package by name."""
    found: dict[str, tuple[str, str]] = {}
    for extra in EXTRAS:
        for name in _needed("pulmo-node", {extra} if extra else set()):
            if name != "pulmo-node" and name not in found:
                found[name] = (_licence(distribution(name)), extra or "the node")
    return found


def _needed(name: str, extras: set[str]) -> list[str]:
    """A package and all that it needs here; an extra of one package is none of another."""
    seen: dict[tuple[str, str], None] = {}
    waiting = [(_normal(name), frozenset(extras))]
    while waiting:
        one, wanted = waiting.pop()
        for extra in wanted | {""}:
            if (one, extra) in seen:
                continue
            seen[one, extra] = None
            for line in _requirements(one):
                requirement = Requirement(line)
                environment = {**default_environment(), "extra": extra}
                if requirement.marker is None or requirement.marker.evaluate(environment):
                    waiting.append((_normal(requirement.name), frozenset(requirement.extras)))
    return sorted({one for one, _ in seen})


def _requirements(name: str) -> list[str]:
    if name == "pulmo-node":  # what is installed may be another version of it
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        of_extras = project["optional-dependencies"].items()
        return [*project["dependencies"], *(f"{line}; extra == '{extra}'" for extra, own in of_extras for line in own)]
    try:
        return distribution(name).requires or []
    except PackageNotFoundError:
        raise SystemExit(f"{name} is not installed; licences are written where all extras are") from None


def _licence(package: Distribution) -> str:
    name = _normal(package.metadata["Name"])
    expression = package.metadata.get("License-Expression")
    if expression:
        return str(expression)
    classifiers = package.metadata.get_all("Classifier") or []
    named = [each.rpartition(" :: ")[2] for each in classifiers if each.startswith("License ::")]
    words = [each for each in named if each != "OSI Approved"]
    short = (package.metadata.get("License") or "").strip()
    if name in _KNOWN:
        return _KNOWN[name]
    return ", ".join(words) or (short if 0 < len(short) < 60 else "see the package")


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def document() -> str:
    """The whole file."""
    rows = (f"| {name} | {licence} | {needed} |" for name, (licence, needed) in sorted(licences().items()))
    return _HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
    sys.exit(0)
