"""One TOML file read into frozen dataclasses, every error reported together, each naming its key.

Order of precedence: environment variables ``PULMO_NODE__SECTION__KEY``, then the file, then the defaults below.
Relative paths are relative to the folder of the file (to the working directory where there is none), so that every
command finds the same database from wherever it is called.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from pulmo_models import registry
from pulmo_models.errors import UnknownPipeline
from pulmo_node.domain.deliveries import Peer
from pulmo_node.domain.retry import RetryPolicy
from pulmo_node.errors import ConfigError

ENVIRONMENT_PREFIX = "PULMO_NODE__"
SENDER = "sender"
"""Destination of a rule that stands for the peer whose AE title sent the series."""

# PS3.5 6.2, value representation AE: at most 16 characters, no backslash, no control characters.
AeTitle = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=16, pattern=r"^[ -\[\]-~]+$")
]
Port = Annotated[int, Field(ge=0, le=65535)]
Positive = Annotated[float, Field(gt=0)]
AtLeastOne = Annotated[int, Field(ge=1)]

_STRICT = ConfigDict(extra="forbid", strict=False)


@dataclass(frozen=True, kw_only=True)
class NodeSection:
    """Who the node is and where it keeps things."""

    __pydantic_config__ = _STRICT
    ae_title: AeTitle = "PULMO"
    bind: Annotated[str, StringConstraints(min_length=1)] = "127.0.0.1"
    port: Port = 11112  # 0: any free port
    storage: Annotated[str, StringConstraints(min_length=1)] = "../var"


@dataclass(frozen=True, kw_only=True)
class DatabaseSection:
    """Where the state of every study is kept."""

    __pydantic_config__ = _STRICT
    url: str = ""  # empty: SQLite in the storage directory


@dataclass(frozen=True, kw_only=True)
class ReceiveSection:
    """Who may send, and when a series counts as complete."""

    __pydantic_config__ = _STRICT
    quiet_seconds: Positive = 10.0
    accept_calling: tuple[AeTitle, ...] = ()
    require_called_ae_title: bool = False
    max_associations: AtLeastOne = 20
    max_pdu_bytes: Annotated[int, Field(ge=4096, le=16_777_216)] = 131_072
    network_timeout_seconds: Positive = 60.0


class _Retrying:
    """What the sections of analysis and delivery say alike, with defaults of their own."""

    max_attempts: AtLeastOne
    first_delay_seconds: Positive
    max_delay_seconds: Positive

    @property
    def retry(self) -> RetryPolicy:
        """The policy of their attempts."""
        return RetryPolicy(
            max_attempts=self.max_attempts,
            first_delay_seconds=self.first_delay_seconds,
            max_delay_seconds=self.max_delay_seconds,
        )


@dataclass(frozen=True, kw_only=True)
class AnalysisSection(_Retrying):
    """Where the networks run and how often a failing analysis is tried."""

    __pydantic_config__ = _STRICT
    device: Literal["auto", "cuda", "cpu"] = "auto"
    weights_folder: str = ""  # empty: "weights" in the storage directory
    lease_seconds: Positive = 60.0
    max_attempts: AtLeastOne = 3
    first_delay_seconds: Positive = 30.0
    max_delay_seconds: Positive = 3600.0


@dataclass(frozen=True, kw_only=True)
class DeliverySection(_Retrying):
    """How often and how long a delivery is tried."""

    __pydantic_config__ = _STRICT
    max_attempts: AtLeastOne = 20
    first_delay_seconds: Positive = 5.0
    max_delay_seconds: Positive = 3600.0
    lease_seconds: Positive = 300.0
    timeout_seconds: Positive = 30.0


@dataclass(frozen=True, kw_only=True)
class ResultsSection:
    """Which objects are written, and in which form."""

    __pydantic_config__ = _STRICT
    report_rejected: bool = False
    report_failed: bool = False
    negative_report: Literal["viewer_safe", "air"] = "viewer_safe"
    segmentation: Literal["binary", "labelmap"] = "binary"
    empty_frames: bool = False
    lung_segments: bool = False
    image_library: bool = False
    key_images: bool = True
    presentation_states: bool = False
    pdf_report: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The keys that decide about the bytes of the objects: the fields of `encode.ResultOptions`."""
        return {key: value for key, value in asdict(self).items() if not key.startswith("report_")}


@dataclass(frozen=True, kw_only=True)
class LogSection:
    """What is logged to standard error."""

    __pydantic_config__ = _STRICT
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


