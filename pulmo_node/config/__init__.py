"""One TOML file read into frozen dataclasses, every error reported together, each naming its key.

Order of precedence: environment variables ``PULMO_NODE__SECTION__KEY``, then the file, then the defaults.
Relative paths are relative to the folder of the file (to the working directory where there is none), so that every
command finds the same database from wherever it is called.

In reading order: `values` (kinds of values), `sections`, `service` (page and notifications), `routing` (peers and
rules), `whole` (all of them together),
`checks` (what contradicts itself), `reading` (file and environment).
"""

from __future__ import annotations

from pulmo_node.config.reading import ENVIRONMENT_PREFIX, default_path, load, resolve
from pulmo_node.config.routing import SENDER, RuleSection
from pulmo_node.config.sections import LogSection, TlsSection
from pulmo_node.config.service import NotifySection, WebSection
from pulmo_node.config.whole import Config

__all__ = [
    "ENVIRONMENT_PREFIX",
    "SENDER",
    "Config",
    "LogSection",
    "NotifySection",
    "RuleSection",
    "TlsSection",
    "WebSection",
    "default_path",
    "load",
    "resolve",
]
