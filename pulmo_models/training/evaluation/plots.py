"""Plots of the report, each as the bytes of a PNG file. Matplotlib without a display."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pulmo_models.training.metrics.concepts import APART
from pulmo_models.training.metrics.froc import RATES, FrocCurve
from pulmo_models.training.metrics.resampling import Floats

INK, ACCENT, GREY, WARM = "#1f2933", "#1f5f8b", "#8a949e", "#b5562b"
WINDOW_HU = (-1350.0, 150.0)  # lung window, width 1500 at -600
DPI = 110

_Axes = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Crop:
    """A picture of one place: HU ``(rows, columns)``, outlines on the same grid, words below."""

    hu: npt.NDArray[Any]
    text: str
    drawn: npt.NDArray[np.bool_] | None = None  # by the network
    truth: npt.NDArray[np.bool_] | None = field(default=None)  # by the readers
    aspect: float = 1.0  # row spacing over column spacing


def _figure(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Figure, _Axes]:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8, colors=INK)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _label(axis: Axes, across: str, up: str, title: str = "") -> None:
    axis.set_xlabel(across, fontsize=9, color=INK)
    axis.set_ylabel(up, fontsize=9, color=INK)
    if title:
        axis.set_title(title, fontsize=9, color=INK, loc="left")


def froc_plot(curves: Mapping[str, tuple[FrocCurve, Floats, Floats, Floats]]) -> bytes:
    """Sensitivity over false positives per scan, log scale; by name the curve, rates, and ends of its band."""
    figure, (axis,) = _figure(6.0, 3.8)
    for (name, (curve, rates, low, high)), colour in zip(curves.items(), (ACCENT, WARM, GREY), strict=False):
        axis.fill_between(rates, low, high, color=colour, alpha=0.18, linewidth=0)
        axis.plot(rates, curve.at(rates), color=colour, linewidth=1.6, label=name)
        axis.plot(RATES, curve.at(RATES), "o", color=colour, markersize=3.5)
    axis.set_xscale("log", base=2)
    axis.set_xticks(RATES, ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
    axis.set_xlim(RATES[0] / 1.1, RATES[-1] * 1.1)
    axis.set_ylim(0, 1.02)
    axis.grid(color="#e3e7eb", linewidth=0.6)
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    _label(axis, "false positives per scan", "sensitivity")
    return _png(figure)


def size_plot(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Sensitivity by size at 1 and at 8 false positives per scan."""
    figure, (axis,) = _figure(6.0, 3.0)
    places = np.arange(len(rows))
    for shift, key, name, colour in (
        (-0.2, "at_1_false_per_scan", "1 false positive per scan", GREY),
        (0.2, "at_8_false_per_scan", "8 false positives per scan", ACCENT),
    ):
        heights = [row[key] if row[key] is not None else 0.0 for row in rows]
        axis.bar(places + shift, heights, 0.38, color=colour, label=name)
    ends = [row["at_8_false_per_scan_ci95"] for row in rows]
    for place, row, end in zip(places, rows, ends, strict=True):
        if end is not None and row["at_8_false_per_scan"] is not None:
            axis.vlines(place + 0.2, end[0], end[1], color=INK, linewidth=1)
    axis.set_xticks(places, [f"{row['size']}\n({row['nodules']})" for row in rows])
    axis.set_ylim(0, 1.02)
    axis.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    _label(axis, "diameter (number of nodules)", "sensitivity")
    return _png(figure)


def roc_plot(curves: Mapping[str, tuple[Floats, Floats]]) -> bytes:
    """ROC curves by name: false positive rate and sensitivity."""
    figure, (axis,) = _figure(4.2, 4.0)
    axis.plot([0, 1], [0, 1], color="#d5dade", linewidth=1)
    for (name, (alarms, hits)), colour in zip(curves.items(), (ACCENT, WARM, GREY, INK), strict=False):
        axis.plot(alarms, hits, color=colour, linewidth=1.6, label=name)
    axis.set_xlim(-0.01, 1.01)
    axis.set_ylim(-0.01, 1.01)
    axis.set_aspect("equal")
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    _label(axis, "1 - specificity", "sensitivity")
    return _png(figure)


