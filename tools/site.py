"""Hooks of mkdocs: documents outside of docs/ become pages too, and links to other files of the repository text.

So that the documents read well where they lie, and the site is whole without them.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]

_PAGES = {  # in the repository: on the site
    "README.md": "README.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "SECURITY.md": "SECURITY.md",
    "deploy/README.md": "deploy.md",
    "BENCHMARKS.md": "BENCHMARKS.md",
    "pulmo_models/data/pulmo-node-3.md": "model_card.md",
}
_CODE = {"config/node.toml": "node.toml.md"}  # shown as they are
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere."""
    for source, target in _PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, target, content=_linked(text, posixpath.dirname(source))))
    for source, target in _CODE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, target, content=f"# {source}\n\n```toml\n{text}```\n"))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Links of the documents in docs/."""
    return markdown if page.file.generated_by else _linked(markdown, "docs")


def _linked(markdown: str, folder: str) -> str:
    """Links, relative to a folder of the repository, as the site has them; to what it does not have, the text alone."""

    def replaced(match: re.Match[str]) -> str:
        picture, text, target, anchor = match[1], match[2], match[3], match[4] or ""
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        page = _PAGES.get(path) or _CODE.get(path)
        if page is None and path.startswith("docs/") and (ROOT / path).is_file():
            page = path.removeprefix("docs/")
        if page is None and (ROOT / path).exists():
            return f"{text} (`{path}`)" if text.strip("`") != path else f"`{path}`"
        return f"{picture}[{text}]({page or target}{anchor})"  # a link to nothing stays, and the build fails

    return _LINK.sub(replaced, markdown)
