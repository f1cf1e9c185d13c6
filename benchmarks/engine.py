"""Stage 1 beside the published protocol in plain torch and beside MONAI, and how near it is to what the machine can do.

    python -m benchmarks.engine [--data FOLDER] [--out bench-out] [--repeats 3] [--quick] [--device auto]

Sides take turns on one real CT, CPTAC C3N-00247 of the test data. MONAI is installed where it is missing. Another table
runs several plans of windows over every real series of the test data and lists each finding that one of them loses or
gains against the published windows.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import report
from benchmarks.report import Options, Row, Table, Unavailable, compared, in_turn, row, seconds_of
from pulmo_models.ct.candidates import windows_of
from pulmo_models.ct.engine import Engine, choose_engine, set_threads
from pulmo_models.ct.heat import HostWindows, normalise
from pulmo_models.ct.looks import look
from pulmo_models.ct.openvino_engine import installed
from pulmo_models.ct.settings import NoduleSettings
from pulmo_models.ct.views import VIEWS
from pulmo_models.device import Runner, has_native_bf16, resolve_device
from pulmo_models.nets.heatmap_unet3d import HeatmapUNet3D
from pulmo_models.nets.student2p5d import Detection2p5D
from pulmo_models.pipeline import Rejection
from tests.models.engine_plans import (
    DOUBT,
    PUBLISHED,
    REAL_SERIES,
    Chest,
    Outcome,
    Stages,
    matched,
    over_lungs,
    told,
)

OVERLAP = NoduleSettings().overlap
PLAIN, OURS, MONAI = "published protocol, torch fp32", "ours", "MONAI SlidingWindowInferer"
_ROOT = Path(__file__).resolve().parents[1]
_SAMPLE = 4  # windows of the published protocol that are timed a turn; one batch of it
_MATRIX = 4096
_PLANS = ((0.5, 0.0), (0.25, 0.0), (0.25, DOUBT), (0.0, 0.0), (OVERLAP, 0.0), (OVERLAP, DOUBT))


def run(options: Options) -> list[Table]:
    """Both tables, and the one of the machine's limits."""
    if options.data is None:
        raise Unavailable("the test data with a real CT are missing (--data)")
    chest = Chest.read(options.data / REAL_SERIES[0])
    if options.quick:
        box = (slice(20, 84), slice(100, 228), slice(40, 232))
        chest = replace(chest, hu=chest.hu[box].copy(), search=chest.search[box].copy())
    bench = _Bench(chest, options)
    return [bench.compare(), bench.plans(options), bench.roofline()]


