"""From films to the input of a network, and which films of a series are looked at."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pulmo_models.codes import CautionCode, RejectionCode
from pulmo_models.cxr.films import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    as_bytes,
    chosen_films,
    cropped,
    film_cautions,
    normalised,
)
from pulmo_models.pipeline import Rejection
from pulmo_models.types import HeatMap
from tests.cxr_factory import radiograph_of, series_of
from tests.radiograph_factory import film


def ramp(rows: int, columns: int) -> np.ndarray:
    y, x = np.mgrid[0:rows, 0:columns]
    return (255 * (0.7 * y / rows + 0.3 * x / columns)).astype(np.uint8)


@pytest.mark.parametrize(("rows", "columns"), [(310, 255), (255, 310), (2128, 2000), (300, 300), (120, 90)])
def test_cropping_is_that_of_the_published_evaluation(rows: int, columns: int) -> None:
    """torchvision's Resize(255) and CenterCrop(224) on a PIL image, written out from their documentation."""
    image = Image.fromarray(ramp(rows, columns)).convert("RGB")
    short, long = min(rows, columns), max(rows, columns)
    other = int(255 * long / short)
    width, height = (255, other) if columns <= rows else (other, 255)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    top, left = round((height - 224) / 2.0), round((width - 224) / 2.0)
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224)), dtype=np.float64) / 255
    expected = (expected - IMAGENET_MEAN) / IMAGENET_STD
    found = cropped(ramp(rows, columns), 1.0, 255, 224)
    assert found.values.shape == (3, 224, 224)
    np.testing.assert_allclose(found.values.numpy().transpose(1, 2, 0), expected, atol=1e-5)


@pytest.mark.parametrize(("rows", "columns", "aspect"), [(400, 300, 1.0), (200, 300, 2.0), (400, 150, 0.5)])
def test_the_box_leads_back_to_the_image(rows: int, columns: int, aspect: float) -> None:
    """A bright spot is found where it was put, and a chest keeps its shape whatever the pixels' is."""
    image = np.zeros((rows, columns), dtype=np.uint8)
    row, column = int(rows * 0.6), int(columns * 0.4)
    image[row - 3 : row + 4, column - 3 : column + 4] = 255
    found = cropped(image, aspect, 255, 224)
    values = found.values[0].numpy()
    heat = HeatMap(values=values - values.min(), box=found.box)
    assert heat.peak == pytest.approx((row, column), abs=3)
    assert np.unravel_index(heat.on_image(rows, columns).argmax(), (rows, columns)) == pytest.approx(
        (row, column), abs=3
    )
    first_row, first_column, end_row, end_column = found.box
    assert (end_row - first_row) * aspect == pytest.approx(end_column - first_column, rel=0.01)


def test_a_heat_map_is_linear_between_its_cells_and_nothing_outside() -> None:
    heat = HeatMap(values=np.array([[0.0, 1.0]], dtype=np.float32), box=(10.0, 20.0, 30.0, 60.0))
    full = heat.on_image(40, 80)
    assert full.shape == (40, 80)
    assert not full[:10].any()
    assert not full[30:].any()
    assert not full[:, :20].any()
    assert not full[:, 60:].any()
    assert full[15, 20:29].max() == 0  # up to the centre of the first cell
    assert full[15, 39:41].mean() == pytest.approx(0.5)
    assert full[15, 50:60].min() == 1
    assert heat.peak == (19.5, 49.5)


def test_grey_and_rgb_are_normalised_alike() -> None:
    grey = ramp(20, 30)
    assert np.array_equal(normalised(grey), normalised(np.stack([grey] * 3, axis=-1)))
    assert as_bytes(np.array([-0.1, 0.0, 0.5, 1.0, 1.2])).tolist() == [0, 0, 128, 255, 255]


class TestChosen:
    def test_frontal_and_untold_views_are_analysed(self) -> None:
        films = [radiograph_of(uid=f"1.{n}", view=view) for n, view in enumerate(("PA", "AP", "frontal", "unknown"))]
        chosen, cautions = chosen_films(series_of(*films))
        assert list(chosen) == films
        assert cautions == ()

    def test_a_lateral_one_is_set_aside(self) -> None:
        frontal = radiograph_of(uid="1.1")
        lateral = radiograph_of(uid="1.2", view="lateral", view_position="LL")
        chosen, (caution,) = chosen_films(series_of(lateral, frontal))
        assert chosen == (frontal,)
        assert caution.code == CautionCode.SET_ASIDE
        assert "1 of 2" in caution.sentence
        assert "LL is a lateral view" in caution.sentence
        assert chosen_films(series_of(lateral, frontal), "all") == ((lateral, frontal), ())

    def test_no_frontal_film(self) -> None:
        with pytest.raises(Rejection) as caught:
            chosen_films(series_of(radiograph_of(view="lateral", view_position="RL"), radiograph_of(view="other")))
        assert caught.value.code == RejectionCode.NOT_FRONTAL
        assert "RL is a lateral view" in caught.value.sentence

    def test_what_a_film_is_told_to_be_careful_of(self) -> None:
        positive, negative = film(), 4095 - film()
        assert film_cautions(radiograph_of(positive)) == ()
        assert [c.code for c in film_cautions(radiograph_of(positive, view="unknown"))] == [CautionCode.VIEW_UNKNOWN]
        assert [c.code for c in film_cautions(radiograph_of(negative))] == [CautionCode.LOOKS_INVERTED]
        assert film_cautions(radiograph_of(negative, view="lateral")) == ()