def reliability_plot(tables: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Share of positives over the mean probability of each bin; the area of a point is the share of samples in it."""
    figure, axes = _figure(4.0 * len(tables), 3.8, columns=len(tables))
    for axis, (name, table) in zip(axes, tables.items(), strict=True):
        bins = table["bins"]
        x = [row["mean_probability"] for row in bins]
        y = [row["share_of_positives"] for row in bins]
        numbers = np.array([row["number"] for row in bins], dtype=float)
        axis.plot([0, 1], [0, 1], color="#d5dade", linewidth=1)
        axis.plot(x, y, color=ACCENT, linewidth=1)
        axis.scatter(x, y, s=15 + 250 * numbers / numbers.sum(), color=ACCENT, alpha=0.7, linewidths=0)
        axis.set_xlim(-0.03, 1.03)
        axis.set_ylim(-0.03, 1.03)
        axis.set_aspect("equal")
        _label(
            axis,
            "mean probability",
            "share of positives",
            f"{name}: ECE {table['ece']:.3f}, Brier {table['brier']:.3f}",
        )
    return _png(figure)


def concept_plot(names: Sequence[str], found: Floats, rated: Floats) -> bytes:
    """Predicted over mean rating, one panel a concept; `found` and `rated` are ``(n, 8)``."""
    figure, axes = _figure(9.0, 4.6, columns=4, rows=2)
    for axis, name, guess, truth in zip(axes, names, found.T, rated.T, strict=True):
        axis.plot([1, 6], [1, 6], color="#d5dade", linewidth=1)
        axis.scatter(truth, guess, s=5, color=ACCENT, alpha=0.35, linewidths=0)
        top = 6.2 if name == "calcification" else 5.2
        axis.set_xlim(0.8, top)
        axis.set_ylim(0.3, top + 0.3)
        axis.set_title(name, fontsize=9, color=INK, loc="left")
    figure.supxlabel("mean rating of the readers", fontsize=9, color=INK)
    figure.supylabel("predicted", fontsize=9, color=INK)
    return _png(figure)


def sign_plot(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Weight of each concept beside the correlation of its rating with malignancy."""
    figure, axes = _figure(7.0, 2.9, columns=2)
    places = np.arange(len(rows))[::-1]
    for axis, key, title in (
        (axes[0], "weight", "weight W[1] - W[0]"),
        (axes[1], "correlation", "correlation of the rating"),
    ):
        values = [row[key] if row[key] is not None else 0.0 for row in rows]
        colours = [GREY if row["concept"] == APART else ACCENT if row["agrees"] else WARM for row in rows]
        axis.barh(places, values, 0.65, color=colours)
        axis.axvline(0, color=INK, linewidth=0.8)
        axis.set_title(title, fontsize=9, color=INK, loc="left")
    axes[0].set_yticks(places, [row["concept"] for row in rows])
    axes[1].set_yticks([])
    return _png(figure)


def contact_sheet(crops: Sequence[Crop], columns: int = 6) -> bytes:
    """Crops side by side in a lung window: the network's outline in orange, the readers' in blue.

    Raises:
        ValueError: there are none.
    """
    if not crops:
        raise ValueError("a contact sheet needs at least one crop")
    rows = -(-len(crops) // columns)
    figure, axes = _figure(1.55 * columns, 1.95 * rows, columns=columns, rows=rows)
    for axis in axes:
        axis.axis("off")
    for axis, crop in zip(axes, crops, strict=False):
        axis.imshow(crop.hu, cmap="gray", vmin=WINDOW_HU[0], vmax=WINDOW_HU[1], aspect=crop.aspect)
        for mask, colour in ((crop.truth, "#58b4f0"), (crop.drawn, "#ff9d45")):
            if mask is not None and mask.any() and not mask.all():
                axis.contour(mask, levels=[0.5], colors=colour, linewidths=0.9)
        axis.set_title(crop.text, fontsize=6.5, color=INK)
    return _png(figure)