class _Bench:
    """One CT, both networks, and the engines that are compared."""

    def __init__(self, chest: Chest, options: Options) -> None:
        self.chest = chest
        self.repeats = 1 if options.quick else options.repeats
        self.quick = options.quick
        self.device = resolve_device(options.device)
        self.threads = set_threads()
        self.stages = Stages()
        self.second = self.engine("auto", "fp32", self.stages.characteriser)
        sifts = self.device.type == "cpu" and has_native_bf16(self.device)
        self.sieve = self.engine("auto", "bf16", Detection2p5D(self.stages.characteriser)) if sifts else None
        self.ours_seconds: list[float] = []
        self.outcome: Outcome | None = None
        self.seconds_per_window = 0.0  # of the published protocol in plain torch

    def engine(self, name: str, precision: str, network: torch.nn.Module | None = None) -> Engine:
        """One of ours, ready: what it compiles on its first run is done."""
        network = network or self.stages.detector
        made = choose_engine(network, self.device, name, precision).make(  # type: ignore[arg-type]
            network, self.device, self.threads
        )
        if isinstance(network, HeatmapUNet3D):
            made.run(torch.zeros(1, 1, *PUBLISHED.window))
        return made

    def compare(self) -> Table:
        """Stage 1 of the whole CT, the sides in turn."""
        everywhere = windows_of(self.chest.hu, PUBLISHED)
        plain = Runner(self.stages.detector, self.device, "fp32")
        source = HostWindows(self.chest.hu, PUBLISHED.window)
        places = [everywhere[i] for i in np.linspace(0, len(everywhere) - 1, _SAMPLE).astype(int)]

        def published() -> float:
            return seconds_of(lambda: computed(plain, source.cut(places))) * len(everywhere) / _SAMPLE

        names = [("auto", "auto"), ("auto", "fp32"), ("torch", "bf16"), ("torch", "fp32")]
        if self.quick or not installed() or self.device.type != "cpu":
            names = [("auto", "auto"), ("torch", "bf16")]
        engines = {f"{OURS}, {e.name} {e.precision}": e for e in (self.engine(*each) for each in names)}
        first = next(iter(engines))
        outcomes: dict[str, Outcome] = {}

        def ours(name: str) -> float:
            outcomes[name] = self.stages.run(
                self.chest, (engines[name], self.second), over_lungs(OVERLAP), DOUBT, self.sieve
            )
            return outcomes[name].stage1_seconds

        sides: dict[str, Callable[[], float]] = {PLAIN: published} | {name: partial(ours, name) for name in engines}
        theirs = _monai_sides(self.stages.detector, self.chest, self.device, (4,) if self.quick else (1, 4))
        chosen = _best(theirs) if theirs else {}
        samples = in_turn(sides | chosen, self.repeats)
        self.ours_seconds, self.outcome = samples[first], outcomes[first]
        self.seconds_per_window = min(samples[PLAIN]) / len(everywhere)
        base = row(PLAIN, samples[PLAIN], "s", f"{len(everywhere)} windows, from batches of {_SAMPLE} in each turn")
        rows = [base]
        if not self.quick:
            batches = [everywhere[i : i + 4] for i in _steps(everywhere)]
            whole = [seconds_of(lambda: [computed(plain, source.cut(batch)) for batch in batches])]
            rows.append(row(f"{PLAIN}, all windows once", whole, "s"))
        for name in engines:
            done = outcomes[name]
            rows.append(
                compared(row(name, samples[name], "s", f"{done.windows:.1f} + {done.anew} windows' worth"), base)
            )
        for name in chosen:
            rows.append(compared(row(name, samples[name], "s"), base))
            rows.append(compared(row(f"{first}, again", samples[first], "s"), rows[-1]))
        looks = self._stage2()
        rows += looks
        return Table(
            name="engine",
            title="Stage 1 and stage 2 beside plain torch and MONAI",
            protocol=(
                f"{self.chest.name}, {' x '.join(map(str, self.chest.hu.shape))} voxels, {self.threads} threads, "
                f"device {self.device.type}. Ours is the time from the volume to the candidates: windows over the "
                "lungs, peaks, candidates in doubt computed anew with stage 2's word on them. MONAI gets the whole "
                f"field, the same network and overlap {OVERLAP:g}, and the best of its arithmetics, batches and "
                "blendings by a first run; its time is that of the heat map alone."
            ),
            rows=tuple(rows),
            notes=tuple(f"{name}: {len(done.found)} findings" for name, done in outcomes.items()),
            facts={"monai": {name: seconds for name, (_, seconds) in theirs.items()}},
        )

    def _stage2(self) -> list[Row]:
        centres = [(32, 50 + 2 * i, 50 + 3 * i) for i in range(8 if self.quick else 32)]
        runners = {
            "stage 2, torch fp32": Runner(self.stages.characteriser, self.device, "fp32"),
            f"stage 2, {self.second.name} fp32": self.second,
        }
        sides = {
            name: partial(seconds_of, partial(_look, self.chest.hu, centres, runner))
            for name, runner in runners.items()
        }
        samples = in_turn(sides, self.repeats)
        first, *others = (row(name, samples[name], "s", f"{len(centres)} candidates, 8 views") for name in sides)
        return [first, *(compared(other, first) for other in others)]

    def plans(self, options: Options) -> Table:
        """What several plans cost and what they find, against the published windows over the lungs."""
        folders = [options.data / series for series in REAL_SERIES] if options.data else []
        engine = self.engine("auto", "auto")
        plans = {"published windows": (PUBLISHED, 0.0)} | {
            f"lungs, overlap {overlap:g}, doubt {doubt:g}": (over_lungs(overlap), doubt)
            for overlap, doubt in (_PLANS[-1:] if self.quick else _PLANS)
        }
        seconds: dict[str, float] = dict.fromkeys(plans, 0.0)
        plain_windows = 0
        counts: dict[str, list[float]] = {name: [0, 0, 0, 0] for name in plans}  # windows, findings, lost, new
        notes: list[str] = []
        for folder in folders[3:4] if self.quick else folders:
            try:
                chest = Chest.read(folder)
            except (Rejection, FileNotFoundError) as exc:
                notes.append(f"{folder.parent.name}: {exc}")
                continue
            expected: Outcome | None = None
            plain_windows += len(windows_of(chest.hu, PUBLISHED))
            for name, (plan, doubt) in plans.items():
                done = self.stages.run(chest, (engine, self.second), plan, doubt, self.sieve)
                expected = expected or done
                pairs = matched(expected.found, done.found, chest.spacing_mm)
                lost = [f for f in expected.found if f not in [one for one, _ in pairs]]
                new = [f for f in done.found if f not in [other for _, other in pairs]]
                seconds[name] += done.stage1_seconds
                for i, value in enumerate((done.windows + done.anew, len(done.found), len(lost), len(new))):
                    counts[name][i] += value
                notes += [f"{chest.name}, {name}: lost {told(f)}" for f in lost]
                notes += [f"{chest.name}, {name}: new {told(f)}" for f in new]
                if doubt and plan.stride == over_lungs(OVERLAP).stride:
                    moved = max((abs(a.candidate.score - b.candidate.score) for a, b in pairs), default=0.0)
                    notes.append(f"{chest.name}, {name}: largest difference of a score {moved:.3f}")
        note = f"{plain_windows} windows of the whole field, scaled from those of the first table"
        base = row(PLAIN, [plain_windows * self.seconds_per_window], "s", note)
        rest = [compared(row(name, [seconds[name]], "s", _in_words(counts[name])), base) for name in plans]
        return Table(
            name="engine-plans",
            title="Plans of windows: what they cost and what they find",
            protocol=(
                "Both stages over every chest CT of the test data by the engine of `auto`; sums over the series of "
                "stage 1's seconds, windows and findings. Lost and new are findings against the published windows that "
                "touch the lungs, at the operating point of the shipped weights."
            ),
            rows=(base, *rest),
            notes=tuple(notes),
        )

    def roofline(self) -> Table:
        """FLOP of the study, what was achieved, and what large matrix products reach."""
        if self.outcome is None:
            raise Unavailable("the roofline needs the comparison before it")
        small = torch.zeros(1, 1, 32, 32, 32, device=self.device)
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            self.stages.detector.to(self.device)(small)
        each = counter.get_total_flops() * math.prod(PUBLISHED.window) // small.numel()
        done = self.outcome
        total = each * (done.windows + done.anew)
        sides = _matrix_sides(self.device)
        samples = in_turn(sides, self.repeats)
        achieved = row("stage 1 as a whole", [total / s / 1e12 for s in self.ours_seconds], "TFLOP/s")
        engines = [self.engine("auto", precision) for precision in ("fp32", "auto")]
        batch = torch.from_numpy(normalise(self.chest.hu[:64, 64:192, 64:192])[None, None].copy())
        windows = in_turn(
            {f"one window, {e.name} {e.precision}": partial(_rate, partial(computed, e, batch), each) for e in engines},
            self.repeats,
        )
        peaks = [row(name, values, "TFLOP/s") for name, values in samples.items()]
        best = max(peaks, key=lambda peak: peak.median)
        return Table(
            name="engine-roofline",
            title="How near stage 1 is to what the machine can do",
            protocol=(
                f"One window of 64 x 128 x 128 is {each / 1e9:.0f} GFLOP (convolutions alone, by torch's counter); the "
                f"study of the first table {total / 1e12:.1f} TFLOP, {done.windows:.1f} + {done.anew} windows' worth. "
                f"Peaks are products of square matrices of {_MATRIX}; ratios are shares of the highest of them."
            ),
            rows=(
                *peaks,
                *(
                    compared(row(name, values, "TFLOP/s"), best, higher_is_better=True)
                    for name, values in windows.items()
                ),
                compared(achieved, best, higher_is_better=True),
            ),
            facts={"flop_per_window": each, "flop_of_study": total},
        )


