"""Composites, judged panel by panel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dit_heads.embedded.composites import judge_panels, panels_of, unseen_composites
from dit_heads.embedded.export import load_judge
from dit_heads.embedded.nets.corpus import in_grid
from dit_heads.embedded.nets.vae import to_tensor
from dit_heads.embedded.world.render import render


@pytest.fixture(scope="module")
def rendered():
    """Two composites of 2 x 2 panels as rendered: pictures and scenes."""
    sheets = unseen_composites(2, 4, (1, 2))
    pictures = [in_grid(np.stack([render(scene).image for scene in sheet]), 2, 2) for sheet in sheets]
    return to_tensor(np.stack(pictures)), sheets


def test_panels_are_cut_in_reading_order(rendered):
    pictures, sheets = rendered
    panels = panels_of(pictures)
    assert panels.shape == (2, 4, 3, 128, 128)
    assert torch.equal(panels[1, 2], to_tensor(render(sheets[1][2]).image[None])[0])


def test_rendered_composites_are_right_and_in_their_place(rendered):
    judged = judge_panels(load_judge(), *rendered)
    assert judged.right.float().mean() >= 7 / 8 and judged.placed.all()


def test_panels_that_changed_places_are_wrong_and_out_of_place(rendered):
    pictures, sheets = rendered
    swapped = torch.cat([pictures[..., 128:], pictures[..., :128]], -1)
    judged = judge_panels(load_judge(), swapped, sheets)
    assert not judged.right.any() and not judged.placed.any()


def test_composites_have_the_numbers_of_objects_that_were_asked_for():
    counts = [[len(scene.solids) for scene in sheet] for sheet in unseen_composites(3, 3, (1, 2))]
    assert counts == [[1, 2, 1], [2, 1, 2], [1, 2, 1]]
