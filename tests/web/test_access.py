"""Who gets in, what they may do, and what a hostile peer, page or browser cannot make of it."""

from __future__ import annotations

import json
import re
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx2
import pytest
from starlette.datastructures import Headers
from starlette.responses import Response
from typer.testing import CliRunner

from pulmo_models import registry
from pulmo_node.app import Node
from pulmo_node.cli import app
from pulmo_node.config import load, resolve
from pulmo_node.domain.accounts import Role, User
from pulmo_node.errors import ConfigError
from pulmo_node.store import SqlStore
from pulmo_node.testing import SmallPacs
from pulmo_node.web import pictures
from pulmo_node.web.access import LoginRate, Sessions, client_of, csrf_token, within
from pulmo_node.web.parts import Recently
from pulmo_node.web.show import printable
from tests.certificates import authority
from tests.fake_pipeline import _replaced, fake_pipeline
from tests.integration.store_scene import SetClock, new_database
from tests.web.served import (
    HASH,
    PASSWORD,
    Visitor,
    base_url,
    logged_in,
    page_configuration,
    running,
    send,
    wait_for,
    wait_for_state,
)

pytestmark = pytest.mark.usefixtures("fake_pipeline")
__all__ = ["fake_pipeline"]

STUDY = "1.2.3"
PAGES = ("/", f"/studies/{STUDY}", f"/studies/{STUDY}/jobs/1/nodules/1.png", "/destinations", "/pipelines", "/live")
ACTIONS = (
    f"/studies/{STUDY}/requeue",
    f"/studies/{STUDY}/redeliver",
    f"/studies/{STUDY}/cancel",
    "/destinations/pacs0/echo",
)
SEARCH = "/search"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("node")
    with pytest.MonkeyPatch.context() as patch, SmallPacs(folder / "pacs") as pacs:
        patch.setitem(registry._ENTRIES, "ct-nodules", _replaced())
        with running(page_configuration(folder, pacs, web={"hosts": ["Pulmo.Example"]})) as started:
            yield started


@pytest.fixture
def visitor(node: Node) -> Iterator[Visitor]:
    with Visitor(node) as somebody:
        yield somebody


def audit(node: Node) -> list[dict[str, Any]]:
    return [json.loads(line) for line in node.config.audit_file.read_text().splitlines()]


def test_without_a_login_there_is_the_login_alone(visitor: Visitor) -> None:
    for path in PAGES:
        answer = visitor.get(path)
        assert answer.status_code in (303, 401), path
        assert answer.status_code == 401 or answer.headers["location"].startswith("/login?next=/"), path
        assert STUDY not in answer.text
    assert visitor.get("/login").status_code == 200
    for path in (*ACTIONS, SEARCH):
        assert visitor.post(path).status_code == 401, path
    assert visitor.get("/static/style.css").status_code == 200


def test_every_route_that_there_is_is_among_those(node: Node) -> None:
    """A page that somebody adds is asked for here without a login too."""
    routes = {route.path for route in node.observation._web._serving.config.app.routes}  # type: ignore[union-attr]
    asked = {re.sub(r"^/studies/[\d.]+", "/studies/{uid}", path) for path in (*PAGES, *ACTIONS, SEARCH)}
    asked = {re.sub(r"jobs/1/nodules/1", "jobs/{job}/nodules/{number}", path) for path in asked}
    asked = {path.replace("pacs0", "{name}") for path in asked}
    assert routes - asked == {"/login", "/logout", "/static", "/healthz", "/readyz", "/metrics"}


def test_a_viewer_looks_and_changes_nothing(node: Node) -> None:
    with logged_in(node, "vera") as vera:
        page = vera.get("/destinations").text
        assert "Echo" not in page
        for path in ACTIONS:
            assert vera.post(path).status_code == 403, path
        vera.get("/")
        assert vera.post(SEARCH, state="DONE").headers["location"] == "/?state=DONE"
        assert vera.post("/logout").headers["location"] == "/login"
        assert vera.get("/").status_code == 303


