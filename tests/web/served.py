"""A node with its page, and somebody who uses it as a browser does: cookies, forms, redirects."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from pulmo_node.app import Node, SystemClock
from pulmo_node.config import Config
from pulmo_node.deliver import DicomSender
from pulmo_node.domain.accounts import Role, User
from pulmo_node.domain.deliveries import Peer
from pulmo_node.testing import SmallPacs
from pulmo_node.web.access import hash_password
from tests.ct_factory import write_datasets
from tests.encode_factory import chest_datasets
from tests.integration.test_node import configuration

PASSWORD = "correct horse battery"  # noqa: S105
HASH = hash_password(PASSWORD)
WAIT_SECONDS = 180.0
SENDER = "SCANNER"

Samples = dict[str, dict[tuple[str, ...], float]]


def page_configuration(folder: Path, *pacs: SmallPacs, **changes: Any) -> Config:
    """A node with a page on a free port of loopback."""
    changes["web"] = {"enabled": True, "port": 0, **changes.get("web", {})}
    return configuration(folder, *pacs, **changes)


@contextmanager
def running(config: Config, *, users: bool = True) -> Iterator[Node]:
    """The node, with a viewer `vera` and an operator `otto`."""
    with Node(config) as node:
        if users:
            for name, role in (("vera", Role.VIEWER), ("otto", Role.OPERATOR)):
                at = SystemClock().now()
                node.store.put_user(User(name=name, role=role, password_hash=HASH, created_at=at))
        yield node


def base_url(node: Node) -> str:
    scheme = "https" if node.config.web.certificate else "http"
    return f"{scheme}://127.0.0.1:{node.observation.web_port}"


class Visitor:
    """One browser."""

    def __init__(self, node: Node, **options: Any) -> None:
        self.client = httpx2.Client(base_url=base_url(node), timeout=180.0, trust_env=False, **options)
        self.csrf = ""

    def __enter__(self) -> Visitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def get(self, path: str, **options: Any) -> httpx2.Response:
        answer = self.client.get(path, **options)
        self.csrf = next(iter(re.findall(r'name="csrf" value="([0-9a-f]+)"', answer.text)), self.csrf)
        return answer

    def post(self, path: str, /, **fields: str) -> httpx2.Response:
        """A form of the page seen last."""
        return self.client.post(path, data={"csrf": self.csrf, **fields})

    def log_in(self, name: str, password: str = PASSWORD) -> httpx2.Response:
        self.get("/login")
        return self.post("/login", name=name, password=password)

    @property
    def token(self) -> str:
        (cookie,) = [cookie for cookie in self.client.cookies.jar if "pulmo" in cookie.name]
        return str(cookie.value)


def logged_in(node: Node, name: str, **options: Any) -> Visitor:
    """Somebody who is in."""
    visitor = Visitor(node, **options)
    assert visitor.log_in(name).status_code == 303
    return visitor


def scrape(node: Node) -> tuple[str, Samples]:
    """The text, and its samples by name and values of the labels, in the order of the names of the labels."""
    with Visitor(node) as prometheus:
        answer = prometheus.get("/metrics")
    assert answer.status_code == 200
    samples: Samples = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            labels = tuple(sample.labels[name] for name in sorted(sample.labels))
            samples.setdefault(sample.name, {})[labels] = sample.value
    return answer.text, samples


def send(node: Node, folder: Path, change: Callable[[Any], None] | None = None, **geometry: Any) -> str:
    """A series by C-STORE; its Study Instance UID."""
    datasets = chest_datasets(**geometry)
    for dataset in datasets:
        if change is not None:
            change(dataset)
    deliver(node, write_datasets(datasets, folder))
    return str(datasets[0].StudyInstanceUID)


def deliver(node: Node, paths: Sequence[Path]) -> None:
    """Files by C-STORE."""
    peer = Peer(name="node", ae_title="PULMO", host="127.0.0.1", port=node.receiver.port)
    for sent in DicomSender(SENDER).send_files(peer, paths):
        assert sent.error is None, sent


def wait_for(what: Callable[[], Any], seconds: float = WAIT_SECONDS) -> Any:
    """What it gives once it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come")


def wait_for_state(node: Node, study: str, *states: str) -> None:
    """Until a study is in one of some states."""

    def reached() -> bool:
        detail = node.store.study(study)
        return detail is not None and detail.summary.state in states

    wait_for(reached)
