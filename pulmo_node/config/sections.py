"""The sections of the configuration with their defaults; config/node.toml explains every key."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from pulmo_node.config.values import STRICT, AeTitle, AtLeastOne, NetworkText, NotNegative, Port, Positive, Share
from pulmo_node.domain.retry import RetryPolicy


@dataclass(frozen=True, kw_only=True)
class NodeSection:
    """Who the node is and where it keeps things."""

    __pydantic_config__ = STRICT
    ae_title: AeTitle = "PULMO"
    bind: Annotated[str, StringConstraints(min_length=1)] = "127.0.0.1"
    port: Port = 11112  # 0: any free port
    storage: Annotated[str, StringConstraints(min_length=1)] = "../var"
    drain_seconds: Positive = 30.0


@dataclass(frozen=True, kw_only=True)
class DatabaseSection:
    """Where the state of every study is kept."""

    __pydantic_config__ = STRICT
    url: str = ""  # empty: SQLite in the storage directory


@dataclass(frozen=True, kw_only=True)
class ReceiveSection:
    """Who may send, and when a series counts as complete."""

    __pydantic_config__ = STRICT
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
    max_bytes_in_flight: AtLeastOne = 4_294_967_296
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

    __pydantic_config__ = STRICT
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

    __pydantic_config__ = STRICT
    device: Literal["auto", "cuda", "cpu"] = "auto"
    weights_folder: str = ""  # empty: "weights" in the storage directory
    isolated: bool = True
    warm_up: bool = True
    read_ahead_mib: NotNegative = 512
    silence_seconds: Positive = 120.0
    limit_seconds: Positive = 3600.0
    lease_seconds: Positive = 60.0
    max_attempts: AtLeastOne = 3
    max_takeovers: AtLeastOne = 10
    first_delay_seconds: Positive = 30.0
    max_delay_seconds: Positive = 3600.0
    jitter: Share = 0.2


@dataclass(frozen=True, kw_only=True)
class DeliverySection(_Retrying):
    """How often and how long a delivery is tried."""

    __pydantic_config__ = STRICT
    max_attempts: AtLeastOne = 20
    first_delay_seconds: Positive = 5.0
    max_delay_seconds: Positive = 3600.0
    jitter: Share = 0.2
    probe_seconds: Positive = 60.0
    lease_seconds: Positive = 300.0
    timeout_seconds: Positive = 30.0
    error_comments: bool = False
    commitment_seconds: Positive = 3600.0
    commitment_linger_seconds: Annotated[float, Field(ge=0, le=1e9)] = 5.0

    @property
    def probing(self) -> RetryPolicy:
        """When a destination that does not answer is tried again."""
        longest = min(self.probe_seconds, self.max_delay_seconds)
        return replace(self.retry, max_delay_seconds=longest)


@dataclass(frozen=True, kw_only=True)
class ResultsSection:
    """Which objects are written, and in which form."""

    __pydantic_config__ = STRICT
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
    heat_maps: bool = True
    parametric_maps: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The keys that decide about the bytes of the objects: the fields of `encode.ResultOptions`."""
        return {key: value for key, value in asdict(self).items() if not key.startswith("report_")}


@dataclass(frozen=True, kw_only=True)
class RetentionSection:
    """When the images of delivered studies are removed."""

    __pydantic_config__ = STRICT
    delivered_days: Annotated[float, Field(ge=0, le=100_000)] = 0.0  # the calendar begins in the year 1
    max_gib: Annotated[float, Field(ge=0)] = 0.0


@dataclass(frozen=True, kw_only=True)
class AuditSection:
    """Who did what to which study."""

    __pydantic_config__ = STRICT
    file: str = ""  # empty: "audit.jsonl" in the storage directory
    syslog: Annotated[
        str, StringConstraints(pattern=r"^((udp|tcp|tls)://(\[[0-9a-fA-F:]+\]|[^\s/@?#:\[\]]+)(:[1-9][0-9]{0,4})?)?$")
    ] = ""  # empty: no DICOM audit messages
    syslog_ca: str = ""  # empty: the issuers that the system trusts
    syslog_patients: bool = False
    site: str = ""


@dataclass(frozen=True, kw_only=True)
class LogSection:
    """What is logged to standard error."""

    __pydantic_config__ = STRICT
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