def test_a_form_needs_the_token_of_this_very_session(node: Node) -> None:
    with logged_in(node, "otto") as otto, logged_in(node, "vera") as vera:
        otto.get("/"), vera.get("/")
        assert otto.csrf == csrf_token(otto.token) != vera.csrf
        own, echo = otto.csrf, "/destinations/pacs0/echo"
        for wrong in ("", "0" * 64, vera.csrf, own[:-1] + ("0" if own[-1] != "0" else "1")):
            otto.csrf = wrong
            assert otto.post(echo).status_code == 403, wrong
        otto.csrf = own
        assert otto.client.post(echo, json={"csrf": own}).status_code == 403
        for header in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
            assert otto.client.post(echo, data={"csrf": own}, headers=header).status_code == 403, header
        assert otto.post(echo).status_code == 303


def test_the_login_gives_a_new_token_whatever_the_browser_had(node: Node, visitor: Visitor) -> None:
    visitor.get("/login")
    planted = visitor.token
    visitor.post("/login", name="otto", password=PASSWORD)
    assert visitor.token != planted
    with Visitor(node) as attacker:
        attacker.client.cookies.set("pulmo", planted)
        assert attacker.get("/").status_code == 303
    token = visitor.token
    visitor.get("/")
    visitor.post("/logout")
    visitor.client.cookies.set("pulmo", token)
    assert visitor.get("/").status_code == 303, "the session is over on the server too"


def test_the_cookie_is_for_no_script_and_no_other_site(node: Node, visitor: Visitor) -> None:
    visitor.get("/login")
    cookie = visitor.post("/login", name="otto", password=PASSWORD).headers["set-cookie"]
    assert {part.strip().lower() for part in cookie.split(";")[1:]} == {"httponly", "samesite=lax", "path=/"}


def test_with_tls_the_cookie_is_secure_and_bound_to_the_host(tmp_path: Path) -> None:
    issuer = authority(tmp_path)
    own = issuer.issue("node")
    web = {"certificate": str(own.certificate), "private_key": str(own.private_key)}
    with (
        running(page_configuration(tmp_path, web=web)) as node,
        Visitor(node, verify=ssl.create_default_context(cafile=str(issuer.own.certificate))) as somebody,
    ):
        answer = somebody.log_in("otto")
        assert answer.headers["set-cookie"].startswith("__Host-pulmo=")
        assert "Secure" in answer.headers["set-cookie"]
        assert "max-age" in answer.headers["strict-transport-security"]
        assert somebody.get("/").status_code == 200


def test_a_session_ends(tmp_path: Path) -> None:
    clock = SetClock()
    with SqlStore(new_database(tmp_path), clock) as store:
        user = User(name="u", role=Role.VIEWER, password_hash=HASH, created_at=clock.now())
        store.put_user(user)
        sessions = Sessions(store, idle_minutes=30)
        token = sessions.begin(user, clock.now())
        assert token not in (tmp_path / "pulmo.sqlite").read_bytes().decode("latin-1")
        assert sessions.visitor(token, clock.advance(minutes=29)) is not None
        assert sessions.visitor(token, clock.advance(minutes=29)) is not None, "it is used, so it lasts"
        assert sessions.visitor(token, clock.advance(minutes=31)) is None
        token = sessions.begin(user, clock.now())
        for _ in range(24 * 2):
            alive = sessions.visitor(token, clock.advance(minutes=15.5))
        assert alive is None, "twelve hours are the longest"
        token = sessions.begin(user, clock.now())
        store.put_user(replace(user, role=Role.OPERATOR))
        assert sessions.visitor(token, clock.now()) is None, "another password ends it"


def test_too_many_failures_are_not_looked_at(tmp_path: Path) -> None:
    guess = "wrong password"
    with running(page_configuration(tmp_path)) as node, Visitor(node) as attacker:
        attacker.get("/login")
        with ThreadPoolExecutor(20) as pool:  # at the same time, so that none is refused for one that is over
            tries = [pool.submit(attacker.post, "/login", name="otto", password=guess) for _ in range(20)]
        answers = [each.result() for each in tries]
        assert sorted(answer.status_code for answer in answers) == [401] * 10 + [429] * 10
        assert all("wrong" in answer.text for answer in answers if answer.status_code == 401)
        assert attacker.log_in("otto").status_code == 429, "even with the right password"
        actions = [line["action"] for line in audit(node)]
        assert actions.count("login failed") == 10
        assert actions.count("login refused: too many failures") == 1, "a flood of tries fills no disk"
        assert guess not in node.config.audit_file.read_text()


