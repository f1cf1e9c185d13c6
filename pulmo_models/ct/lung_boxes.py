"""Lung localisation, learned: the box around the lungs in each axial slice, and from these the region of a volume.

Input: HU, upright (:mod:`pulmo_models.orientation`). A slice is windowed (centre -600, width 1500) to 0..1, resized and
standardised with the published mean and deviation, the same for every slice. Each network of the ensemble gives four
numbers; a box is the mean of the networks' boxes. Two ways to read the numbers:

- ``corners``: the published one, ``xmin, ymin, xmax, ymax`` in pixels of the input, confined to it;
- ``centre_size``: sigmoid gives centre and size as shares of the image. It has a gradient everywhere and corners that
  are in order; a slice without lungs is a box without size.

In between the looked-at slices boxes are interpolated. The region is the boxes' inside with a margin; inside of it the
density tells lung from the rest, as :mod:`pulmo_models.ct.lungs` does. Errors: :class:`Rejection` ``NO_LUNGS``,
:class:`DeviceOutOfMemory`; when it is built :class:`WeightsMissing`, :class:`WeightsCorrupt`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from pulmo_models.checkpoints import load_network
from pulmo_models.codes import RejectionCode
from pulmo_models.ct.lungs import LungRegion, localise_lungs, region_within
from pulmo_models.ct.settings import NoduleSettings, RetinaNetSettings
from pulmo_models.device import Runner, resolve_device
from pulmo_models.errors import WeightsCorrupt, WeightsMissing
from pulmo_models.nets.lung_boxes import ARCHITECTURES
from pulmo_models.network_sets import load_networks
from pulmo_models.orientation import upright
from pulmo_models.pipeline import Rejection
from pulmo_models.types import BoolArray, PipelineInfo, Volume

LABEL = "ct-lungs"
WINDOW_CENTRE_HU, WINDOW_WIDTH_HU = -600.0, 1500.0
MEAN, DEVIATION = 143.57 / 255, 123.49 / 255
SIZE = 512

STEP_MM = 5.0  # between slices that are looked at
SMALLEST_SHARE = 0.06  # of the image: a box that is narrower or lower holds no lung
MARGIN_MM = 10.0
BATCH = 8

Readout = Literal["corners", "centre_size"]
_FloatVolume = npt.NDArray[np.float32]
_Boxes = npt.NDArray[np.float64]  # (n, 4): xmin, ymin, xmax, ymax as shares of columns and rows


def prepare(hu: _FloatVolume, size: int = SIZE) -> Tensor:
    """Slices ``(n, rows, columns)`` in HU as the networks see them, ``(n, 1, size, size)``."""
    low = WINDOW_CENTRE_HU - WINDOW_WIDTH_HU / 2
    values = np.clip((hu - np.float32(low)) / np.float32(WINDOW_WIDTH_HU), 0.0, 1.0)
    images = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[:, None]
    if images.shape[-2:] != (size, size):
        smaller = size < max(images.shape[-2:])
        images = functional.interpolate(images, size=(size, size), mode="bilinear", antialias=smaller)
    return (images - MEAN) / DEVIATION


def read_boxes(outputs: Tensor, readout: Readout, size: int = SIZE) -> Tensor:
    """The networks' four numbers as boxes ``(n, 4)`` in shares of the image: xmin, ymin, xmax, ymax."""
    if readout == "corners":
        clamped = outputs.clamp(0.0, size) / size
        return torch.cat(
            (torch.minimum(clamped[:, :2], clamped[:, 2:]), torch.maximum(clamped[:, :2], clamped[:, 2:])), 1
        )
    share = torch.sigmoid(outputs)
    half = share[:, 2:] / 2
    return torch.cat((share[:, :2] - half, share[:, :2] + half), dim=1).clamp(0.0, 1.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class LungLocaliser:
    """The ensemble, loaded."""

    networks: tuple[nn.Module, ...]
    readout: Readout
    size: int
    device: torch.device
    sha256: str = ""

    def boxes(self, slices: _FloatVolume) -> _Boxes:
        """The box of each slice, the mean over the networks."""
        found = []
        for network in self.networks:
            runner = Runner(network, self.device, "fp32")
            parts = [
                runner(prepare(slices[start : start + BATCH], self.size))["output"]
                for start in range(0, len(slices), BATCH)
            ]
            found.append(read_boxes(torch.cat(parts), self.readout, self.size))
        mean: _Boxes = torch.stack(found).mean(dim=0).double().numpy()
        return mean

    def __call__(self, volume: Volume) -> LungRegion:
        """The lungs of a volume.

        Raises:
            Rejection: code ``NO_LUNGS``, where no slice has a box, or too little in the boxes is as thin as lung.
            DeviceOutOfMemory: from the networks.
        """
        turn = upright(volume.affine, volume.hu.shape)
        hu, spacing_mm = turn.array(volume.hu), turn.spacing_mm(volume.spacing_mm)
        step = max(1, round(STEP_MM / spacing_mm[0]))
        looked_at = sorted({*range(0, len(hu), step), len(hu) - 1})
        inside = inside_of(self.boxes(np.ascontiguousarray(hu[looked_at])), looked_at, hu.shape, spacing_mm)
        if not inside.any():
            raise Rejection(RejectionCode.NO_LUNGS, "no slice of the volume shows lungs")
        return region_within(volume, turn.array_back(inside))


def inside_of(
    boxes: _Boxes, looked_at: Sequence[int], shape: tuple[int, ...], spacing_mm: tuple[float, float, float]
) -> BoolArray:
    """The region of a volume from the boxes of some of its slices, with a margin.

    The longest run of slices with a box counts, gaps of one looked-at slice closed: a single box elsewhere is a slip.
    """
    has = np.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]) >= SMALLEST_SHARE
    has[1:-1] |= has[:-2] & has[2:]
    inside = np.zeros(shape, dtype=bool)
    edges = np.flatnonzero(np.diff(np.concatenate(([0], has.astype(np.int8), [0]))))
    if not len(edges):
        return inside
    first, end = max(edges.reshape(-1, 2), key=lambda run: run[1] - run[0])
    places = np.asarray(looked_at)[first:end]
    steady = _median_of_three(boxes[first:end])
    margin = [int(np.ceil(MARGIN_MM / step)) for step in spacing_mm]
    low, high = max(0, places[0] - margin[0]), min(shape[0], places[-1] + margin[0] + 1)
    slices = np.arange(low, high)
    edge = np.stack([np.interp(slices, places, steady[:, n]) for n in range(4)], axis=1)
    scale = np.array([shape[2], shape[1], shape[2], shape[1]])
    for z, (x0, y0, x1, y1) in zip(slices, edge * scale, strict=True):
        rows = slice(max(0, int(y0) - margin[1]), int(np.ceil(y1)) + margin[1])
        inside[z, rows, max(0, int(x0) - margin[2]) : int(np.ceil(x1)) + margin[2]] = True
    return inside


