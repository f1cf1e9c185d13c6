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
from urllib.parse import urlsplit

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from pulmo_models import registry
from pulmo_models.errors import UnknownPipeline
from pulmo_node.domain.deliveries import Peer, PeerTls
from pulmo_node.domain.retry import RetryPolicy
from pulmo_node.errors import ConfigError
from pulmo_node.network.access import is_loopback, parse_network

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
NotNegative = Annotated[int, Field(ge=0)]
NetworkText = Annotated[str, AfterValidator(lambda text: str(parse_network(text)))]
Share = Annotated[float, Field(ge=0, le=1)]

_STRICT = ConfigDict(extra="forbid", strict=False)


@dataclass(frozen=True, kw_only=True)
class NodeSection:
    """Who the node is and where it keeps things."""

    __pydantic_config__ = _STRICT
    ae_title: AeTitle = "PULMO"
    bind: Annotated[str, StringConstraints(min_length=1)] = "127.0.0.1"
    port: Port = 11112  # 0: any free port
    storage: Annotated[str, StringConstraints(min_length=1)] = "../var"
    drain_seconds: Positive = 30.0


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
    accept_networks: tuple[NetworkText, ...] = ()
    open: bool = False
    require_called_ae_title: bool = False
    accept_called: tuple[AeTitle, ...] = ()
    max_associations: AtLeastOne = 20
    max_associations_per_peer: AtLeastOne = 16
    max_connections_per_minute: AtLeastOne = 6000
    max_pdu_bytes: Annotated[int, Field(ge=4096, le=1_048_576)] = 131_072
    max_instance_bytes: AtLeastOne = 2_147_483_648
    min_free_bytes: NotNegative = 1_073_741_824
    low_free_bytes: NotNegative = 5_368_709_120
    max_association_bytes: AtLeastOne = 68_719_476_736
    max_association_seconds: Positive = 14_400.0
    association_request_seconds: Positive = 15.0
    slowest_bytes_per_second: Positive = 1000.0
    gap_attempts: AtLeastOne = 3
    gap_delay_seconds: Positive = 30.0
    network_timeout_seconds: Positive = 60.0


@dataclass(frozen=True, kw_only=True)
class TlsSection:
    """TLS of the receiver; the certificate is also the one shown to peers that ask for one."""

    __pydantic_config__ = _STRICT
    certificate: str = ""  # empty: no TLS
    private_key: str = ""
    client_ca: str = ""  # empty: peers need no certificate


class _Retrying:
    """What the sections of analysis and delivery say alike, with defaults of their own."""

    max_attempts: AtLeastOne
    first_delay_seconds: Positive
    max_delay_seconds: Positive
    jitter: Share

    @property
    def retry(self) -> RetryPolicy:
        """The policy of their attempts."""
        return RetryPolicy(
            max_attempts=self.max_attempts,
            first_delay_seconds=self.first_delay_seconds,
            max_delay_seconds=self.max_delay_seconds,
            jitter=self.jitter,
        )


@dataclass(frozen=True, kw_only=True)
class AnalysisSection(_Retrying):
    """Where the networks run and how often a failing analysis is tried."""

    __pydantic_config__ = _STRICT
    device: Literal["auto", "cuda", "cpu"] = "auto"
    weights_folder: str = ""  # empty: "weights" in the storage directory
    isolated: bool = True
    silence_seconds: Positive = 120.0
    limit_seconds: Positive = 3600.0
    lease_seconds: Positive = 60.0
    max_attempts: AtLeastOne = 3
    first_delay_seconds: Positive = 30.0
    max_delay_seconds: Positive = 3600.0
    jitter: Share = 0.2


@dataclass(frozen=True, kw_only=True)
class DeliverySection(_Retrying):
    """How often and how long a delivery is tried."""

    __pydantic_config__ = _STRICT
    max_attempts: AtLeastOne = 20
    first_delay_seconds: Positive = 5.0
    max_delay_seconds: Positive = 3600.0
    jitter: Share = 0.2
    probe_seconds: Positive = 60.0
    lease_seconds: Positive = 300.0
    timeout_seconds: Positive = 30.0
    error_comments: bool = False
    commitment_seconds: Positive = 3600.0
    commitment_linger_seconds: Annotated[float, Field(ge=0)] = 5.0

    @property
    def probing(self) -> RetryPolicy:
        """When a destination that does not answer is tried again."""
        longest = min(self.probe_seconds, self.max_delay_seconds)
        return replace(self.retry, max_delay_seconds=longest)


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
class RetentionSection:
    """When the images of delivered studies are removed."""

    __pydantic_config__ = _STRICT
    delivered_days: Annotated[float, Field(ge=0)] = 0.0
    max_gib: Annotated[float, Field(ge=0)] = 0.0


@dataclass(frozen=True, kw_only=True)
class AuditSection:
    """Who did what to which study."""

    __pydantic_config__ = _STRICT
    file: str = ""  # empty: "audit.jsonl" in the storage directory


@dataclass(frozen=True, kw_only=True)
class LogSection:
    """What is logged to standard error."""

    __pydantic_config__ = _STRICT
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