def test_the_rate_is_by_address_and_by_name_and_forgets() -> None:
    rate, at = LoginRate(per_address=2, per_name=3, seconds=60), datetime(2026, 1, 1, tzinfo=UTC)
    for _ in range(5):
        assert rate.begin("a", "x", at)
        rate.right("a", "x", at)
    assert rate.begin("a", "x", at)
    assert rate.begin("a", "x", at)
    assert not rate.begin("a", "y", at)
    assert rate.begin("b", "x", at)
    assert not rate.begin("c", "x", at)
    assert rate.begin("a", "x", at + timedelta(seconds=61))


def test_what_is_told_once_is_told_once_by_two_at_the_same_time() -> None:
    noted, at, recorded = Recently(), datetime(2026, 1, 1, tzinfo=UTC), []
    both_inside = threading.Barrier(2)

    def record() -> None:
        recorded.append(1)
        with suppress(threading.BrokenBarrierError):
            both_inside.wait(0.5)

    with ThreadPoolExecutor(2) as pool:
        for each in [pool.submit(noted.once, "otto", "1.2.3", at, record) for _ in range(2)]:
            each.result()
    assert recorded == [1]


def test_what_could_not_be_recorded_is_recorded_the_next_time() -> None:
    noted, at, record = Recently(), datetime(2026, 1, 1, tzinfo=UTC), Mock(side_effect=[OSError("disk full"), None])
    with pytest.raises(OSError, match="disk full"):
        noted.once("otto", "1.2.3", at, record)
    for _ in range(2):
        noted.once("otto", "1.2.3", at, record)
    assert record.call_count == 2


def test_a_clock_that_is_set_back_locks_nobody_out_and_hides_nothing() -> None:
    rate, noted, at = LoginRate(per_address=1), Recently(), datetime(2026, 1, 1, tzinfo=UTC)
    assert rate.begin("a", "x", at)
    assert not rate.begin("a", "x", at)
    assert rate.begin("a", "x", at - timedelta(days=1))
    record = Mock()
    for moment, times in ((0, 1), (9, 1), (11, 2), (-24 * 60, 3)):
        noted.once("otto", "1.2.3", at + timedelta(minutes=moment), record)
        assert record.call_count == times, f"{moment} minutes later"


HOSTILE = "<script>alert(1)</script>^\"'><img src=x onerror=alert(2)>"
STRANGE = "Eve\u202egnp.exe"


def _hostile(dataset: Any) -> None:
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName, dataset.PatientID = HOSTILE, STRANGE
    dataset.AccessionNumber = "{{7*7}}%0d%0aX"
    dataset.SeriesDescription = "</title><script>alert(3)</script>"


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, on values that no VR allows
def test_hostile_values_are_shown_as_text(tmp_path: Path) -> None:
    with (
        running(page_configuration(tmp_path)) as node,
        logged_in(node, "otto") as otto,
        logged_in(node, "vera") as vera,
    ):
        study = send(node, tmp_path / "ct", _hostile)
        wait_for_state(node, study, "DONE")
        for path in ("/", f"/studies/{study}"):
            answer = otto.get(path)
            assert "&lt;script&gt;alert(1)&lt;/script&gt;" in answer.text, path
            tags = re.findall(r"<(?:script|img|iframe|svg)[^>]*>", answer.text)
            ours = r'<(script src="/static/live.js"|img loading="lazy"|svg class="bar")'
            assert all(re.match(ours, tag) for tag in tags)
            assert "\u202e" not in answer.text
            assert "{{7*7}}" in answer.text
            assert not any("alert" in value or "7*7" in value for value in answer.headers.values())
            seen = vera.get(path).text
            assert "alert(1)" not in seen, "names are for operators"
            assert "Eve" not in seen
        shown = [line for line in audit(node) if line["action"] == "study shown with the patient's name"]
        assert {line["who"] for line in shown} == {"page otto"}
        assert not any(mark in json.dumps(line) for line in audit(node) for mark in ("Eve", "alert", "7*7"))


