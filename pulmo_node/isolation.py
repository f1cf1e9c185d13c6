"""Analysis in a process of its own, so that a segmentation fault, a CUDA error or the OOM killer ends one attempt only.

The process is spawned (never forked: threads and CUDA do not survive that) when it is first asked and stays, with its
networks loaded, for the next. It sends a beat while it lives and ends itself when the node is gone. The node takes it
for lost when it ends, when it is silent for `silence_seconds`, or when one series takes longer than `limit_seconds`;
the series may then be tried again in a fresh process.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, cast

from pulmo_models import registry
from pulmo_models.pipeline import ProgressCallback, no_progress
from pulmo_models.types import PipelineInfo
from pulmo_node import logs
from pulmo_node.analyse import Analyser
from pulmo_node.attempt import Analysis, LocalAnalysis, ReadingAhead, SeriesRequest, SeriesResult
from pulmo_node.errors import AnalysisLost, DiskFull, Permanent, PulmoError, Rejected, Stopped, Transient
from pulmo_node.outbox import FileOutbox

log = logging.getLogger(__name__)

_BEAT_SECONDS = 1.0
_END_SECONDS = 5.0
_OOM_SCORE = 500  # of -1000..1000, added to what the kernel computes: the analysis goes before the receiver
_DEVICE_ERROR = re.compile(r"\b(CUDA|cuDNN|CUBLAS)\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class ProcessSettings:
    """What the analysis process is told when it starts."""

    pipelines: Mapping[str, Mapping[str, Any]]
    device: str
    weights_folder: Path
    storage: Path
    log_level: str = "INFO"
    silence_seconds: float = 120.0
    limit_seconds: float = 3600.0
    read_ahead_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class _Beat:
    """The process lives, and is that far."""

    step: str | None = None
    share: float = 0.0


@dataclass(frozen=True, kw_only=True)
class _Answer:
    value: Any


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """An error of the node, taken apart: an exception with arguments of its own does not survive pickling."""

    kind: type[PulmoError]
    message: str
    rejection: tuple[str, str, str | None, str | None] | None = None  # code, sentence, file, tag
    spent: bool = False  # the process may be in no state to go on

    def error(self) -> PulmoError:
        if self.rejection is not None:
            code, sentence, file, tag = self.rejection
            return Rejected(code, sentence, file=file, tag=tag)
        return self.kind(self.message)


class IsolatedAnalysis:
    """The node's side (protocol `Analysis`). Calls are answered one at a time."""

    def __init__(self, settings: ProcessSettings) -> None:
        self._settings = settings
        # For what needs no network: the digest of the settings.
        self._analyser = Analyser(settings.pipelines, settings.device, settings.weights_folder)
        self._calling = threading.Lock()
        self._changing = threading.Lock()  # guards the three below
        self._process: SpawnProcess | None = None
        self._stopped = False
        self._connection: Connection[Any, Any] | None = None

    @property
    def pid(self) -> int | None:
        """Process id while there is a process."""
        return self._process.pid if self._process is not None else None

    def settings_sha256(self, label: str) -> str:
        """Digest of a pipeline's settings."""
        return self._analyser.settings_sha256(label)

    def info(self, label: str) -> PipelineInfo:
        """Identity of a pipeline; loads it in the process. Raises `Permanent`, `AnalysisLost`, `Stopped`."""
        return cast(PipelineInfo, self._call("info", label))

    def warm_up(self, labels: Sequence[str]) -> None:
        """Start the process, load these pipelines and let their networks run once.

        Raises `Permanent`, `Transient`, `AnalysisLost`, `Stopped`.
        """
        self._call("warm_up", tuple(labels))

    def read_ahead(self, paths: Sequence[Path]) -> ReadingAhead:
        """Read files of a series that is still arriving, for a moment, unless the process has other work.

        Raises `AnalysisLost`, `Stopped`.
        """
        if not self._calling.acquire(blocking=False):
            return ReadingAhead.BUSY
        try:
            return cast(ReadingAhead, self._asked("read_ahead", tuple(paths), no_progress))
        finally:
            self._calling.release()

    def run(self, request: SeriesRequest, progress: ProgressCallback = no_progress) -> SeriesResult:
        """Analyse one series; `progress` is called once a second at most.

        Raises `Rejected`, `Transient`, `Permanent`, `AnalysisLost`, `Stopped`.
        """
        return cast(SeriesResult, self._call("run", request, progress))

    def stop(self) -> None:
        """End the process; whoever waits for its answer gets `Stopped`."""
        with self._changing:
            self._stopped = True
            if self._process is not None:
                self._process.kill()

    def close(self) -> None:
        """Let the process end; nothing is running in it any more."""
        self.stop()
        with self._calling:
            self._end()

    def _call(self, method: str, argument: object, progress: ProgressCallback = no_progress) -> object:
        with self._calling:
            return self._asked(method, argument, progress)

    def _asked(self, method: str, argument: object, progress: ProgressCallback) -> object:
        """One call; whoever asks holds `_calling`."""
        connection, process = self._started()
        try:
            connection.send((method, argument))
            answer = self._answer(connection, process, progress)
        except (EOFError, OSError):
            answer = self._lost(process, None)
        if isinstance(answer, _Answer):
            return answer.value
        if answer.spent:
            self._end()
        raise answer.error()

    def _answer(
        self, connection: Connection[Any, Any], process: SpawnProcess, progress: ProgressCallback
    ) -> _Answer | _Problem:
        limit = time.monotonic() + self._settings.limit_seconds
        silence = time.monotonic() + self._settings.silence_seconds
        while (now := time.monotonic()) < min(limit, silence):
            ready = wait([connection, process.sentinel], min(limit, silence) - now)
            if connection in ready:  # also where it ended since: its last words count
                message = connection.recv()
                if not isinstance(message, _Beat):
                    return cast(_Answer | _Problem, message)
                if message.step is not None:
                    progress(message.step, message.share)
                silence = time.monotonic() + self._settings.silence_seconds
            elif ready:
                return self._lost(process, None)
        if now >= limit:
            return self._lost(process, f"took longer than {self._settings.limit_seconds:g} s")
        return self._lost(process, f"gave no sign of life for {self._settings.silence_seconds:g} s")

    def _lost(self, process: SpawnProcess, why: str | None) -> _Problem:
        """The process is gone, or is sent away because of `why`."""
        if why is not None:
            process.kill()
        process.join(_END_SECONDS)
        if self._stopped:
            return _Problem(kind=Stopped, message="the node stops", spent=True)
        message = f"the analysis process {why or _how_it_ended(process.exitcode)}"
        log.error("%s", message)
        return _Problem(kind=AnalysisLost, message=message, spent=True)

    def _started(self) -> tuple[Connection[Any, Any], SpawnProcess]:
        with self._changing:
            if self._stopped:
                raise Stopped("the node stops")
            if self._process is not None and self._connection is not None and self._process.is_alive():
                return self._connection, self._process
        self._end()
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_serve, args=(theirs, self._settings, registry.entries()), name="pulmo analysis", daemon=True
        )
        with self._changing:
            if self._stopped:
                raise Stopped("the node stops")
            process.start()
            theirs.close()
            self._connection, self._process = ours, process
        log.info("analysis process %s started", process.pid)
        return ours, process

    def _end(self) -> None:
        with self._changing:
            process, connection = self._process, self._connection
            self._process = self._connection = None
        if connection is not None:
            connection.close()  # which it takes for the end of the node
        if process is not None:
            process.join(_END_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()


def _how_it_ended(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = "unknown"
    oom = ", as the system does where memory runs out" if -exit_code == signal.SIGKILL else ""
    return f"was ended by signal {-exit_code} ({name}){oom}"


def _serve(connection: Connection[Any, Any], settings: ProcessSettings, entries: tuple[Any, ...]) -> None:
    """The process: answers calls until the node closes its end."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal sends them to the whole group; the node decides when to end
    faulthandler.enable()
    with suppress(OSError):  # no /proc here
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE), encoding="ascii")
    logs.configure(settings.log_level)
    for entry in entries:  # also those that were registered while the node ran
        registry.register(entry)
    analyser = Analyser(settings.pipelines, settings.device, settings.weights_folder)
    analysis = LocalAnalysis(analyser, FileOutbox(settings.storage), settings.read_ahead_bytes)
    sending = threading.Lock()
    pulse = _Pulse()
    threading.Thread(target=_beat, args=(connection, sending, pulse), name="beat", daemon=True).start()
    while True:
        try:
            method, argument = connection.recv()
        except (EOFError, OSError):
            return  # the node is gone
        pulse.begin()
        answer = _answer_to(analysis, method, argument, pulse.progress)
        pulse.end()
        with sending:
            connection.send(answer)


class _Pulse:
    """Whether the process works, and how far it is."""

    def __init__(self) -> None:
        self.working = threading.Event()
        self.beat = _Beat()

    def begin(self) -> None:
        self.beat = _Beat()
        self.working.set()

    def end(self) -> None:
        self.working.clear()

    def progress(self, step: str, share: float) -> None:
        self.beat = _Beat(step=step, share=share)


def _beat(connection: Connection[Any, Any], sending: threading.Lock, pulse: _Pulse) -> None:
    while pulse.working.wait():
        time.sleep(_BEAT_SECONDS)
        try:
            with sending:
                connection.send(pulse.beat)
        except OSError:
            os._exit(0)  # the node is gone: whoever takes over its lease does this work again


def _warm_up(analysis: Analysis, labels: Sequence[str]) -> None:
    """What was loaded stays for good: the collector need not look through it during every analysis."""
    analysis.warm_up(labels)
    gc.collect()
    gc.freeze()


def _answer_to(analysis: Analysis, method: str, argument: Any, progress: ProgressCallback) -> _Answer | _Problem:
    methods: dict[str, Callable[[], object]] = {
        "info": lambda: analysis.info(argument),
        "warm_up": lambda: _warm_up(analysis, argument),
        "read_ahead": lambda: analysis.read_ahead(argument),
        "run": lambda: analysis.run(argument, progress),
    }
    try:
        return _Answer(value=methods[method]())
    except Rejected as exc:
        return _Problem(kind=Rejected, message="", rejection=(exc.code, exc.sentence, exc.file, exc.tag))
    except PulmoError as exc:
        kind = next(each for each in (DiskFull, Transient, PulmoError) if isinstance(exc, each))
        return _Problem(kind=Permanent if kind is PulmoError else kind, message=str(exc))
    except MemoryError:
        return _Problem(kind=Transient, message="memory was not enough for the analysis", spent=True)
    except Exception as exc:  # noqa: BLE001
        # The boundary of one series: a decoder or a network may throw anything. The process is not used again.
        log.error("unexpected error of the analysis: %s", logs.places(exc))
        if isinstance(exc, RuntimeError) and _DEVICE_ERROR.search(str(exc)):
            # After such an error a CUDA context answers every call with it; only a new process gets a new one.
            return _Problem(kind=AnalysisLost, message="the analysis process met an error of the GPU", spent=True)
        name = type(exc).__name__
        return _Problem(kind=Permanent, message=f"unexpected {name}; the log has the details", spent=True)
