"""What a person does with the page, in headless Chromium: log in, look, watch a study being analysed, look at nodules,
requeue a failed one, see a destination go down and up; by keyboard, in light and dark, judged by axe.

Pictures stay in `viewer-out/page` for a person to look at.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pulmo_models import registry
from pulmo_models.pipeline import ProgressCallback, no_progress
from pulmo_models.types import Findings, Radiograph, Volume
from pulmo_node.app import Node
from pulmo_node.testing import SmallPacs
from tests.conftest import ROOT
from tests.fake_pipeline import FakePipeline, _replaced
from tests.viewer import tools
from tests.web.served import PASSWORD, base_url, page_configuration, running, send, wait_for_state

pytestmark = pytest.mark.browser

HERE = Path(__file__).resolve().parent
PICTURES = ROOT / "viewer-out" / "page"


class Stepwise(FakePipeline):
    """Goes on when it is told to; fails while `broken` is set."""

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)
        self.waits = False
        self.broken = False

    def __call__(self, image: Volume | Radiograph, progress: ProgressCallback = no_progress) -> Findings:
        if self.broken:
            raise RuntimeError("a network that broke")
        if self.waits:
            for share in (0.25, 0.75):
                progress("stage1", share)
                while not self.go.acquire(timeout=0.2):  # a network tells it with every window
                    progress("stage1", share)
        return super().__call__(image, progress)


class Browser:
    """The Chromium of `browser.mjs`."""

    def __init__(self, base: str) -> None:
        self._process = subprocess.Popen(
            [tools.node(), str(HERE / "browser.mjs"), str(tools.node_modules()), tools.chromium(), base],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, code: str, **values: Any) -> Any:
        """The value of the code, in which `values` are constants; no page may have had an error meanwhile."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        named = "".join(f"const {name} = {json.dumps(value)};" for name, value in values.items())
        process.stdin.write(json.dumps({"code": named + code}) + "\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline() or '{"error": "the browser ended"}')
        assert "error" not in answer, answer["error"]
        assert answer["troubles"] == []
        return answer["value"]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=180)

    def picture(self, name: str) -> None:
        """The whole page, in light and in dark, to be looked at."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        for scheme, suffix in (("dark", "-dark"), ("light", "")):
            self.run(
                "await page.emulateMedia({colorScheme: scheme}); await page.screenshot({path, fullPage: true});",
                scheme=scheme,
                path=str(PICTURES / f"{name}{suffix}.png"),
            )

    def accessible(self) -> None:
        """Neither in light nor in dark does axe find anything serious."""
        for scheme in ("light", "dark"):
            self.run("await page.emulateMedia({colorScheme: scheme});", scheme=scheme)
            assert self.run("return await axe();") == [], scheme
        self.run("await page.emulateMedia({colorScheme: 'light'});")

    def log_in(self, name: str) -> None:
        self.run(
            """await page.goto("/");
            await page.getByLabel("Name").fill(name);
            await page.getByLabel("Password").fill(password);
            await page.keyboard.press("Enter");
            await page.getByRole("heading", {name: "Studies", level: 1}).waitFor();""",
            name=name,
            password=PASSWORD,
        )


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Stepwise]:
    made = Stepwise()

    def build(settings: Mapping[str, Any], device: str) -> Stepwise:
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.fake_pipeline.build", build)
        patch.setitem(registry._ENTRIES, "ct-nodules", _replaced())
        yield made


@pytest.fixture(autouse=True)
def _as_it_was(pipeline: Stepwise) -> Iterator[None]:
    """What one test made of the pipeline does not reach the next."""
    yield
    pipeline.waits = pipeline.broken = False
    pipeline.go.release(2)


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallPacs]:
    with SmallPacs(tmp_path_factory.mktemp("pacs")) as started:
        yield started


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, pipeline: Stepwise, pacs: SmallPacs) -> Iterator[Node]:
    web = {"ohif_url": "https://pacs.example/ohif"}
    with running(page_configuration(tmp_path_factory.mktemp("node"), pacs, web=web)) as started:
        yield started


@pytest.fixture(scope="module")
def browser(node: Node) -> Iterator[Browser]:
    try:
        started = Browser(base_url(node))
    except tools.ToolMissing as missing:
        pytest.skip(str(missing))
    yield started
    started.close()


def test_the_login(browser: Browser) -> None:
    browser.run("await page.goto('/');")
    assert browser.run("return [await page.title(), new URL(page.url()).pathname];") == [
        "Log in · Pulmo Node",
        "/login",
    ]
    browser.accessible()
    browser.picture("login")
    browser.log_in("otto")
    browser.accessible()


def test_the_progress_of_a_study_moves_by_itself(
    browser: Browser, node: Node, pipeline: Stepwise, tmp_path: Path
) -> None:
    while pipeline.go.acquire(blocking=False):
        pass
    pipeline.waits = True
    study = send(node, tmp_path / "ct")
    browser.run("await page.getByRole('link', {name: study}).waitFor();", study=study)  # the list, without a reload
    browser.run("await page.getByRole('link', {name: study}).click();", study=study)
    browser.run("await page.evaluate(() => { window.notReloaded = true; });")
    for percent in (25, 75):
        browser.run(
            "await page.waitForFunction((text) => document.querySelector('progress')?.textContent === text, text);",
            text=f"{percent} %",
        )
        if percent == 75:
            browser.accessible()
            browser.picture("running")
        pipeline.go.release()
    browser.run("await page.locator('#study-state').getByText('DONE').waitFor();")
    assert browser.run("return await page.evaluate(() => window.notReloaded);") is True
    assert "DONE" in browser.run("return await page.locator('#live-status').textContent();")


def test_the_nodules_of_a_study(browser: Browser, node: Node, tmp_path: Path) -> None:
    study = send(node, tmp_path / "ct")
    wait_for_state(node, study, "DONE")
    browser.run("await page.goto(`/studies/${study}`);", study=study)
    size = browser.run(
        """const image = page.getByRole("img", {name: "Nodule 1 in the axial, coronal and sagittal plane"});
        await image.scrollIntoViewIfNeeded();
        await page.waitForFunction(() => document.querySelector("figure img").complete);
        return await image.evaluate((one) => [one.naturalWidth, one.naturalHeight]);"""
    )
    assert size == [720, 240]
    assert browser.run("return await page.locator('svg.bar').count();") == 8
    link = browser.run("return await page.getByRole('link', {name: 'Open in OHIF'}).getAttribute('href');")
    assert link == f"https://pacs.example/ohif/viewer?StudyInstanceUIDs={study}"
    browser.accessible()
    browser.picture("study")


def test_a_failed_study_is_requeued_by_keyboard(
    browser: Browser, node: Node, pipeline: Stepwise, tmp_path: Path
) -> None:
    pipeline.broken = True
    study = send(node, tmp_path / "ct")
    wait_for_state(node, study, "FAILED")
    browser.run(
        "await page.goto(`/studies/${study}`); await page.getByText('ANALYSIS_FAILED', {exact: true}).waitFor();",
        study=study,
    )
    browser.accessible()
    browser.picture("failed")
    pipeline.broken = False
    browser.run("await page.getByRole('button', {name: 'Requeue'}).focus(); await page.keyboard.press('Enter');")
    browser.run("await page.getByText('1 requeued.').waitFor();")
    browser.run("await page.locator('#study-state').getByText('DONE').waitFor();")


def test_a_destination_goes_down_and_comes_up_again(
    browser: Browser, node: Node, pacs: SmallPacs, tmp_path: Path
) -> None:
    browser.run("await page.goto('/destinations');")
    row = "page.locator('#destination-pacs0')"
    port = pacs.port
    pacs.stop()
    study = send(node, tmp_path / "ct")
    browser.run(f"await {row}.getByText('DOWN').waitFor();")
    browser.accessible()
    browser.picture("destination-down")
    browser.run("await page.getByRole('button', {name: 'Echo pacs0'}).click();")
    browser.run("await page.getByText('pacs0 does not answer').waitFor();")
    with SmallPacs(tmp_path / "again", port=port):
        wait_for_state(node, study, "DONE")
        browser.run(f"await {row}.getByText('answered at').waitFor();")
        browser.run("await page.getByRole('button', {name: 'Echo pacs0'}).click();")
        browser.run("await page.getByText(/pacs0 answered in/).waitFor();")


def test_the_list_and_the_other_pages_are_accessible(browser: Browser) -> None:
    browser.run("await page.goto('/'); await page.getByLabel('State').selectOption('DONE');")
    browser.run("await page.getByRole('button', {name: 'Filter'}).click(); await page.waitForURL(/state=DONE/);")
    assert browser.run("return await page.locator('tbody tr').count();") >= 3
    browser.accessible()
    browser.picture("list")
    browser.run("await page.goto('/pipelines');")
    browser.accessible()
    browser.picture("pipelines")
    browser.run("await page.setViewportSize({width: 400, height: 800}); await page.goto('/');")
    wide = browser.run("return await page.evaluate(() => document.documentElement.scrollWidth);")
    assert wide <= 400, "a narrow window needs no scrolling sideways"
    browser.picture("list-narrow")
    browser.run("await page.setViewportSize({width: 1280, height: 900});")


def test_the_keyboard_reaches_the_content_first(browser: Browser) -> None:
    browser.run("await page.goto('/destinations'); await page.keyboard.press('Tab');")
    assert browser.run("return await page.evaluate(() => document.activeElement.textContent);") == "Skip to the content"
    browser.run("await page.keyboard.press('Enter');")
    assert browser.run("return await page.evaluate(() => document.activeElement.id);") == "content"


def test_logging_out(browser: Browser) -> None:
    browser.run("await page.getByRole('button', {name: 'Log out'}).click(); await page.waitForURL(/login/);")
    browser.run("await page.goBack();")
    assert browser.run("await page.goto('/'); return new URL(page.url()).pathname;") == "/login"
