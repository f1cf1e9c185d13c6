"""Views of a candidate: where it lies in each, how outlines come back, and what the mean is."""

from __future__ import annotations

import pytest
import torch

from pulmo_models.ct.views import ONE_VIEW, VIEWS, View, ask


def wide(seed: int = 1) -> torch.Tensor:
    return torch.rand((2, 7, 65, 65), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("view", VIEWS)
def test_the_candidate_stays_where_the_network_expects_it(view: View) -> None:
    image = torch.zeros((1, 7, 65, 65))
    image[0, 3, 32, 32] = 1
    assert torch.argwhere(view.turn(image)).tolist() == [[0, 3, 32, 32]]


@pytest.mark.parametrize("view", VIEWS)
def test_what_a_view_saw_comes_back_to_its_place(view: View) -> None:
    image = wide()
    back = view.back(view.turn(image)[:, 3:4])
    seen = view.back(torch.ones((1, 1, 64, 64))).bool().expand_as(back)
    assert seen.sum() == 2 * 64 * 64
    assert torch.equal(back[seen], image[:, 3:4][seen])
    assert (back[~seen] == 0).all()


def test_the_views_are_eight_different_ones_and_the_first_is_the_published() -> None:
    image = wide()
    assert len({view.turn(image).numpy().tobytes() for view in VIEWS}) == 8
    assert torch.equal(VIEWS[0].turn(image), image[:, :, :64, :64])
    assert VIEWS[:1] == ONE_VIEW


def test_the_mean_is_over_all_views() -> None:
    def corner(x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"value": x[:, 3, 30, 30, None], "segmentation": x[:, 3:4]}

    image = wide()
    out = ask(corner, image, VIEWS)
    places = [(30, 30), (34, 34), (30, 34), (34, 30)]  # each by two views: nothing but turns about (32, 32)
    expected = torch.stack([image[:, 3, row, column] for row, column in places]).mean(dim=0)
    assert out["value"][:, 0].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert torch.allclose(out["segmentation"], image[:, 3:4, :64, :64], atol=1e-6)
    one = ask(corner, image, ONE_VIEW)
    assert torch.equal(one["value"][:, 0], image[:, 3, 30, 30])
