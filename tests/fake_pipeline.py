"""A pipeline without networks: one nodule in the middle of the volume. Stands in for the real one where a test is
about the node and not about what is found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from pulmo_models import registry
from pulmo_models.codes import RejectionCode
from pulmo_models.pipeline import ProgressCallback, Rejection, no_progress
from pulmo_models.types import Findings, PipelineInfo, Radiograph, Volume
from tests.encode_factory import INFO, make_findings, make_nodule

REJECTED_DESCRIPTION = "please reject"


class FakePipeline:
    """Rejects a series by its description, finds one nodule in every other."""

    @property
    def info(self) -> PipelineInfo:
        return INFO

    def __call__(self, image: Volume | Radiograph, progress: ProgressCallback = no_progress) -> Findings:
        assert isinstance(image, Volume)
        if image.series.series_description == REJECTED_DESCRIPTION:
            raise Rejection(RejectionCode.NO_LUNGS, "there are no lungs")
        progress("stage1", 1.0)
        slices, rows, columns = image.hu.shape
        nodule = make_nodule(image, (slices // 2, rows // 2, columns // 2))
        return replace(make_findings(image, [nodule]), cautions=image.cautions)


def build(settings: Mapping[str, Any], device: str) -> FakePipeline:
    """The factory that the registry calls."""
    return FakePipeline()


def install() -> None:
    """Put it in the place of ct-nodules, for the rest of the process."""
    entries = registry._ENTRIES
    entries["ct-nodules"] = _replaced()


@pytest.fixture
def fake_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put it in the place of ct-nodules, for one test."""
    monkeypatch.setitem(registry._ENTRIES, "ct-nodules", _replaced())


def _replaced() -> registry.PipelineEntry:
    return replace(registry.entry("ct-nodules"), factory="tests.fake_pipeline:build")
