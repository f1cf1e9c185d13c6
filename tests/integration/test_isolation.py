"""What happens to the analysis process ends one attempt, and never the node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pulmo_node.attempt import ReadingAhead, SeriesRequest
from pulmo_node.encode import ResultContext
from pulmo_node.errors import AnalysisLost, Permanent, PulmoError, Rejected, Stopped, Transient
from pulmo_node.isolation import IsolatedAnalysis, ProcessSettings
from pulmo_node.testing import SmallPacs
from tests.conftest import ROOT
from tests.ct_factory import write_datasets
from tests.encode_factory import chest_datasets
from tests.fake_pipeline import REJECTED_DESCRIPTION
from tests.integration.test_node import in_state, running, send, series_files, wait_for
from tests.misbehaving import (
    BUG,
    CUDA,
    DEVICE_MEMORY,
    EXIT,
    HANGS,
    KILLED,
    MEMORY,
    QUOTED,
    SEGFAULT,
    SLOW,
    STOPPED,
    misbehaving,
)

__all__ = ["misbehaving"]
pytestmark = pytest.mark.usefixtures("misbehaving")

WAIT_SECONDS = 180.0


def request(folder: Path, description: str) -> SeriesRequest:
    datasets = chest_datasets()
    for dataset in datasets:
        dataset.SeriesDescription = description
    paths = tuple(write_datasets(datasets, folder / description.replace(" ", "-")))
    context = ResultContext(
        series_instance_uid=str(datasets[0].SeriesInstanceUID),
        revision=1,
        pipeline="ct-nodules",
        settings_sha256="0" * 64,
        content_datetime=datetime(2026, 11, 21, tzinfo=UTC),
    )
    return SeriesRequest(
        pipeline="ct-nodules", paths=paths, study_paths=paths[:1], context=context, outbox_key=f"key-{description}"
    )


def settings(folder: Path) -> ProcessSettings:
    return ProcessSettings(
        pipelines={"ct-nodules": {}}, device="cpu", weights_folder=folder / "weights", storage=folder / "storage"
    )


@pytest.fixture
def analysis(tmp_path: Path) -> Iterator[IsolatedAnalysis]:
    made = IsolatedAnalysis(settings(tmp_path))
    yield made
    made.close()


class TestProcess:
    def test_the_objects_lie_in_the_outbox_and_the_process_stays_warm(
        self, analysis: IsolatedAnalysis, tmp_path: Path
    ) -> None:
        assert analysis.pid is None
        assert analysis.info("ct-nodules").label == "ct-nodules"
        pid = analysis.pid
        assert pid != os.getpid()
        for number in (1, 2):
            result = analysis.run(replace(request(tmp_path, f"good {number}"), outbox_key=f"key{number}"))
            assert [each.kind for each in result.objects][:2] == ["sr", "seg"]
            assert all((tmp_path / "storage" / each.path).is_file() for each in result.objects)
            assert {"assemble", "encode", "outbox"} <= set(result.timings_seconds)
        assert analysis.pid == pid

    @pytest.mark.parametrize(
        ("what", "words"), [(SEGFAULT, "SIGSEGV"), (KILLED, "where memory runs out"), (EXIT, "exit code 3")]
    )
    def test_a_process_that_ends_costs_one_attempt(
        self, analysis: IsolatedAnalysis, tmp_path: Path, what: str, words: str
    ) -> None:
        with pytest.raises(AnalysisLost, match=words):
            analysis.run(request(tmp_path, what))
        assert analysis.run(request(tmp_path, "good")).objects  # in a fresh one

    @pytest.mark.parametrize(
        ("what", "kind", "fresh"),
        [
            (CUDA, AnalysisLost, True),
            (MEMORY, Transient, True),
            (DEVICE_MEMORY, Transient, False),
            (BUG, Permanent, True),
        ],
    )
    def test_errors_of_the_models_arrive_as_those_of_the_node(
        self, analysis: IsolatedAnalysis, tmp_path: Path, what: str, kind: type[PulmoError], fresh: bool
    ) -> None:
        analysis.info("ct-nodules")
        pid = analysis.pid
        with pytest.raises(kind) as caught:
            analysis.run(request(tmp_path, what))
        assert type(caught.value) is kind
        assert QUOTED not in str(caught.value)
        analysis.info("ct-nodules")
        assert (analysis.pid != pid) is fresh

    def test_a_rejection_arrives_whole(self, analysis: IsolatedAnalysis, tmp_path: Path) -> None:
        with pytest.raises(Rejected) as caught:
            analysis.run(request(tmp_path, REJECTED_DESCRIPTION))
        assert (caught.value.code, caught.value.sentence) == ("NO_LUNGS", "there are no lungs")
        broken = request(tmp_path, "good")
        broken.paths[3].write_bytes(b"no DICOM")
        with pytest.raises(Rejected) as caught:
            analysis.run(broken)
        assert caught.value.code == "UNREADABLE"
        assert caught.value.file == broken.paths[3].name

    def test_it_tells_how_far_it_is(
        self, analysis: IsolatedAnalysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told: list[tuple[str, float]] = []
        monkeypatch.setenv("PULMO_TEST_GO_ON", str(tmp_path / "go on"))

        def progress(step: str, share: float) -> None:
            told.append((step, share))
            if step == "stage1":
                (tmp_path / "go on").touch()

        analysis.run(request(tmp_path, SLOW), progress)
        assert ("stage1", 0.25) in told

    def test_warming_up_and_reading_ahead_are_done_in_the_process(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        journal = tmp_path / "attempts"
        monkeypatch.setenv("PULMO_TEST_ATTEMPTS", str(journal))
        monkeypatch.setenv("PULMO_TEST_WARMED", str(tmp_path / "warmed"))
        monkeypatch.setenv("PULMO_TEST_GO_ON", str(tmp_path / "go on"))
        made = IsolatedAnalysis(replace(settings(tmp_path), read_ahead_bytes=1 << 20))
        made.warm_up(["ct-nodules"])
        assert (tmp_path / "warmed").read_text() == str(made.pid)
        wanted = request(tmp_path, "good")
        assert made.read_ahead(wanted.paths[:5]) is ReadingAhead.DONE
        assert len(made.run(wanted).objects) > 1
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(made.run, request(tmp_path, SLOW))
            wait_until(lambda: SLOW in journal.read_text())
            assert made.read_ahead(wanted.paths) is ReadingAhead.BUSY
            (tmp_path / "go on").touch()
            slow.result(timeout=WAIT_SECONDS)
        made.close()

    def test_one_that_takes_too_long_is_ended(self, tmp_path: Path) -> None:
        slow = IsolatedAnalysis(settings(tmp_path))
        slow.info("ct-nodules")  # the start of the process is no part of the series, and may take longer
        slow._settings = replace(settings(tmp_path), limit_seconds=3.0)
        with pytest.raises(AnalysisLost, match="longer than 3 s"):
            slow.run(request(tmp_path, HANGS))
        slow.close()

    def test_one_that_is_silent_is_ended(self, tmp_path: Path) -> None:
        silent = IsolatedAnalysis(settings(tmp_path))
        silent.info("ct-nodules")  # it loads for as long as it needs
        silent._settings = replace(settings(tmp_path), silence_seconds=3.0)
        with pytest.raises(AnalysisLost, match="no sign of life for 3 s"):
            silent.run(request(tmp_path, STOPPED))
        silent.close()

    def test_stop_breaks_off_what_is_running(
        self, analysis: IsolatedAnalysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        journal = tmp_path / "attempts"
        monkeypatch.setenv("PULMO_TEST_ATTEMPTS", str(journal))
        with ThreadPoolExecutor(1) as pool:
            running_one = pool.submit(analysis.run, request(tmp_path, HANGS))
            wait_until(journal.exists)
            analysis.stop()
            with pytest.raises(Stopped):
                running_one.result(timeout=WAIT_SECONDS)
        with pytest.raises(Stopped):
            analysis.info("ct-nodules")

    def test_it_offers_itself_to_the_oom_killer(self, analysis: IsolatedAnalysis) -> None:
        analysis.info("ct-nodules")
        score = int(Path(f"/proc/{analysis.pid}/oom_score_adj").read_text())
        assert score > int(Path("/proc/self/oom_score_adj").read_text())

    @pytest.mark.parametrize("working", [False, True])
    def test_it_ends_itself_when_the_node_is_killed(self, tmp_path: Path, working: bool) -> None:
        code = (
            "import sys\nfrom pathlib import Path\n"
            "from tests.integration.test_isolation import IsolatedAnalysis, request, settings\n"
            "if __name__ == '__main__':\n"
            "    from dataclasses import replace\n    from pulmo_models import registry\n"
            "    registry.register(replace(registry.entry('ct-nodules'), factory='tests.misbehaving:build'))\n"
            "    folder = Path(sys.argv[1])\n    analysis = IsolatedAnalysis(settings(folder))\n"
            "    analysis.info('ct-nodules')\n    print(analysis.pid, flush=True)\n"
            f"    {'analysis.run(request(folder, sys.argv[2]))' if working else 'input()'}\n"
        )
        script = tmp_path / "node.py"
        script.write_text(code)
        journal = tmp_path / "attempts"
        node = subprocess.Popen(
            [sys.executable, str(script), str(tmp_path), HANGS],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PULMO_TEST_ATTEMPTS": str(journal)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with node:
            assert node.stdout is not None
            pid = int(node.stdout.readline())
            if working:
                wait_until(journal.exists)
            node.send_signal(signal.SIGKILL)
        wait_until(lambda: not alive(pid))


class TestNode:
    def test_a_poison_series_is_quarantined_and_blocks_no_other(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        journal = tmp_path / "attempts"
        monkeypatch.setenv("PULMO_TEST_ATTEMPTS", str(journal))
        poison, poisoned = series_files(tmp_path / "poison", SeriesDescription=SEGFAULT)
        good, files = series_files(tmp_path / "good")
        quick = {"isolated": True, "first_delay_seconds": 0.1, "max_attempts": 2}
        with SmallPacs(tmp_path / "pacs") as pacs, running(tmp_path, pacs, analysis=quick) as node:
            send(node, poisoned)
            send(node, files)
            wait_for(node, good, in_state("DONE"))
            detail = wait_for(node, poison, in_state("QUARANTINED"))
            send(node, series_files(tmp_path / "next")[1])  # the receiver goes on
        (job,) = detail.jobs
        assert "SIGSEGV" in (job.reason or "")
        assert "attempt 2 of 2" in (job.reason or "")
        attempts = Counter(line.split(maxsplit=1)[1] for line in journal.read_text().splitlines())
        assert attempts[SEGFAULT] == 2

    def test_a_node_warms_up_and_tells_how_far_a_series_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        warmed = tmp_path / "warmed"
        monkeypatch.setenv("PULMO_TEST_WARMED", str(warmed))
        monkeypatch.setenv("PULMO_TEST_GO_ON", str(tmp_path / "go on"))
        study, files = series_files(tmp_path / "ct", SeriesDescription=SLOW)
        with SmallPacs(tmp_path / "pacs") as pacs, running(tmp_path, pacs, analysis={"isolated": True}) as node:
            wait_until(warmed.exists)  # without any series
            send(node, files)
            wait_for(node, study, lambda detail: detail.summary.progress == "stage1 25%")
            (tmp_path / "go on").touch()
            done = wait_for(node, study, in_state("DONE"))
        assert done.summary.progress == ""

    def test_a_node_that_stops_gives_the_running_job_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        journal = tmp_path / "attempts"
        monkeypatch.setenv("PULMO_TEST_ATTEMPTS", str(journal))
        study, files = series_files(tmp_path / "ct", SeriesDescription=HANGS)
        with SmallPacs(tmp_path / "pacs") as pacs:
            with running(tmp_path, pacs, analysis={"isolated": True}, node={"drain_seconds": 0.5}) as node:
                send(node, files)
                wait_until(journal.exists)
            with running(tmp_path, analysis={"isolated": True}, node={"drain_seconds": 0.5}) as node:
                detail = node.store.study(study)
                assert detail is not None
                assert ("released", "QUEUED") in [(event.event, event.state) for event in detail.events]
                wait_until(lambda: len(journal.read_text().splitlines()) == 2)  # at once: no lease to wait for
                assert [job.attempts for job in wait_for(node, study, in_state("QUEUED")).jobs] == [0]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until(condition: object, seconds: float = WAIT_SECONDS) -> None:
    assert callable(condition)
    for _ in range(int(seconds / 0.05)):
        if condition():
            return
        threading.Event().wait(0.05)
    raise AssertionError(f"not so within {seconds} s")
