"""`pulmo-node` with a pipeline without networks, in a process of its own: a fault is then about the node.

    python -m tests.faults.served serve --config NODE.TOML

The pipeline is put in place when this module is imported, so that a process that the node spawns has it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pulmo_models import registry
from pulmo_models.pipeline import ProgressCallback, no_progress
from pulmo_models.types import Findings, Radiograph, Volume
from tests.encode_factory import make_findings
from tests.fake_pipeline import FakePipeline

_MOST_VOXELS = 2_000_000
"""Of a volume in which `FakePipeline` draws its nodule: it takes an index array of the whole volume for that."""


class LightPipeline(FakePipeline):
    """`FakePipeline`, and no nodule in a volume of real size."""

    def __call__(self, image: Volume | Radiograph, progress: ProgressCallback = no_progress) -> Findings:
        assert isinstance(image, Volume)
        if image.hu.size > _MOST_VOXELS:
            return replace(make_findings(image), cautions=image.cautions)
        return super().__call__(image, progress)


def build(settings: Mapping[str, Any], device: str) -> LightPipeline:
    """The factory that the registry calls."""
    return LightPipeline()


registry._ENTRIES["ct-nodules"] = replace(registry.entry("ct-nodules"), factory="tests.faults.served:build")

if __name__ == "__main__":
    from pulmo_node.cli import main

    main()