def _steps(windows: Sequence[object]) -> range:
    return range(0, len(windows), 4)


def _in_words(counts: Sequence[float]) -> str:
    windows, findings, lost, new = counts
    return f"{windows:.0f} windows' worth, {findings:.0f} findings, {lost:.0f} lost, {new:.0f} new"


def _look(hu: Any, centres: Sequence[tuple[int, int, int]], runner: Engine) -> None:
    look(hu, centres, runner, VIEWS)


def computed(engine: Engine, batch: torch.Tensor) -> float:
    """One of the logits, which is there when all are: on a GPU they are only under way when `run` returns."""
    return float(engine.run(batch).flatten()[-1].item())


def _rate(work: Callable[[], object], flop: int) -> float:
    return flop / seconds_of(work) / 1e12


def _monai_sides(
    network: HeatmapUNet3D, chest: Chest, device: torch.device, batches: Sequence[int]
) -> dict[str, tuple[Callable[[], float], float]]:
    """Each setting of MONAI's inferer with a run, and the seconds of a first one over a part of the volume."""
    if importlib.util.find_spec("monai") is None:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "monai", "-c", str(_ROOT / "constraints.txt")]
        if subprocess.run(command, check=False).returncode:
            return {}
    inferer = importlib.import_module("monai.inferers").SlidingWindowInferer
    volume = torch.from_numpy(normalise(chest.hu)[None, None].copy()).to(device)
    part = volume[:, :, :64, 64:192]
    sides: dict[str, tuple[Callable[[], float], float]] = {}
    network = network.to(device)
    for precision in ("fp32", "bf16"):
        for batch in batches:
            slide = inferer(roi_size=PUBLISHED.window, sw_batch_size=batch, overlap=OVERLAP, mode="constant")

            def infer(given: torch.Tensor, slide: Any = slide, half: bool = precision == "bf16") -> None:
                with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
                    slide(given, network).sigmoid_().cpu()

            infer(part)
            name = f"{MONAI}, {precision}, batch {batch}"
            sides[name] = partial(seconds_of, partial(infer, volume)), seconds_of(partial(infer, part))
    return sides