@dataclass(frozen=True, kw_only=True)
class PeerSection:
    """A destination."""

    __pydantic_config__ = _STRICT
    ae_title: AeTitle | None = None  # these three are needed unless there is a stow_url
    host: Annotated[str, StringConstraints(min_length=1)] = ""
    port: Annotated[int, Field(ge=1, le=65535)] = 0
    stow_url: Annotated[str, StringConstraints(pattern=r"^(https?://[^\s/@?#]+[^\s@?#]*)?$")] = ""
    stow_authorization: str = ""  # value of the Authorization header, "Bearer ..." or "Basic ..."
    tls: bool = False
    tls_ca: str = ""  # empty: the issuers that the system trusts
    tls_hostname: str = ""  # empty: host
    storage_commitment: Literal["off", "if_offered"] = "off"
    gap_repair: bool = False


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
    priority: Literal["routine", "stat"] = "routine"
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
    tls: TlsSection = TlsSection()
    analysis: AnalysisSection = AnalysisSection()
    delivery: DeliverySection = DeliverySection()
    results: ResultsSection = ResultsSection()
    retention: RetentionSection = RetentionSection()
    audit: AuditSection = AuditSection()
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
    def audit_file(self) -> Path:
        """The audit trail, absolute once the configuration was loaded."""
        return Path(self.audit.file or self.storage / "audit.jsonl")

    @property
    def database_url(self) -> str:
        """URL for SQLAlchemy."""
        return self.database.url or f"sqlite:///{self.storage / 'pulmo.sqlite'}"

    def peer(self, name: str) -> Peer:
        """A configured destination by name."""
        found = self.peers[name]
        own = self.tls
        tls = PeerTls(
            ca=found.tls_ca, certificate=own.certificate, private_key=own.private_key, hostname=found.tls_hostname
        )
        return Peer(
            name=name,
            ae_title=found.ae_title or "",
            host=found.host,
            port=found.port,
            tls=tls if found.tls or found.stow_url.startswith("https:") else None,
            stow_url=found.stow_url,
            stow_authorization=found.stow_authorization,
            commitment=found.storage_commitment != "off",
        )

    def peer_of_ae_title(self, ae_title: str) -> str | None:
        """Name of the destination with that AE title."""
        return next((name for name, peer in self.peers.items() if peer.ae_title == ae_title.strip()), None)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for `config show`; passwords of the database and of DICOMweb servers are masked."""
        plain = asdict(self)
        scheme, at, host = plain["database"]["url"].rpartition("@")
        if at and "//" in scheme:
            user = scheme.split("//", 1)[1].split(":", 1)[0]
            plain["database"]["url"] = f"{scheme.split('//', 1)[0]}//{user}:***@{host}"
        for peer in plain["peers"].values():
            if peer["stow_authorization"]:
                peer["stow_authorization"] = "***"
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
    files = {key: _absolute(base, value) for key, value in asdict(config.tls).items() if value}
    peers = {
        name: replace(peer, tls_ca=_absolute(base, peer.tls_ca)) if peer.tls_ca else peer
        for name, peer in config.peers.items()
    }
    return replace(config, node=node, analysis=analysis, tls=replace(config.tls, **files), peers=peers)


def _absolute(base: Path, folder: str) -> str:
    return str((base / Path(folder).expanduser()).resolve())


def _key(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def _inconsistencies(config: Config, *, peers: Collection[str]) -> list[str]:
    """What the types cannot say: names that point nowhere, settings that a pipeline does not know."""
    problems = _network_problems(config)
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


def _network_problems(config: Config) -> list[str]:
    """A node that others can reach must say who may come; TLS needs certificate and key together."""
    problems: list[str] = []
    receive = config.receive
    if not (is_loopback(config.node.bind) or receive.accept_calling or receive.accept_networks or receive.open):
        problems.append(
            f"node.bind: {config.node.bind} can be reached from other machines; name who may send in"
            " receive.accept_calling or receive.accept_networks, or set receive.open = true"
        )
    if bool(config.tls.certificate) != bool(config.tls.private_key):
        problems.append("tls.certificate, tls.private_key: both are needed, or none")
    if config.tls.client_ca and not config.tls.certificate:
        problems.append("tls.client_ca: needs tls.certificate and tls.private_key")
    for name, peer in config.peers.items():
        problems += [f"peers.{name}.{problem}" for problem in _peer_problems(peer)]
    return problems


def _peer_problems(peer: PeerSection) -> list[str]:
    if not peer.stow_url:
        problems = [f"{key}: Field required" for key in ("ae_title", "host", "port") if not getattr(peer, key)]
        if not peer.tls and (peer.tls_ca or peer.tls_hostname):
            problems.append("tls: must be true where tls_ca or tls_hostname is given")
        if peer.stow_authorization:
            problems.append("stow_authorization: needs stow_url")
        return problems
    # The certificate of a web server is for the name in its address.
    unused = [key for key in ("host", "port", "tls", "tls_hostname") if getattr(peer, key)]
    problems = [f"{key}: means nothing beside stow_url" for key in unused]
    if peer.gap_repair:
        problems.append("gap_repair: needs a DICOM node, not a stow_url")
    if peer.storage_commitment != "off":
        problems.append("storage_commitment: must be off beside stow_url; STOW-RS has none")
    secure = peer.stow_url.startswith("https:")
    if peer.tls_ca and not secure:
        problems.append("tls_ca: needs a stow_url with https")
    if peer.stow_authorization and not (secure or is_loopback(urlsplit(peer.stow_url).hostname or "")):
        problems.append("stow_authorization: would be readable on the network; needs a stow_url with https")
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
