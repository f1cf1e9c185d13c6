"""The whole configuration, and what is derived of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pulmo_node.config.routing import DEFAULT_RULES, PeerSection, RuleSection
from pulmo_node.config.sections import (
    AnalysisSection,
    AuditSection,
    DatabaseSection,
    DeliverySection,
    LogSection,
    NodeSection,
    ReceiveSection,
    ResultsSection,
    RetentionSection,
    TlsSection,
)
from pulmo_node.config.service import NotifySection, WebSection
from pulmo_node.config.values import STRICT
from pulmo_node.domain.deliveries import Peer, PeerTls


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole configuration."""

    __pydantic_config__ = STRICT
    node: NodeSection = field(default_factory=NodeSection)
    database: DatabaseSection = field(default_factory=DatabaseSection)
    receive: ReceiveSection = field(default_factory=ReceiveSection)
    tls: TlsSection = field(default_factory=TlsSection)
    analysis: AnalysisSection = field(default_factory=AnalysisSection)
    delivery: DeliverySection = field(default_factory=DeliverySection)
    results: ResultsSection = field(default_factory=ResultsSection)
    retention: RetentionSection = field(default_factory=RetentionSection)
    audit: AuditSection = field(default_factory=AuditSection)
    log: LogSection = field(default_factory=LogSection)
    web: WebSection = field(default_factory=WebSection)
    notify: NotifySection = field(default_factory=NotifySection)
    peers: dict[str, PeerSection] = field(default_factory=dict)
    pipelines: dict[str, dict[str, Any]] = field(default_factory=lambda: {"ct-nodules": {}})
    rules: tuple[RuleSection, ...] = DEFAULT_RULES

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

    @property
    def pipelines_of_rules(self) -> tuple[str, ...]:
        """Labels of the pipelines that some rule names, in alphabetical order."""
        return tuple(sorted({label for rule in self.rules for label in rule.pipelines}))

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
            deidentify=None if found.deidentify == "off" else found.deidentify,
        )

    def peer_of_ae_title(self, ae_title: str) -> str | None:
        """Name of the destination with that AE title."""
        return next((name for name, peer in self.peers.items() if peer.ae_title == ae_title.strip()), None)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for `config show`; passwords and the like are masked."""
        plain = asdict(self)
        scheme, at, host = plain["database"]["url"].rpartition("@")
        if at and "//" in scheme:
            user = scheme.split("//", 1)[1].split(":", 1)[0]
            plain["database"]["url"] = f"{scheme.split('//', 1)[0]}//{user}:***@{host}"
        for peer in plain["peers"].values():
            if peer["stow_authorization"]:
                peer["stow_authorization"] = "***"
        for key in ("webhook_url", "webhook_authorization", "smtp_password"):  # an address of a chat is its own key
            if plain["notify"][key]:
                plain["notify"][key] = "***"
        return plain
