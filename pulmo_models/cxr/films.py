"""Which radiographs of a series a pipeline looks at, and how a film becomes the input of a network.

Errors: :class:`Rejection` ``NOT_FRONTAL``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from pulmo_models.codes import CautionCode, RejectionCode
from pulmo_models.cxr.appearance import looks_inverted
from pulmo_models.pipeline import Rejection
from pulmo_models.types import Caution, Radiograph, RadiographSeries

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

FRONTAL = ("PA", "AP", "frontal")

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, eq=False)
class NetworkFilm:
    """A film as a network sees it."""

    values: Tensor  # (3, h, w), normalised
    box: tuple[float, float, float, float]  # what of the image: first row, first column, end row, end column


def chosen_films(
    series: RadiographSeries, views: Literal["frontal", "all"] = "frontal"
) -> tuple[tuple[Radiograph, ...], tuple[Caution, ...]]:
    """The films of a series that are analysed, and a caution that names those that are not.

    Raises:
        Rejection: NOT_FRONTAL, there is none.
    """
    chosen = [film for film in series.images if views == "all" or film.view in (*FRONTAL, "unknown")]
    refused = [film for film in series.images if film not in chosen]
    sentence = "; ".join(f"{film.view_position or 'a view that is not told'} is {_told(film)}" for film in refused)
    if not chosen:
        raise Rejection(RejectionCode.NOT_FRONTAL, f"the series holds no frontal radiograph: {sentence}")
    if not refused:
        return tuple(chosen), ()
    aside = f"{len(refused)} of {len(series.images)} radiographs were not analysed: {sentence}."
    return tuple(chosen), (Caution(code=CautionCode.SET_ASIDE, sentence=aside),)


def film_cautions(film: Radiograph) -> tuple[Caution, ...]:
    """Those of the film, and what its view and its look ask for."""
    found = list(film.cautions)
    if film.view == "unknown":
        sentence = "The file does not tell the view; the radiograph was taken for a frontal one."
        found.append(Caution(code=CautionCode.VIEW_UNKNOWN, sentence=sentence))
    if film.view in (*FRONTAL, "unknown") and looks_inverted(film.display):
        sentence = "The radiograph looks like its negative; it was analysed as its file says."
        found.append(Caution(code=CautionCode.LOOKS_INVERTED, sentence=sentence))
    return tuple(found)


def cropped(film: Bytes, pixel_aspect: float, shorter: int, size: int) -> NetworkFilm:
    """The shorter side to ``shorter``, then the square of ``size`` in the middle (torchvision's Resize, CenterCrop).

    ``film`` is uint8 ``(rows, columns)``; a film of other than square pixels is made square first, so that a chest
    keeps its shape.
    """
    rows, columns = film.shape
    height, width = (rows * pixel_aspect, float(columns)) if pixel_aspect > 1 else (float(rows), columns / pixel_aspect)
    new_height, new_width = (int(shorter * side / min(height, width)) for side in (height, width))
    resized = Image.fromarray(film).resize((new_width, new_height), Image.Resampling.BILINEAR)
    top, left = round((new_height - size) / 2), round((new_width - size) / 2)
    square = resized.crop((left, top, left + size, top + size))
    down, across = rows / new_height, columns / new_width
    return NetworkFilm(
        values=normalised(np.asarray(square)),
        box=(top * down, left * across, (top + size) * down, (left + size) * across),
    )


def normalised(film: Bytes) -> Tensor:
    """uint8 ``(h, w)`` grey or ``(h, w, 3)`` RGB to float32 ``(3, h, w)`` in ImageNet's normalisation."""
    values = torch.from_numpy(np.array(film)).to(torch.float32) / 255
    values = values.expand(3, *film.shape) if values.ndim == 2 else values.permute(2, 0, 1)
    return (values - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]


def as_bytes(values: npt.NDArray[np.floating]) -> Bytes:
    """0..1 to 0..255, rounded."""
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def _told(film: Radiograph) -> str:
    return "a lateral view" if film.view == "lateral" else "no frontal view"
