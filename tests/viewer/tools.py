"""What the viewer stand needs besides Python: OHIF's distribution and playwright-core (npm), Node.js, Chromium.

Both npm packages are pinned with their digests and kept in a cache folder outside the repository, so that a fresh
clone finds them again. `python -m tests.viewer.tools` fetches what is missing and prints the folder of OHIF.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OHIF_VERSION = "3.13.2"
OHIF_SHA512 = "WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA=="
HERE = Path(__file__).resolve().parent
NPM_LOCK = HERE / "package-lock.json"
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")


class ToolMissing(Exception):
    """Something cannot be had; the sentence says what, and how to get it."""


def cache() -> Path:
    """Where fetched packages are kept; `PULMO_VIEWER_CACHE` names another folder."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("PULMO_VIEWER_CACHE") or home / "pulmo-node" / "viewer")


def ohif() -> Path:
    """OHIF's prebuilt distribution, fetched where it is not in the cache. Raises `ToolMissing`."""
    folder = cache() / f"ohif-{OHIF_VERSION}"
    if not (folder / "dist" / "index.html").is_file():
        with _made_whole(folder) as made:
            _npm(["pack", "--silent", f"@ohif/app@{OHIF_VERSION}"], made)
            (package,) = made.glob("*.tgz")
            digest = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
            if digest != OHIF_SHA512:
                raise ToolMissing(f"@ohif/app {OHIF_VERSION} has another digest than the one pinned: {digest}")
            _unpack(package, made)
            package.unlink()
    return folder / "dist"


def node_modules() -> Path:
    """The folder with playwright-core in the version of the lock file, fetched where it is not in the cache."""
    lock = hashlib.sha256(NPM_LOCK.read_bytes()).hexdigest()[:12]
    folder = cache() / f"node-{lock}"
    if not (folder / "node_modules").is_dir():
        with _made_whole(folder) as made:
            for name in ("package.json", "package-lock.json"):
                shutil.copy(HERE / name, made)
            _npm(["ci", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"], made)
    return folder / "node_modules"


def node() -> str:
    """The Node.js program. Raises `ToolMissing`."""
    found = shutil.which("node")
    if found is None:
        raise ToolMissing("Node.js is not installed (Debian packages nodejs and npm)")
    return found


def chromium() -> str:
    """The browser. Raises `ToolMissing`."""
    found = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if found is None:
        raise ToolMissing("Chromium is not installed (Debian package chromium)")
    return found


@contextmanager
def _made_whole(folder: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name only when it is whole; two processes may fill one at once."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        yield made
        if not folder.exists():
            made.rename(folder)


def _npm(arguments: list[str], folder: Path) -> None:
    if shutil.which("npm") is None:
        raise ToolMissing("npm is not installed (Debian packages nodejs and npm)")
    try:
        done = subprocess.run(["npm", *arguments], cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    except subprocess.TimeoutExpired as exc:
        raise ToolMissing(f"npm {' '.join(arguments)} took more than 300 s") from exc
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise ToolMissing(f"npm {' '.join(arguments)} failed: {said[-1] if said else 'it said nothing'}")


def _unpack(package: Path, folder: Path) -> None:
    with tarfile.open(package) as archive:
        for member in archive:
            inside = Path(*Path(member.name).parts[1:])  # npm puts everything below "package/"
            if member.isfile() and inside.parts[:1] == ("dist",) and ".." not in inside.parts:
                target = folder / inside
                target.parent.mkdir(parents=True, exist_ok=True)
                source = archive.extractfile(member)
                assert source is not None
                with source, target.open("wb") as output:
                    shutil.copyfileobj(source, output)


def main() -> int:
    """Fetch both packages; 1 and a sentence where one cannot be had."""
    try:
        node_modules()
        print(ohif())
    except ToolMissing as missing:
        print(missing, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