def test_control_characters_are_replaced() -> None:
    assert printable("a\x00\x1b[31mb\r\u2066c\u200bd") == "a\ufffd\ufffd[31mb\ufffd\ufffdc\ufffdd"
    assert printable("Müller^Ä 山田") == "Müller^Ä 山田"


def test_no_file_but_those_of_the_page_is_served(node: Node, visitor: Visitor) -> None:
    secret = node.config.storage / "catalogue.key"
    assert secret.stat().st_mode & 0o777 == 0o600
    with logged_in(node, "otto") as otto:
        for path in (
            "/static/../guard.py",
            "/static/..%2fguard.py",
            "/static/%2e%2e/guard.py",
            "/static/%2e%2e%2f%2e%2e%2f__init__.py",
            "/static//etc/passwd",
            "/static/..\\guard.py",
            "/studies/..%2f..%2fpulmo.sqlite",
            "/studies/../../etc/passwd",
            "/studies/1.2.3/jobs/1/nodules/..%2f1.png",
        ):
            answer = httpx2.Client(base_url=base_url(node), cookies=otto.client.cookies, trust_env=False).get(path)
            assert answer.status_code in (303, 404), path
            assert not any(mark in answer.text for mark in ("SQLite", "import ", "root:")), path


@pytest.mark.parametrize(
    "target",
    ["//evil.example/", "//[", "https://evil.example/", "/\\evil.example", "javascript:alert(1)", "/a\r\nX: y"],
)
def test_a_login_leads_to_this_server_only(node: Node, visitor: Visitor, target: str) -> None:
    visitor.get("/login", params={"next": target})
    answer = visitor.post("/login", name="otto", password=PASSWORD, next=target)
    assert answer.headers["location"] == "/"


def test_another_name_of_this_machine_is_refused(visitor: Visitor) -> None:
    assert visitor.get("/login", headers={"Host": "evil.example"}).status_code == 421
    assert visitor.get("/healthz", headers={"Host": "10.1.2.3:8050"}).status_code == 200, "a probe calls by address"


def test_a_name_is_the_same_in_capitals(visitor: Visitor) -> None:
    assert visitor.get("/login", headers={"Host": "pulmo.example:8050"}).status_code == 200


def test_what_is_malformed_is_refused_as_anything_else(
    node: Node, visitor: Visitor, caplog: pytest.LogCaptureFixture
) -> None:
    assert visitor.get("/login", headers={"Host": "["}).status_code == 421
    assert visitor.client.post("/login", headers={"Origin": "http://["}).status_code == 403
    assert visitor.get("/login", params={"next": "//["}).status_code == 200
    with logged_in(node, "vera") as vera:
        for number in ("1" * 5000, "-1", "1.0", "\u0661"):
            assert vera.get(f"/studies/{STUDY}/jobs/{number}/nodules/{number}.png").status_code == 404, number[:9]
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_cookie_of_another_program_on_the_same_machine_hides_no_session(node: Node) -> None:
    """Browsers send cookies to every port of a host, and not all programs write them by the book."""
    with logged_in(node, "vera") as vera:
        for strange in ('theme={"dark": 1, "size": 2}', "a b=c", "\xe9=1", "nonsense"):
            cookies = f"{strange}; pulmo={vera.token}"
            with Visitor(node, headers={"Cookie": cookies.encode("latin-1")}) as same:
                assert same.get("/").status_code == 200, strange


class Held:
    """Stands in the place of what a thread does; nothing goes on until the end of the block."""

    def __init__(self) -> None:
        self.entered: list[None] = []
        self._released = threading.Event()

    def __call__(self, *_: object) -> Response:
        self.entered.append(None)
        self._released.wait(60)
        return Response()

    @contextmanager
    def asked(self, node: Node, path: str, token: str, number: int) -> Iterator[None]:
        """Many requests at once."""
        with (
            httpx2.Client(base_url=base_url(node), cookies={"pulmo": token}, timeout=60, trust_env=False) as client,
            ThreadPoolExecutor(number) as pool,
        ):
            try:
                for _ in range(number):
                    pool.submit(client.get, path)
                yield
            finally:
                self._released.set()


