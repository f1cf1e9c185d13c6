"""`pulmo-train evaluate` and `pulmo-train compare`. Heavy imports happen inside the commands."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pulmo_models.training.commands.common import DeviceName, plain_errors

if TYPE_CHECKING:
    from pulmo_models.training.evaluation.report import Part


class SplitName(StrEnum):
    """Splits that an evaluation may be of."""

    test = "test"
    validation = "validation"


class RuleName(StrEnum):
    """What a hit is."""

    luna16 = "luna16"
    published = "published"


class PrecisionName(StrEnum):
    """Arithmetic of stage 1."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


StoreOption = Annotated[list[Path] | None, typer.Option("--store", help="Patch store; may be given several times.")]
DataOption = Annotated[Path | None, typer.Option(help="Folder with lidc_patches/ and the CT series.")]
LunaOption = Annotated[
    Path | None, typer.Option(help="Folder of LUNA16: .mhd and its tables; the split's scans are measured.")
]
PartsOption = Annotated[str, typer.Option(help="What to measure, by commas: stage1, stage2, series, phantoms.")]
ScansOption = Annotated[int, typer.Option(help="Variants of each unseen series with inserted nodules.", min=0)]
SplitOption = Annotated[SplitName, typer.Option(help="Patients to measure on.")]
RuleOption = Annotated[RuleName, typer.Option(help="What a hit is: inside the radius, or within max(5 mm, radius).")]
PrecisionOption = Annotated[PrecisionName, typer.Option(help="Arithmetic of stage 1.")]
DeviceOption = Annotated[DeviceName, typer.Option(help="Where the networks run.")]
SeedOption = Annotated[int, typer.Option(help="Of the inserted nodules and of the bootstrap.")]
ResamplesOption = Annotated[int, typer.Option(help="Bootstrap samples.", min=1)]


def register(app: typer.Typer) -> None:
    """Add the commands to `pulmo-train`."""
    app.command()(evaluate)
    app.command()(compare)


def evaluate(  # noqa: PLR0913
    *,
    weights: Annotated[
        str, typer.Argument(help="Name of a set, path of a manifest (.toml) or of a checkpoint (.ckpt).")
    ],
    store: StoreOption = None,
    data: DataOption = None,
    luna16: LunaOption = None,
    out: Annotated[Path, typer.Option(help="Folder for report.html, report.json and the plots.")] = Path("evaluation"),
    parts: PartsOption = "stage1,stage2,series,phantoms",
    scans: ScansOption = 3,
    split: SplitOption = SplitName.test,
    rule: RuleOption = RuleName.luna16,
    peak_threshold: Annotated[
        float | None, typer.Option(help="Stage 1; default that of the set.", min=0, max=1)
    ] = None,
    detection_threshold: Annotated[
        float | None, typer.Option(help="Stage 2; default that of the set.", min=0, max=1)
    ] = None,
    threshold_at: Annotated[float, typer.Option(help="Candidates on nothing per scan of the operating point.")] = 8.0,
    findings_at: Annotated[float, typer.Option(help="False findings per scan of the operating point.")] = 2.0,
    series: Annotated[str | None, typer.Option(help="Only these real series, by commas.")] = None,
    precision: PrecisionOption = PrecisionName.auto,
    device: DeviceOption = DeviceName.auto,
    seed: SeedOption = 99,
    resamples: ResamplesOption = 1000,
) -> None:
    """Measure a set of weights and write a report: FROC, AUC, Dice, concepts, calibration, real series, phantoms.

    The detection thresholds at chosen false positives per scan are in report.json, stage1/inserted/operating_point.
    """
    from pulmo_models.ct.settings import NoduleSettings  # noqa: PLC0415
    from pulmo_models.training.evaluation.report import Plan, write  # noqa: PLC0415
    from pulmo_models.training.evaluation.report import evaluate as measure  # noqa: PLC0415
    from pulmo_models.training.evaluation.stage1 import Rates  # noqa: PLC0415
    from pulmo_models.training.evaluation.truth import REAL_SERIES  # noqa: PLC0415
    from pulmo_models.training.fitting.networks import load_networks  # noqa: PLC0415

    plan = Plan(
        parts=_parts(parts),
        stores=tuple(store or ()),
        data=data,
        luna16=luna16,
        split=split.value,
        scans=scans,
        rule=rule.value,
        rates=Rates(stage1=threshold_at, both=findings_at),
        settings=NoduleSettings(peak_threshold=peak_threshold, detection_threshold=detection_threshold),
        series=tuple(REAL_SERIES) if series is None else tuple(series.split(",")),
        precision=precision.value,
        device=device.value,
        seed=seed,
        resamples=resamples,
    )
    with plain_errors():
        done = measure(load_networks(weights), plan)
        for part, reason in done.report["skipped"].items():
            typer.echo(f"not measured: {part}: {reason}", err=True)
        if not any(part in done.report for part in plan.parts):
            raise typer.Exit(1)
        typer.echo(write(done, out))


def compare(  # noqa: PLR0913
    *,
    weights: Annotated[list[str], typer.Argument(help="Two or more sets, as for `evaluate`.")],
    store: StoreOption = None,
    data: DataOption = None,
    luna16: LunaOption = None,
    out: Annotated[Path, typer.Option(help="Folder for comparison.md, comparison.json and each report.")] = Path(
        "comparison"
    ),
    parts: PartsOption = "stage1,stage2",
    scans: ScansOption = 3,
    split: SplitOption = SplitName.test,
    rule: RuleOption = RuleName.luna16,
    precision: PrecisionOption = PrecisionName.auto,
    device: DeviceOption = DeviceName.auto,
    seed: SeedOption = 99,
    resamples: ResamplesOption = 1000,
) -> None:
    """Measure several sets on the same data and write one table: CPM, AUCs, Dice, concept R², signs."""
    from pulmo_models.training.evaluation.compare import compare_sets  # noqa: PLC0415
    from pulmo_models.training.evaluation.report import Plan  # noqa: PLC0415

    plan = Plan(
        parts=_parts(parts),
        stores=tuple(store or ()),
        data=data,
        luna16=luna16,
        split=split.value,
        scans=scans,
        rule=rule.value,
        precision=precision.value,
        device=device.value,
        seed=seed,
        resamples=resamples,
    )
    with plain_errors():
        typer.echo(compare_sets(weights, plan, out))


def _parts(text: str) -> tuple[Part, ...]:
    from pulmo_models.training.evaluation.report import PARTS  # noqa: PLC0415

    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in PARTS]:
        raise typer.BadParameter(f"unknown part {unknown[0]!r}; parts are {', '.join(PARTS)}", param_hint="--parts")
    return tuple(part for part in PARTS if part in names)