@dataclass(frozen=True, kw_only=True)
class PeerSection:
    """A destination."""

    __pydantic_config__ = _STRICT
    ae_title: AeTitle
    host: Annotated[str, StringConstraints(min_length=1)]
    port: Annotated[int, Field(ge=1, le=65535)]


@dataclass(frozen=True, kw_only=True)
class RuleSection:
    """Which series go to which pipelines, and their results to which destinations. The first rule that fits is used.

    The four conditions are shell-style patterns (``*``, ``?``, ``[...]``), compared without regard to case.
    """

    __pydantic_config__ = _STRICT
    calling_ae_title: str = "*"
    modality: str = "*"
    body_part: str = "*"
    series_description: str = "*"
    pipelines: tuple[str, ...] = ()
    destinations: tuple[str, ...] = (SENDER,)


_DEFAULT_RULES = (RuleSection(modality="CT", pipelines=("ct-nodules",), destinations=(SENDER,)),)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole configuration."""

    __pydantic_config__ = _STRICT
    node: NodeSection = NodeSection()
    database: DatabaseSection = DatabaseSection()
    receive: ReceiveSection = ReceiveSection()
    analysis: AnalysisSection = AnalysisSection()
    delivery: DeliverySection = DeliverySection()
    results: ResultsSection = ResultsSection()
    log: LogSection = LogSection()
    peers: dict[str, PeerSection] = field(default_factory=dict)
    pipelines: dict[str, dict[str, Any]] = field(default_factory=lambda: {"ct-nodules": {}})
    rules: tuple[RuleSection, ...] = _DEFAULT_RULES

    @property
    def storage(self) -> Path:
        """The storage directory, absolute once the configuration was loaded."""
        return Path(self.node.storage)

    @property
    def weights_folder(self) -> Path:
        """Where fetched and imported sets of weights lie, absolute once the configuration was loaded."""
        return Path(self.analysis.weights_folder or self.storage / "weights")

    @property
    def database_url(self) -> str:
        """URL for SQLAlchemy."""
        return self.database.url or f"sqlite:///{self.storage / 'pulmo.sqlite'}"

    def peer(self, name: str) -> Peer:
        """A configured destination by name."""
        found = self.peers[name]
        return Peer(name=name, ae_title=found.ae_title, host=found.host, port=found.port)

    def peer_of_ae_title(self, ae_title: str) -> str | None:
        """Name of the destination with that AE title."""
        return next((name for name, peer in self.peers.items() if peer.ae_title == ae_title.strip()), None)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for `config show`; the password of a database URL is masked."""
        plain = asdict(self)
        scheme, at, host = plain["database"]["url"].rpartition("@")
        if at and "//" in scheme:
            user = scheme.split("//", 1)[1].split(":", 1)[0]
            plain["database"]["url"] = f"{scheme.split('//', 1)[0]}//{user}:***@{host}"
        return plain


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
            problems += [f"{_key((section, *error['loc']))}: {error['msg']}" for error in exc.errors()]
    config = Config(**parts)
    named = raw.get("peers")  # also those whose table is wrong: that is one error, not two
    problems += _inconsistencies(config, peers=set(named) if isinstance(named, Mapping) else set())
    if problems:
        raise ConfigError(problems)
    node = replace(config.node, storage=_absolute(base, config.node.storage))
    analysis = config.analysis
    if analysis.weights_folder:
        analysis = replace(analysis, weights_folder=_absolute(base, analysis.weights_folder))
    return replace(config, node=node, analysis=analysis)


def _absolute(base: Path, folder: str) -> str:
    return str((base / Path(folder).expanduser()).resolve())


def _key(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def _inconsistencies(config: Config, *, peers: Collection[str]) -> list[str]:
    """What the types cannot say: names that point nowhere, settings that a pipeline does not know."""
    problems: list[str] = []
    for label, settings in config.pipelines.items():
        try:
            entry = registry.entry(label)
        except UnknownPipeline as exc:
            problems.append(f"pipelines.{label}: {exc}")
            continue
        try:
            TypeAdapter(entry.settings).validate_python(settings)
        except ValidationError as exc:
            problems += [f"pipelines.{label}.{_key(error['loc'])}: {error['msg']}" for error in exc.errors()]
    if SENDER in config.peers:
        problems.append(f"peers.{SENDER}: the name is reserved for the AE title that sent the series")
    for number, rule in enumerate(config.rules):
        for pipeline in rule.pipelines:
            if pipeline not in config.pipelines:
                problems.append(f"rules[{number}].pipelines: there is no [pipelines.{pipeline}]")
        for destination in rule.destinations:
            if destination != SENDER and destination not in peers:
                problems.append(f"rules[{number}].destinations: there is no [peers.{destination}]")
    return problems


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