def test_the_process_is_alive_while_every_thread_waits(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held()
    monkeypatch.setattr(node.store, "counts", held)
    threads = 40  # as many as Starlette has
    with logged_in(node, "vera") as vera, held.asked(node, "/destinations", vera.token, threads + 1):
        wait_for(lambda: len(held.entered) == threads)
        with Visitor(node, cookies={"pulmo": vera.token}) as probe:
            assert probe.get("/healthz").text == "alive\n"


def test_pictures_that_are_drawn_leave_threads_to_the_other_pages(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held()
    monkeypatch.setattr(pictures, "_nodule_picture", held)
    picture = f"/studies/{STUDY}/jobs/1/nodules/1.png"
    with logged_in(node, "vera") as vera, held.asked(node, picture, vera.token, 60):
        wait_for(lambda: len(held.entered) == 4)
        assert vera.get("/").status_code == 200
        assert len(held.entered) == 4


def test_every_answer_says_what_the_browser_may_do(node: Node, visitor: Visitor) -> None:
    for path in ("/login", "/healthz", "/static/live.js", "/nowhere"):
        headers = visitor.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy, path
        assert "unsafe" not in policy, path
        assert (headers["x-content-type-options"], headers["x-frame-options"]) == ("nosniff", "DENY"), path
        assert headers["cache-control"] == "no-store", path
        assert "server" not in headers, path
    page = visitor.get("/login").text
    assert re.findall(r" (?:style|on\w+)=", page) == []


def test_the_head_of_the_stream_is_no_stream(node: Node) -> None:
    with logged_in(node, "vera") as vera:
        answer = vera.client.head("/live", timeout=10)
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert vera.client.get("/", timeout=10).status_code == 200, "the connection is free again"


def test_a_form_that_is_too_large_is_not_read(node: Node, visitor: Visitor) -> None:
    visitor.get("/login")
    assert visitor.post("/login", name="otto", password="x" * 20_000).status_code == 403
    assert visitor.post("/login", name="otto", password="x" * 2_000).status_code == 401


def test_a_trusted_proxy_says_who_it_is(tmp_path: Path) -> None:
    web = {"access": "proxy", "trusted_proxies": ["127.0.0.1/32"]}
    with running(page_configuration(tmp_path, web=web), users=False) as node, Visitor(node) as proxy:
        assert proxy.get("/").status_code == 403
        page = proxy.get("/destinations", headers={"X-Remote-User": "<b>eve", "X-Remote-Role": "operator"})
        assert "&lt;b&gt;eve (operator)" in page.text
        assert "vera (viewer)" in proxy.get("/", headers={"X-Remote-User": "vera", "X-Remote-Role": "admin"}).text
        assert (
            "__Host-pulmo="
            in proxy.get("/", headers={"X-Remote-User": "v", "X-Forwarded-Proto": "https"}).headers["set-cookie"]
        )
        # What a client puts beside the headers of the proxy makes nobody of them.
        user, role = ("X-Remote-User", "vera"), ("X-Remote-Role", "viewer")
        assert "vera (viewer)" in proxy.get("/", headers=[user, ("X-Remote-Role", "operator"), role]).text
        assert proxy.get("/", headers=[("X-Remote-User", "otto"), user, role]).status_code == 403


def test_nobody_else_says_who_they_are(node: Node, visitor: Visitor) -> None:
    assert visitor.get("/", headers={"X-Remote-User": "otto", "X-Remote-Role": "operator"}).status_code == 303


def test_the_address_behind_proxies_is_the_last_that_is_none_of_them() -> None:
    trusted = ("10.0.0.0/8",)
    headers = Headers({"x-forwarded-for": "6.6.6.6, 203.0.113.9, 10.1.1.1", "x-forwarded-proto": "https"})
    client = client_of("10.0.0.1", "http", headers, trusted)
    assert (client.address, client.secure, client.proxy) == ("203.0.113.9", True, True)
    client = client_of("198.51.100.1", "http", headers, trusted)
    assert (client.address, client.secure, client.proxy, client.forwarded) == ("198.51.100.1", False, False, True)
    lines = [(b"x-forwarded-for", b"10.1.1.1"), (b"x-forwarded-for", b"203.0.113.9")]  # the second by the proxy
    assert client_of("10.0.0.1", "http", Headers(raw=lines), trusted).address == "203.0.113.9"
    for told, address in {
        "203.0.113.9:4711": "203.0.113.9",
        "[2001:db8::1]:4711": "2001:db8::1",
        "2001:db8::1": "2001:db8::1",
        "203.0.113.9, 10.1.1.1:80": "203.0.113.9",
    }.items():
        assert client_of("10.0.0.1", "http", Headers({"x-forwarded-for": told}), trusted).address == address
    assert within("::ffff:127.0.0.1", ["127.0.0.0/8"])
    assert not within("nonsense", ["0.0.0.0/0"])


def test_metrics_are_for_those_who_are_named(tmp_path: Path) -> None:
    with running(page_configuration(tmp_path, web={"metrics_networks": ["192.0.2.0/24"]})) as node:
        with Visitor(node) as stranger:
            assert stranger.get("/metrics").status_code == 403
            assert stranger.get("/healthz").text == "alive\n"
        with logged_in(node, "vera") as vera:
            assert vera.get("/metrics").status_code == 200


def test_metrics_are_not_given_to_whoever_was_passed_on(visitor: Visitor) -> None:
    assert visitor.get("/metrics").status_code == 200
    assert visitor.get("/metrics", headers={"X-Forwarded-For": "203.0.113.9"}).status_code == 403


EVERYWHERE = "0.0.0.0"  # noqa: S104
PROBLEMS = {
    "a page for others in the clear": ({"bind": EVERYWHERE, "hosts": ["n"]}, "web.bind"),
    "one that anybody may use": (
        {"bind": EVERYWHERE, "hosts": ["n"], "cleartext": True, "access": "open"},
        "web.access",
    ),
    "one without a name": ({"bind": EVERYWHERE, "cleartext": True}, "web.hosts"),
    "a proxy that is nobody": ({"access": "proxy"}, "web.trusted_proxies"),
    "half a certificate": ({"certificate": "a.pem"}, "web.certificate"),
}


@pytest.mark.parametrize(("web", "named"), PROBLEMS.values(), ids=PROBLEMS)
def test_an_unsafe_page_is_not_started(tmp_path: Path, web: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve({"web": {"enabled": True, **web}}, base=tmp_path)
    assert [problem.split(":")[0].split(",")[0] for problem in caught.value.problems] == [named]


def test_users_by_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PULMO_NODE__NODE__STORAGE", str(tmp_path))
    path = tmp_path / "node.toml"
    path.write_text("")
    monkeypatch.setenv("PULMO_NODE_CONFIG", str(path))
    run = CliRunner()
    assert run.invoke(app, ["user", "add", "anna", "--role", "operator"], input="too short\n").exit_code == 2
    added = run.invoke(app, ["user", "add", "anna", "--role", "operator"], input=f"{PASSWORD}\n")
    assert (added.exit_code, added.output) == (0, "anna is operator\n")
    assert run.invoke(app, ["user", "add", "anna"], input=f"{PASSWORD}\n").exit_code == 1
    assert run.invoke(app, ["user", "add", "a b"], input=f"{PASSWORD}\n").exit_code == 2
    (listed,) = json.loads(run.invoke(app, ["user", "list", "--json"]).output)
    assert (listed["name"], listed["role"]) == ("anna", "operator")
    stored = b"".join(each.read_bytes() for each in tmp_path.glob("pulmo.sqlite*"))
    assert b"$argon2id$" in stored
    assert PASSWORD.encode() not in stored
    assert run.invoke(app, ["user", "remove", "anna"]).exit_code == 0
    assert run.invoke(app, ["user", "remove", "anna"]).exit_code == 1
    lines = [json.loads(line)["action"] for line in load(path).audit_file.read_text().splitlines()]
    assert lines == ["user added", "user removed"]
