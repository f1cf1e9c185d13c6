"""What a series would become: values that hold the plan of it, for the choice, for `inspect` and for assembly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pulmo_models.types import Acquisition, Caution
from pulmo_node.assemble.frames import Frame, SetAside
from pulmo_node.assemble.geometry import Grid
from pulmo_node.assemble.kernels import KernelUse, kernel_use
from pulmo_node.errors import Rejected


def listing(items: Sequence[str], most: int = 20) -> str:
    """Items one after the other; beyond `most`, how many more (`pulmo-node inspect` lists them all)."""
    more = f"; and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + more


@dataclass(frozen=True, kw_only=True, eq=False)
class PlannedVolume:
    """A stack of images of the series: the grid that it makes, or the reason why it makes none."""

    frames: tuple[Frame, ...]  # ascending along the normal where there is a grid
    repeated: tuple[Frame, ...]  # left out, since each repeats one of the frames voxel by voxel
    grid: Grid | None
    rejection: Rejected | None
    extent_mm: float  # along the normal, from the first image to the last
    cautions: tuple[Caution, ...] = ()  # of this volume alone
    chosen: bool = False
    reason: str = ""  # why it is chosen, or not

    @property
    def acquisition(self) -> Acquisition:
        """What the header of the first image records."""
        return self.frames[0].acquisition

    @property
    def spacing_mm(self) -> tuple[float, float, float] | None:
        """Distance between voxel centres along (slice, row, column); None where there is no grid."""
        return None if self.grid is None else (self.grid.spacing_mm, *self.frames[0].pixel_spacing_mm)

    @property
    def kernel_use(self) -> KernelUse:
        """What the convolution kernel is for."""
        return kernel_use(self.frames[0].kernel)

    @property
    def description(self) -> str:
        """In one line, for people."""
        first = self.frames[0]
        parts = [f"{len(self.frames)} image{'s' if len(self.frames) > 1 else ''} from {first.label}"]
        if self.grid:
            parts.append(f"{self.grid.spacing_mm:.2f} mm apart over {self.extent_mm:.0f} mm")
        if first.kernel:
            parts.append(f"kernel {first.kernel}")
        if first.acquisition_number:
            parts.append(f"acquisition {first.acquisition_number}")
        if first.image_type:
            parts.append("\\".join(first.image_type))
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True, eq=False)
class SeriesPlan:
    """The stacks of a series, at most one of them chosen, and the objects that belong to none."""

    volumes: tuple[PlannedVolume, ...]
    set_aside: tuple[SetAside, ...]
    rejection: Rejected | None  # why no volume is chosen

    @property
    def chosen(self) -> PlannedVolume | None:
        """The volume that is analysed."""
        return next((volume for volume in self.volumes if volume.chosen), None)
