"""Compare what is installed with a list of advisories that lies on this machine, for where there is no network.

Input: advisories in the OSV format (https://ossf.github.io/osv-schema/), a folder of .json files or a .zip of them, as
OSV publishes for PyPI. Output: one line for each advisory that names an installed version. Ends with 0 where there is
none, 1 where there is one, 2 where the list cannot be used.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from collections.abc import Iterator, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version


def installed() -> dict[str, str]:
    """Version of every distribution that this interpreter finds, by canonical name."""
    return {str(canonicalize_name(found.metadata["Name"])): found.version for found in distributions()}


def advisories(source: Path) -> Iterator[dict[str, Any]]:
    """What lies in a folder or .zip. Raises `OSError`, `ValueError` or `BadZipFile`."""
    if source.is_dir():
        for path in sorted(source.rglob("*.json")):
            yield json.loads(path.read_bytes())
        return
    with zipfile.ZipFile(source) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".json"):
                yield json.loads(archive.read(name))


def names(advisory: Mapping[str, Any], versions: Mapping[str, str]) -> list[tuple[str, str]]:
    """Installed packages, with their versions, that an advisory says are affected."""
    if advisory.get("withdrawn"):
        return []
    found = []
    for affected in advisory.get("affected", ()):
        package = affected.get("package", {})
        name = str(canonicalize_name(package.get("name", "")))
        if package.get("ecosystem") == "PyPI" and name in versions and _is_affected(affected, versions[name]):
            found.append((name, versions[name]))
    return sorted(set(found))


def _is_affected(affected: Mapping[str, Any], version: str) -> bool:
    own = Version(version.partition("+")[0])  # a build of torch for one device is the version that it is built from
    if any(_is(own, listed) for listed in affected.get("versions", ())):
        return True
    ranges = [each for each in affected.get("ranges", ()) if each.get("type") == "ECOSYSTEM"]
    return any(_within(own, each.get("events", ())) for each in ranges)


def _is(own: Version, listed: str) -> bool:
    try:
        return own == Version(listed)
    except InvalidVersion:  # of before PEP 440; nothing of that age can be installed
        return False


def _within(own: Version, events: Any) -> bool:
    """Events of a range, taken in the order of their versions, as the OSV schema evaluates them."""
    steps = sorted(
        (Version("0.dev0") if text == "0" else Version(text), kind) for event in events for kind, text in event.items()
    )
    inside = False
    for at, kind in steps:
        if kind == "introduced" and own >= at:
            inside = True
        elif (kind == "fixed" and own >= at) or (kind == "last_affected" and own > at):
            inside = False
    return inside


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Installed packages against advisories on this machine.")
    parser.add_argument("source", type=Path, help="folder or .zip of advisories in the OSV format")
    source = parser.parse_args(arguments).source
    versions = installed()
    read, newest, found = 0, "", 0
    try:
        for advisory in advisories(source):
            read += 1
            newest = max(newest, str(advisory.get("modified", "")))
            for name, version in names(advisory, versions):
                found += 1
                also = " ".join(advisory.get("aliases", ()))
                print(f"{name} {version}: {advisory.get('id')} {also}".rstrip())
    except (OSError, ValueError, zipfile.BadZipFile) as exc:
        print(f"{source}: {exc}", file=sys.stderr)
        return 2
    if not read:
        print(f"{source}: no advisories", file=sys.stderr)
        return 2
    print(f"{len(versions)} packages against {read} advisories, the newest of {newest}: {found} found")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