def load_localiser(name_or_path: str, device: str = "auto") -> LungLocaliser:
    """The ensemble of a set of weights.

    Raises:
        WeightsMissing, WeightsCorrupt: the weights cannot be used.
    """
    try:
        weights = load_networks(name_or_path, LABEL)
    except WeightsMissing as exc:
        raise WeightsMissing(f"{exc}; the learned lung localisation is trained with `pulmo-train lungs`") from exc
    readout, size = weights.settings.get("readout", "centre_size"), weights.settings.get("size", SIZE)
    if readout not in ("corners", "centre_size") or not isinstance(size, int):
        raise WeightsCorrupt(f"the set {weights.name} has no known readout or size: {readout!r}, {size!r}")
    networks = []
    for key, spec in weights.networks.items():
        if spec.architecture not in ARCHITECTURES:
            raise WeightsCorrupt(f"the set {weights.name}: networks.{key} is a {spec.architecture}, which is not known")
        networks.append(load_network(spec, ARCHITECTURES[spec.architecture]()))
    return LungLocaliser(
        networks=tuple(networks),
        readout=cast(Readout, readout),
        size=size,
        device=resolve_device(device),
        sha256=weights.sha256,
    )


def _median_of_three(boxes: _Boxes) -> _Boxes:
    """Each box against its neighbours: one that stands out alone is a slip."""
    if len(boxes) < 3:
        return boxes
    padded = np.concatenate((boxes[:1], boxes, boxes[-1:]))
    steady: _Boxes = np.median(np.stack((padded[:-2], padded[1:-1], padded[2:])), axis=0)
    return steady


def lungs_by(settings: NoduleSettings | RetinaNetSettings, device: str) -> Callable[[Volume], LungRegion]:
    """What finds the lungs for a pipeline: the classical way, or the learned one with its weights loaded.

    Raises:
        WeightsMissing, WeightsCorrupt: of the learned one.
    """
    return localise_lungs if settings.lungs == "classical" else load_localiser(settings.lung_weights, device)


def told_by(
    info: PipelineInfo, lungs: Callable[[Volume], LungRegion], settings: NoduleSettings | RetinaNetSettings
) -> PipelineInfo:
    """The identity of a pipeline whose lungs are learned: their weights are part of it."""
    if not isinstance(lungs, LungLocaliser):
        return info
    first, *others = info.stages
    first = replace(first, parameters={**first.parameters, "lungs": f"learned {lungs.sha256[:16]}"})
    return replace(
        info,
        weights_name=f"{info.weights_name}+{Path(settings.lung_weights).stem}",
        weights_sha256=hashlib.sha256(f"{info.weights_sha256}\n{lungs.sha256}".encode()).hexdigest(),
        stages=(first, *others),
    )
