"""Results of radiographs, read back from their bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ParametricMapStorage,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from pulmo_models.codes import CautionCode
from pulmo_models.cxr.settings import LABELS
from pulmo_models.types import Caution, HeatMap, RadiographSeries
from pulmo_node import reading
from pulmo_node.encode import EncodedObject, ResultOptions, encode_rejection, findings_to_json
from pulmo_node.encode.heat_maps import heat_map_picture
from pulmo_node.errors import Permanent
from tests.cxr_factory import radiograph_of
from tests.encode_factory import context_of, items_named, measurement_groups, read_object
from tests.film_results import (
    PROBABILITIES,
    SCORE,
    encoded,
    film_findings,
    read_films,
    risk_findings,
)
from tests.radiograph_factory import film, radiograph, write_series
from tests.validators import complaints, dsrdump_errors

CODES = {
    "Atelectasis": ("46621007", "39607008"),
    "Cardiomegaly": ("8186001", "80891009"),
    "Consolidation": ("95436008", "39607008"),
    "Edema": ("19242006", "39607008"),
    "Pleural Effusion": ("60046008", "3120008"),
}


@pytest.fixture
def series(tmp_path: Path) -> RadiographSeries:
    return read_films(write_series(tmp_path, radiograph(film(300, 260))))


def first(group: Dataset, meaning: str) -> Dataset:
    (item,) = items_named(group, meaning)
    return item


def code(item: Dataset) -> str:
    return str(item.ConceptCodeSequence[0].CodeValue)


class TestReport:
    def test_a_group_for_each_finding(self, series: RadiographSeries) -> None:
        report = read_object(encoded(film_findings(series), series)[0])
        assert report.SOPClassUID == Comprehensive3DSRStorage
        assert report.SeriesDescription == "Pulmo chest findings SR"
        groups = measurement_groups(report)
        assert len(groups) == len(LABELS)
        for group, label in zip(groups, LABELS, strict=True):
            finding, site = CODES[label]
            assert code(first(group, "Finding")) == finding
            assert code(first(group, "Finding Site")) == site
            number = first(group, "Probability").MeasuredValueSequence[0]
            assert float(number.NumericValue) == round(100 * PROBABILITIES[label], 2)
            assert number.MeasurementUnitsCodeSequence[0].CodeValue == "%"
            positive = PROBABILITIES[label] >= 0.5
            assert code(first(group, "Presence of property")) == ("52101004" if positive else "272519000")
            words = first(group, "Comment").TextValue
            assert words.startswith(f"{label} {100 * PROBABILITIES[label]:.0f} %")
            assert ("at or above" if positive else "below") in words
            assert str(first(group, "Tracking Identifier").TextValue) == f"Cornerstone3DTools@^0.1.0:Probe:{label}"
        assert len({first(group, "Tracking Unique Identifier").UID for group in groups}) == len(LABELS)

    def test_the_point_is_the_peak_of_the_heat_map_on_the_image(self, series: RadiographSeries) -> None:
        findings = film_findings(series)
        for group, score in zip(
            measurement_groups(read_object(encoded(findings, series)[0])), findings.images[0].class_scores, strict=True
        ):
            point = first(group, "Probability").ContentSequence[-1]
            assert (point.ValueType, point.GraphicType, point.RelationshipType) == ("SCOORD", "POINT", "INFERRED FROM")
            assert score.heat_map is not None
            row, column = score.heat_map.peak
            assert list(point.GraphicData) == pytest.approx([column + 0.5, row + 0.5], abs=0.06)
            image = point.ContentSequence[0].ReferencedSOPSequence[0]
            assert image.ReferencedSOPInstanceUID == series.images[0].source.sop_instance_uid

    def test_without_a_signal_the_point_is_the_middle(self, series: RadiographSeries) -> None:
        report = read_object(encoded(film_findings(series, silent="Edema"), series)[0])
        group = measurement_groups(report)[LABELS.index("Edema")]
        assert list(first(group, "Probability").ContentSequence[-1].GraphicData) == [130.0, 150.0]
        assert "no part of the image spoke for it" in first(group, "Comment").TextValue

    def test_a_peak_beyond_the_image_is_moved_into_it(self, series: RadiographSeries) -> None:
        findings = film_findings(series)
        (image,) = findings.images
        heat = HeatMap(values=np.array([[0.0, 1.0]], dtype=np.float32), box=(-20.0, 0.0, 10.0, 600.0))
        scores = (replace(image.class_scores[0], heat_map=heat), *image.class_scores[1:])
        findings = replace(findings, images=(replace(image, class_scores=scores),))
        group = measurement_groups(read_object(encoded(findings, series)[0]))[0]
        assert list(first(group, "Probability").ContentSequence[-1].GraphicData) == [259.5, 0.5]

    def test_every_image_of_a_series(self, tmp_path: Path) -> None:
        series = read_films(write_series(tmp_path, radiograph(film()), radiograph(film(seed=2), InstanceNumber=2)))
        objects = encoded(film_findings(series), series)
        groups = measurement_groups(read_object(objects[0]))
        assert len(groups) == 10
        assert "image 1" in first(groups[0], "Comment").TextValue
        assert "image 2" in first(groups[5], "Comment").TextValue
        named = [
            first(group, "Probability").ContentSequence[-1].ContentSequence[0].ReferencedSOPSequence[0]
            for group in groups
        ]
        uids = [film.source.sop_instance_uid for film in series.images]
        assert [item.ReferencedSOPInstanceUID for item in named] == [uids[0]] * 5 + [uids[1]] * 5
        assert [each.kind for each in objects] == ["sr", *["heat-map"] * 10]

    def test_each_heat_map_is_told_by_its_group(self, tmp_path: Path) -> None:
        """Of two films with equal numbers too: a reader finds the picture by the words of the group."""
        series = read_films(write_series(tmp_path, radiograph(film()), radiograph(film(seed=2), InstanceNumber=2)))
        for number, each in enumerate(encoded(film_findings(series), series)):
            (tmp_path / f"{number:02}.dcm").write_bytes(each.content)
        blocks = reading.lay_out(reading.read_result(tmp_path / "00.dcm"))
        assert [path.name for block in blocks[:11] for path in block.pictures] == [f"{n:02}.dcm" for n in range(1, 11)]
        assert all(len(block.pictures) == 1 for block in blocks[1:11])
        assert [block.heading for block in blocks[1:11]] == [*LABELS, *LABELS]

    def test_status_cautions_and_spacing_are_told(self, series: RadiographSeries) -> None:
        caution = Caution(code=CautionCode.LOOKS_INVERTED, sentence="It looks like its negative.")
        report = read_object(encoded(film_findings(series, cautions=(caution,)), series)[0])
        evaluations = first(report, "Qualitative Evaluations")
        assert code(first(evaluations, "CAD Processing and Findings Summary")) == "111242"
        texts = [item.TextValue for item in items_named(evaluations, "Comment")]
        assert "It looks like its negative. [LOOKS_INVERTED]" in texts
        assert "Pixel spacing 0.2 x 0.2 mm holds at the detector." in texts
        assert texts[-1].startswith("For research use only")

    def test_nothing_above_its_threshold_is_without_findings(self, series: RadiographSeries) -> None:
        findings = film_findings(series)
        (image,) = findings.images
        low = tuple(replace(score, probability=0.1) for score in image.class_scores)
        report = read_object(encoded(replace(findings, images=(replace(image, class_scores=low),)), series)[0])
        evaluations = first(report, "Qualitative Evaluations")
        assert code(first(evaluations, "CAD Processing and Findings Summary")) == "111241"

    def test_the_procedure_is_a_chest_radiograph(self, series: RadiographSeries) -> None:
        assert code(first(read_object(encoded(film_findings(series), series)[0]), "Procedure reported")) == "399208008"

    def test_lung_risk(self, series: RadiographSeries) -> None:
        (only,) = encoded(risk_findings(series), series)
        (group,) = measurement_groups(read_object(only))
        number = first(group, "CXR-Lung-Risk score")
        assert float(number.MeasuredValueSequence[0].NumericValue) == round(SCORE, 2)
        assert number.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue == "a"
        assert list(number.ContentSequence[-1].GraphicData) == [130.0, 150.0]
        words = first(group, "Comment").TextValue
        assert "Neither an age nor a diagnosis" in words
        assert "group below 65" in words

    def test_numbers_that_are_none(self, series: RadiographSeries) -> None:
        findings = film_findings(series)
        (image,) = findings.images
        scores = (replace(image.class_scores[0], probability=float("nan")), *image.class_scores[1:])
        with pytest.raises(Permanent, match="Atelectasis is not a finite number"):
            encoded(replace(findings, images=(replace(image, class_scores=scores),)), series)

    def test_a_refused_series_is_not_said_to_be_about_nodules(self, tmp_path: Path) -> None:
        paths = write_series(tmp_path, radiograph(ViewPosition="LL"))
        context = context_of("1.2", pipeline="cxr-findings", options=ResultOptions(negative_report="air"))
        report = read_object(encode_rejection(paths, "NOT_FRONTAL", "It holds no frontal film.", context))
        (group,) = measurement_groups(report)
        assert first(group, "Tracking Identifier").TextValue == "findings"

    def test_an_image_of_another_series(self, series: RadiographSeries, tmp_path: Path) -> None:
        other = read_films(write_series(tmp_path / "other", radiograph()))
        with pytest.raises(Permanent, match="does not hold"):
            encoded(film_findings(other), series)


class TestHeatMaps:
    def test_a_picture_for_each_finding_with_its_name(self, series: RadiographSeries) -> None:
        pictures = [read_object(each) for each in encoded(film_findings(series), series)[1:]]
        assert len(pictures) == len(LABELS)
        assert len({picture.SeriesInstanceUID for picture in pictures}) == 1
        assert [picture.InstanceNumber for picture in pictures] == [1, 2, 3, 4, 5]
        for picture, label in zip(pictures, LABELS, strict=True):
            assert picture.SOPClassUID == SecondaryCaptureImageStorage
            assert (picture.SamplesPerPixel, picture.PhotometricInterpretation) == (3, "RGB")
            assert picture.ImageComments.startswith(label)
            assert picture.SeriesDescription == "Pulmo chest findings heat maps"
            source = picture.SourceImageSequence[0].ReferencedSOPInstanceUID
            assert source == series.images[0].source.sop_instance_uid
            assert (picture.Rows, picture.Columns) == (300, 260)

    def test_red_where_it_spoke_and_the_film_alone_outside_of_what_was_seen(self) -> None:
        pixels = np.full((400, 300), 100.0)
        pixels[0, 0] = 0.0
        values = np.zeros((7, 7), dtype=np.float32)
        values[2, 4] = 1
        heat = HeatMap(values=values, box=(100.0, 50.0, 310.0, 260.0))
        picture = np.asarray(heat_map_picture(radiograph_of(pixels), heat, "")).astype(int)
        assert picture.shape == (400, 300, 3)
        red, green, blue = picture[175, 185].tolist()
        assert red > 200
        assert (green, blue) == (153, 153)
        assert picture[300, 60].tolist() == pytest.approx([153, 153, 0.6 * 255 + 0.4 * 127], abs=2)
        assert picture[350, 150].tolist() == [255, 255, 255]
        assert picture[200, 20].tolist() == [255, 255, 255]

    def test_pixels_are_made_square_and_large_films_small(self) -> None:
        heat = HeatMap(values=np.ones((7, 7), dtype=np.float32), box=(0.0, 0.0, 100.0, 200.0))
        assert heat_map_picture(radiograph_of(film(100, 200), pixel_aspect=2.0), heat, "").size == (200, 200)
        assert heat_map_picture(radiograph_of(film(2048, 1024)), heat, "").size == (512, 1024)

    def test_without_them(self, series: RadiographSeries) -> None:
        assert [each.kind for each in encoded(film_findings(series), series, heat_maps=False)] == ["sr"]


class TestParametricMap:
    def test_values_and_places(self, series: RadiographSeries) -> None:
        findings = film_findings(series)
        (only,) = (each for each in encoded(findings, series, parametric_maps=True) if each.kind == "parametric-map")
        built = hd.pm.ParametricMap.from_dataset(read_object(only))
        assert built.SOPClassUID == ParametricMapStorage
        assert built.NumberOfFrames == len(LABELS)
        assert (built.Rows, built.Columns) == (256, 222)
        shared = built.SharedFunctionalGroupsSequence[0]
        spacing = [float(value) for value in shared.PixelMeasuresSequence[0].PixelSpacing]
        assert spacing == pytest.approx([0.2 * 300 / 256, 0.2 * 260 / 222])
        frames = np.frombuffer(built.FloatPixelData, "<f4").reshape(len(LABELS), 256, 222)
        for frame, group, score in zip(
            frames, built.PerFrameFunctionalGroupsSequence, findings.images[0].class_scores, strict=True
        ):
            mapping = group.RealWorldValueMappingSequence[0]
            assert mapping.LUTLabel == score.label[:16]
            quantity = mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0]
            assert (quantity.CodeValue, quantity.CodingSchemeDesignator) == ("130403", "DCM")
            origin = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
            row, column = np.unravel_index(frame.argmax(), frame.shape)
            place_mm = origin[:2] + np.array([column * spacing[1], row * spacing[0]])
            assert score.heat_map is not None
            peak_row, peak_column = score.heat_map.peak
            assert place_mm == pytest.approx((peak_column * 0.2, peak_row * 0.2), abs=0.3)
            assert frame.max() == pytest.approx(1, abs=0.1)
            assert frame.min() == 0


class TestIdentity:
    def test_equal_findings_give_equal_bytes_and_other_ones_other_uids(self, series: RadiographSeries) -> None:
        everything = {"heat_maps": True, "parametric_maps": True}
        once, again = (encoded(film_findings(series), series, **everything) for _ in range(2))
        assert once == again
        assert len({each.sop_instance_uid for each in once}) == len(once)
        risk = encoded(risk_findings(series), series)
        assert not {each.sop_instance_uid for each in once} & {each.sop_instance_uid for each in risk}
        assert {each.series_instance_uid for each in risk}.isdisjoint(each.series_instance_uid for each in once)

    @pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
    @pytest.mark.parametrize("modality", ["CR", "DX"])
    def test_validators_have_nothing_to_say(self, modality: str, photometric: str, tmp_path: Path) -> None:
        ds = radiograph(film(), modality, PhotometricInterpretation=photometric, SpecificCharacterSet="ISO_IR 100")
        series = read_films(write_series(tmp_path, ds))
        objects: list[EncodedObject] = [
            *encoded(film_findings(series), series, parametric_maps=True),
            *encoded(risk_findings(series), series),
        ]
        for number, each in enumerate(objects):
            path = tmp_path / f"{number}.dcm"
            path.write_bytes(each.content)
            assert complaints(path) == [], each.kind
            if each.kind == "sr":
                assert dsrdump_errors(path) == []


class TestJson:
    def test_it_holds_the_numbers_of_the_report(self, series: RadiographSeries) -> None:
        plain: dict[str, Any] = json.loads(
            json.dumps(
                findings_to_json(
                    film_findings(series, silent="Edema"), series, context_of(series.series.series_instance_uid)
                )
            )
        )
        assert plain["nodules"] == []
        assert plain["malignancy_bias"] is None
        (image,) = plain["images"]
        assert image["sop_instance_uid"] == series.images[0].source.sop_instance_uid
        assert (image["spacing_mm"], image["spacing_plane"], image["view_position"]) == ([0.2, 0.2], "detector", "PA")
        by_label = {score["label"]: score for score in image["class_scores"]}
        assert list(by_label) == list(LABELS)
        assert by_label["Atelectasis"]["probability"] == 0.1235
        assert by_label["Consolidation"]["positive"] is True
        assert by_label["Edema"]["peak"] is None
        assert by_label["Cardiomegaly"]["peak"] == pytest.approx([150 + 32 * 260 / 255 - 0.5, 129.5], abs=0.1)

    def test_of_a_score(self, series: RadiographSeries) -> None:
        plain = findings_to_json(risk_findings(series), series, context_of(generate_uid()))
        (estimate,) = plain["images"][0]["estimates"]
        assert (estimate["label"], estimate["value"], estimate["unit"]) == ("CXR-Lung-Risk", 61.24, "a")
