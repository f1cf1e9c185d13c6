"""A measurement report and a segmentation that another program wrote (dcmqi) are read with all that they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydicom.sr.codedict import codes as dictionary

from pulmo_node import reading
from pulmo_node.encode import codes, encode_findings
from tests.encode_factory import chest_datasets, make_context, make_findings, make_nodule, write_volume
from tests.validators import run


def _code(value: str, scheme: str, meaning: str) -> dict[str, str]:
    return {"CodeValue": value, "CodingSchemeDesignator": scheme, "CodeMeaning": meaning}


def _written_by_dcmqi(folder: Path, **group: Any) -> Path:
    """A report by `tid1500writer` on the segmentation and the first image in the folder."""
    path = folder / "foreign.dcm"
    measurements = {
        "MeasurementGroup": {},
        "TrackingIdentifier": "Lesion A",
        "SourceSeriesForImageSegmentation": "1.2.3",
    }
    metadata = {
        "SeriesDescription": "Measurements",
        "SeriesNumber": "1001",
        "InstanceNumber": "1",
        "compositeContext": ["seg.dcm"],
        "imageLibrary": ["image.dcm"],
        "observerContext": {"ObserverType": "PERSON", "PersonObserverName": "Reader1"},
        "VerificationFlag": "VERIFIED",
        "CompletionFlag": "COMPLETE",
        "activitySession": "1",
        "timePoint": "1",
        "Measurements": [measurements | group],
    }
    (folder / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
    folders = ("--inputImageLibraryDirectory", str(folder), "--inputCompositeContextDirectory", str(folder))
    done = run("tid1500writer", "--inputMetadata", str(folder / "metadata.json"), *folders, "--outputDICOM", str(path))
    assert path.is_file(), done.stdout + done.stderr
    return path


def test_a_report_of_dcmqi_is_read(tmp_path: Path) -> None:
    volume = write_volume(chest_datasets(), tmp_path / "ct")
    nodule = make_nodule(volume, (3, 10, 12))
    seg = encode_findings(make_findings(volume, [nodule]), volume, make_context(volume))[1]
    (tmp_path / "seg.dcm").write_bytes(seg.content)
    (tmp_path / "image.dcm").write_bytes(Path(volume.frames[0].path or "").read_bytes())
    path = _written_by_dcmqi(
        tmp_path,
        ReferencedSegment=1,
        segmentationSOPInstanceUID=seg.sop_instance_uid,
        Finding=_code("M-03010", "SRT", "Nodule"),
        FindingSite=_code("T-28000", "SRT", "Lung"),
        measurementItems=[
            {
                "value": "267.5",
                "quantity": _code("118565006", "SCT", "Volume"),
                "units": _code("mm3", "UCUM", "cubic millimeter"),
            },
            {
                "value": "-20",
                "quantity": _code("112031", "DCM", "Attenuation Coefficient"),
                "units": _code("[hnsf'U]", "UCUM", "Hounsfield unit"),
                "derivationModifier": _code("373098007", "SCT", "Mean"),
            },
        ],
        qualitativeEvaluations=[
            {
                "conceptCode": _code("C25563", "NCIt", "Margin"),
                "conceptValue": _code("RID5707", "RADLEX", "Circumscribed margin"),
            }
        ],
    )
    result = reading.read_result(path)
    (group,) = result.report.groups
    assert group.tracking_identifier == "Lesion A"
    assert group.finding == codes.NODULE  # SRT there, SNOMED CT here
    assert [site.location for site in group.sites] == [codes.LUNG]
    measured = [(number.name, number.derivation, number.value, number.unit) for number in group.numbers]
    assert measured == [
        (codes.VOLUME, None, 267.5, codes.CUBIC_MILLIMETRE),
        (codes.ATTENUATION, codes.MEAN, -20.0, dictionary.UCUM.HounsfieldUnit),
    ]
    assert [(one.name, one.value) for one in group.evaluations] == [
        (codes.CONCEPTS["margin"], codes.RATINGS["margin"][5])
    ]
    assert result.report.library_images == 1
    (segmentation,) = result.segmentations.values()
    assert segmentation.segments[0].voxels == nodule.mask.voxels.sum()
    blocks = reading.lay_out(result)
    assert [block.heading for block in blocks] == ["Imaging Measurement Report", "Lesion A", "Provenance"]
    assert ("Person Observer Name", "Reader1") in blocks[-1].facts
    assert any(
        name == "Segment" and value.endswith("its tracking UID is ANOTHER one") for name, value in blocks[1].facts
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("reportsi.dcm", ("Document Title", "Enter text")),
        ("test-SR.dcm", ("Diagnosis", "3 cm", "was detected.", "2000-12-06 12:00:00")),
    ],
)
def test_reports_of_other_templates_are_read_as_text(name: str, said: tuple[str, ...]) -> None:
    """Those that come with pydicom, which DCMTK wrote."""
    from pydicom.data import get_testdata_file  # noqa: PLC0415 - fetches what is not there only for other files

    path = get_testdata_file(name, download=False)
    assert path is not None
    blocks = reading.lay_out(reading.read_result(Path(str(path)), others=[]))
    text = reading.page(blocks)
    for sentence in said:
        assert sentence in text