def _best(sides: Mapping[str, tuple[Callable[[], float], float]]) -> dict[str, Callable[[], float]]:
    name = min(sides, key=lambda each: sides[each][1])
    return {name: sides[name][0]}


def _matrix_sides(device: torch.device) -> dict[str, Callable[[], float]]:
    """Products of large square matrices in TFLOP/s, by torch and by OpenVINO."""
    sides: dict[str, Callable[[], float]] = {}
    flop = 2 * _MATRIX**3
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a = torch.rand(_MATRIX, _MATRIX, device=device).to(dtype)

        def product(a: torch.Tensor = a) -> None:
            (a @ a)[0, 0].item()  # waits for the device

        product()
        sides[f"matrix product, torch {name}"] = partial(_rate, product, flop)
    if device.type == "cpu" and installed():
        sides |= {f"matrix product, OpenVINO {name}": _openvino_product(hint) for name, hint in _HINTS.items()}
    return sides


_HINTS = {"fp32": "f32", "bf16": "bf16"}


def _openvino_product(hint: str) -> Callable[[], float]:
    openvino: Any = importlib.import_module("openvino")  # loaded by the engine before, without its telemetry
    op = openvino.opset13
    matrix = np.random.default_rng(1).random((_MATRIX, _MATRIX), dtype=np.float32)
    given = op.parameter([_MATRIX, _MATRIX], np.float32)
    model = openvino.Model([op.matmul(given, op.constant(matrix), False, False)], [given], "product")
    request = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint}).create_infer_request()
    work = partial(request.infer, [matrix], share_inputs=True)
    work()
    return partial(_rate, work, 2 * _MATRIX**3)


if __name__ == "__main__":
    begin = time.perf_counter()
    report.main(run, __doc__)
    print(f"{time.perf_counter() - begin:.0f} s in all", flush=True)
