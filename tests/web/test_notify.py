"""Who is told of what: over a real node, a web server and a mail server that take what is sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from types import SimpleNamespace
from typing import Any

import pytest

from pulmo_node.config import Config, resolve
from pulmo_node.errors import DiskFull, Transient
from pulmo_node.monitoring import notices
from pulmo_node.monitoring.notices import Notice, Watch
from pulmo_node.monitoring.notify import Notifier, build_channels
from pulmo_node.monitoring.observed import Observed
from pulmo_node.monitoring.readiness import Disk
from pulmo_node.observation import Observation
from pulmo_node.store import SqlStore
from tests.integration.store_scene import STUDY, Scene, SetClock, new_database


class Hook:
    """Takes what is posted; answers `status`."""

    def __init__(self) -> None:
        self.status = 200
        self.posted: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if hook.status == 200:
                    hook.posted.append(json.loads(body))
                    hook.authorizations.append(self.headers["Authorization"])
                self.send_response(hook.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"

    def __enter__(self) -> Hook:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def mail_server() -> Iterator[tuple[int, list[str]]]:
    """Port and messages of an SMTP server that takes everything (RFC 5321, the least of it)."""
    taken: list[str] = []

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 test\r\n")
            while line := self.rfile.readline():
                verb = line[:4].upper()
                if verb == b"EHLO":
                    self.wfile.write(b"250-test\r\n250 AUTH PLAIN\r\n")
                    continue
                if verb == b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    taken.append(b"".join(iter(self.rfile.readline, b".\r\n")).decode())
                self.wfile.write(b"221 bye\r\n" if verb == b"QUIT" else b"250 ok\r\n")
                if verb == b"QUIT":
                    return

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield int(server.server_address[1]), taken
        server.shutdown()


class Told:
    """A store, a watch on it, and a clock for each."""

    def __init__(self, folder: Path, **notify: Any) -> None:
        raw = {"node": {"storage": str(folder)}, "receive": {"low_free_bytes": 1000}, "notify": notify}
        self.config: Config = resolve(raw, base=folder)
        self.clock = SetClock()
        self.store = SqlStore(new_database(folder), self.clock)
        self.scene = Scene(self.store, self.clock)
        self.observed = Observed(self.clock)
        self.seconds = 0.0
        self.notifier = self.started()

    def started(self) -> Notifier:
        """As a node that starts makes it."""
        watch = Watch(self.config, self.store, self.observed, self.clock)
        self.notifier = Notifier(watch, build_channels(self.config.notify), 60.0, lambda: self.seconds)
        return self.notifier

    def minute(self, number: int = 1) -> None:
        """Look, and look again once a message is due."""
        for _ in range(number):
            self.notifier.look()
            self.seconds += 61
            self.clock.advance(seconds=61)
            self.notifier.look()

    def fail(self, study: str = STUDY) -> None:
        job = self.scene.queued(study=study, series=f"{study}.1")
        self.store.job_failed(job, "ANALYSIS_FAILED", "Patient Doe^Jane broke it")


@pytest.fixture
def hook() -> Iterator[Hook]:
    with Hook() as started:
        yield started


def keys(posted: dict[str, Any]) -> list[tuple[str, str, bool]]:
    return [(notice["kind"], notice["subject"], notice["over"]) for notice in posted["notices"]]


def test_failed_studies_are_one_message_and_their_recovery_another(tmp_path: Path, hook: Hook) -> None:
    told = Told(tmp_path, webhook_url=hook.url, webhook_authorization="Bearer x", page_url="https://node.example/")
    told.fail("1.2.840.1")
    told.notifier.look()
    told.fail("1.2.840.2")
    told.notifier.look()
    assert hook.posted == [], "not before the time for one message is over"
    told.minute()
    (message,) = hook.posted
    assert keys(message) == [("study failed", "1.2.840.1", False), ("study failed", "1.2.840.2", False)]
    assert "ANALYSIS_FAILED" in message["text"]
    assert "https://node.example/studies/1.2.840.1" in message["text"]
    assert "Doe" not in json.dumps(message), "no reason in words: it may quote a patient"
    assert hook.authorizations == ["Bearer x"]
    told.minute(3)
    assert len(hook.posted) == 1, "told once"
    told.store.requeue(study_instance_uid="1.2.840.1")
    told.store.job_encoded(told.scene.claim(), [], '{"schema_version": 1}')
    told.minute()
    assert [keys(each) for each in hook.posted[1:]] == [[("study failed", "1.2.840.1", True)]]


def test_a_destination_counts_as_down_after_some_minutes(tmp_path: Path, hook: Hook) -> None:
    told = Told(tmp_path, webhook_url=hook.url, destination_down_minutes=10)
    told.observed.destination_failed("pacs", "refused")
    told.minute(5)
    told.observed.destination_answered("pacs")
    told.minute(10)
    assert hook.posted == [], "a short trouble is none"
    told.observed.destination_failed("pacs", "refused")
    told.minute(12)
    assert [keys(each) for each in hook.posted] == [[("destination down", "pacs", False)]]
    told.observed.destination_answered("pacs")
    told.minute()
    assert keys(hook.posted[1]) == [("destination down", "pacs", True)]


def test_the_disk_has_a_watermark_and_does_not_flap(
    tmp_path: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told(tmp_path, webhook_url=hook.url)
    for free in (1001, 999, 998, 1001, 1099, 999, 1100):
        monkeypatch.setattr(notices, "disk_of", lambda _, free=free: Disk(free_bytes=free, total_bytes=10_000))
        told.minute()
    assert [keys(each) for each in hook.posted] == [
        [("disk nearly full", "storage", False)],
        [("disk nearly full", "storage", True)],
    ]


def test_what_could_not_be_told_is_told_later(tmp_path: Path, hook: Hook) -> None:
    told = Told(tmp_path, webhook_url=hook.url)
    hook.status = 503
    told.fail("1.2.840.1")
    told.minute(2)
    told.fail("1.2.840.2")
    hook.status = 200
    told.minute(2)
    assert [keys(each) for each in hook.posted] == [
        [("study failed", "1.2.840.1", False), ("study failed", "1.2.840.2", False)]
    ]


def test_what_was_seen_before_the_database_refused_is_told(
    tmp_path: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told(tmp_path, webhook_url=hook.url)
    for study in ("1.2.840.1", "1.2.840.2", "1.2.840.3"):
        told.fail(study)
    asked = [Transient("locked"), *map(told.store.study, ("1.2.840.1", "1.2.840.2")), Transient("locked")]
    asked += map(told.store.study, ("1.2.840.3",))

    def study(_: str) -> Any:
        answer = asked.pop(0)
        if isinstance(answer, Transient):
            raise answer
        return answer

    monkeypatch.setattr(told.store, "study", study)
    for _ in range(2):
        with pytest.raises(Transient):
            told.notifier.look()
    told.minute()
    assert [subject for _, subject, _ in keys(hook.posted[0])] == ["1.2.840.1", "1.2.840.2", "1.2.840.3"]


UNUSABLE = {
    "a port that is none": {"webhook_url": "http://127.0.0.1:abc/hook"},
    "an authorization that no header can hold": {"webhook_authorization": "Bearer \u00fc"},
    "a sender of two lines": {"mail_from": "a@x.example\nX: y"},
    "a password that SMTP cannot send": {"smtp_user": "u", "smtp_password": "p\u00e4ssword"},
    "a host that is none": {"smtp_host": "a..b"},
}


@pytest.mark.parametrize("unusable", UNUSABLE.values(), ids=UNUSABLE)
def test_a_channel_that_cannot_be_used_is_in_the_log_and_stops_no_other(
    tmp_path: Path, hook: Hook, caplog: pytest.LogCaptureFixture, unusable: dict[str, Any]
) -> None:
    with mail_server() as (port, taken):
        mail = {"mail_from": "n@x.example", "smtp_host": "127.0.0.1", "smtp_port": port, "smtp_tls": "off"}
        told = Told(tmp_path, **{"webhook_url": hook.url, "mail_to": ["a@x.example"], **mail, **unusable})
        told.fail()
        told.minute()
    assert (len(hook.posted), len(taken)) in ((1, 0), (0, 1))
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "is not told of 1 notices" in record.getMessage()
    assert not any(str(value) in record.getMessage() for value in unusable.values())


def test_what_stops_the_catalogue_does_not_stop_notifications(tmp_path: Path) -> None:
    told, looked = Told(tmp_path), threading.Event()

    def full() -> None:
        raise DiskFull("no space left")

    observation = Observation(told.config, told.clock, told.store)
    observation._catalogue = SimpleNamespace(update=full)  # type: ignore[assignment]
    observation._notifier = SimpleNamespace(look=looked.set)  # type: ignore[assignment]
    observation.start()
    try:
        assert looked.wait(30)
    finally:
        observation.stop()
        observation.join()


def test_a_restart_tells_nothing_twice_and_forgets_nothing(tmp_path: Path, hook: Hook) -> None:
    told = Told(tmp_path, webhook_url=hook.url)
    told.fail("1.2.840.1")
    told.minute()
    told.started()
    told.minute()
    assert len(hook.posted) == 1
    told.fail("1.2.840.2")
    told.notifier.look()  # seen, not told: the node ends here
    told.started()
    told.minute()
    assert keys(hook.posted[1]) == [("study failed", "1.2.840.2", False)]
    (tmp_path / "notices.json").write_text("{")
    told.started()
    told.minute()
    assert len(hook.posted) == 2, "a spoiled memory begins anew"


def test_the_same_by_mail(tmp_path: Path) -> None:
    with mail_server() as (port, taken):
        told = Told(
            tmp_path, mail_to=["a@x.example", "b@x.example"], mail_from="node@x.example", smtp_host="127.0.0.1",
            smtp_port=port, smtp_tls="off",
        )  # fmt: skip
        told.fail()
        told.minute()
    (message,) = taken
    assert "Subject: Pulmo Node: study failed" in message
    assert "To: a@x.example, b@x.example" in message
    assert STUDY in message
    assert "Doe" not in message


def test_very_many_are_counted(tmp_path: Path, hook: Hook) -> None:
    settings = Told(tmp_path, webhook_url=hook.url).config.notify
    (channel,) = build_channels(settings)
    notice = Notice(kind="study failed", subject="1.2", over=False, text="Study 1.2: failed.")
    channel.send([notice], left_out=7)
    assert hook.posted[0]["text"].splitlines() == ["Study 1.2: failed.", "7 more are left out."]


def test_nothing_is_told_of_what_was_before(tmp_path: Path, hook: Hook) -> None:
    told = Told(tmp_path)
    told.fail()
    told.clock.advance(days=1)
    told.config = resolve({"node": {"storage": str(tmp_path)}, "notify": {"webhook_url": hook.url}}, base=tmp_path)
    told.started()
    told.minute()
    assert hook.posted == []
