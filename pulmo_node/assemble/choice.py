"""Which of the volumes of a series is analysed. The rule is told in docs/assembly.md.

Input: what became of every stack. Output: the same, the best first, one of them chosen or none with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pulmo_models.codes import RejectionCode
from pulmo_node.assemble.kernels import KernelUse
from pulmo_node.assemble.planned import PlannedVolume
from pulmo_node.assemble.stacks import natural
from pulmo_node.errors import Rejected

COMPLETE = 0.9  # of the longest extent

_NO_CHEST_VOLUME = (RejectionCode.NOT_AXIAL, RejectionCode.BAD_ORIENTATION, RejectionCode.NOT_HU)
"""Refusals that tell that the images were never meant to be the volume, and say nothing of how far that reaches."""


def choose(tried: Sequence[PlannedVolume], minimum_slices: int) -> tuple[tuple[PlannedVolume, ...], Rejected | None]:
    """Sort the volumes, the best first, choose the best complete one, and tell of each why it is taken or not.

    Complete is what covers 90 % of the longest extent, of stacks that were refused too: a slab beside a long scan that
    could not be assembled is not taken for the whole.

    Returns:
        The volumes, then the refused stacks, the largest first; and the rejection where none is chosen.
    """
    refused = sorted((v for v in tried if v.rejection), key=lambda v: (_no_chest_volume(v), -len(v.frames)))
    longest_mm = max((v.extent_mm for v in tried if _counts(v, minimum_slices)), default=0.0)
    ranked = sorted((v for v in tried if v.grid), key=lambda v: (v.extent_mm < COMPLETE * longest_mm, *_rank(v)))
    told = tuple(replace(v, reason=f"{v.rejection.code}: {v.rejection.sentence}") for v in refused if v.rejection)
    if ranked and ranked[0].extent_mm >= COMPLETE * longest_mm:
        best = ranked[0]
        why = f"preferred among {len(ranked)} volumes" if len(ranked) > 1 else "the only volume"
        others = (replace(v, reason=_why_not(v, best, longest_mm)) for v in ranked[1:])
        return (replace(best, chosen=True, reason=why), *others, *told), None
    parts = tuple(replace(v, reason=_covers(v, longest_mm)) for v in ranked)
    rejection: Rejected | None
    if not tried:
        rejection = Rejected(RejectionCode.NO_IMAGES, "the series holds no CT image that has pixels and a position")
    elif not ranked:
        rejection = refused[0].rejection
    else:
        rejection = _only_parts([v for v in refused if _counts(v, minimum_slices)], ranked[0])
    return (*parts, *told), rejection


def _counts(volume: PlannedVolume, minimum_slices: int) -> bool:
    """Whether a stack says how far the scan reaches."""
    return len(volume.frames) >= minimum_slices and not _no_chest_volume(volume)


def _no_chest_volume(volume: PlannedVolume) -> bool:
    return volume.rejection is not None and volume.rejection.code in _NO_CHEST_VOLUME


def _rank(volume: PlannedVolume) -> tuple[object, ...]:
    """Smaller is better, in the order of the criteria."""
    first, spacing_mm = volume.frames[0], volume.spacing_mm
    return (
        volume.kernel_use is KernelUse.SHARP,
        round(spacing_mm[0], 2) if spacing_mm else 0.0,
        bool(volume.grid and not volume.grid.native),
        first.image_type[:1] != ("ORIGINAL",),
        volume.kernel_use,
        -len(volume.frames),
        natural(first.acquisition_number),
        (natural(first.temporal_position), first.acquired, first.instance_number),
        first.sop_instance_uid,
    )


_CRITERIA = (
    "its kernel is for bone or edges",
    "its slices are farther apart",
    "it had to be repaired",
    "its images are derived",
    "its kernel is sharper",
    "it has fewer images",
    "its acquisition is a later one",
    "it was taken later",
    "nothing prefers it",
)
"""One for each element of the rank, of what is not chosen."""


def _why_not(volume: PlannedVolume, best: PlannedVolume, longest_mm: float) -> str:
    if volume.extent_mm < COMPLETE * longest_mm:
        return _covers(volume, longest_mm)
    pairs = zip(_CRITERIA, _rank(volume), _rank(best), strict=True)
    return next((why for why, own, other in pairs if own != other), _CRITERIA[-1])


def _covers(volume: PlannedVolume, longest_mm: float) -> str:
    return f"it covers only {volume.extent_mm:.0f} of {longest_mm:.0f} mm"


def _only_parts(refused: Sequence[PlannedVolume], part: PlannedVolume) -> Rejected | None:
    """The refusal of the longest stack, where what can be assembled is only a part of what was scanned."""
    longest = max(refused, key=lambda v: v.extent_mm)
    if longest.rejection is None:
        return None
    why = longest.rejection
    sentence = f"{why.sentence}; another stack of the series can be assembled, but {_covers(part, longest.extent_mm)}"
    return Rejected(why.code, sentence, file=why.file, tag=why.tag)
