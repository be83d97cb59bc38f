"""How well the autoencoder and the judge that the package ships do on scenes that training never saw."""

import numpy as np
import pytest

from dit_heads import load_embedded
from dit_heads.embedded.evaluate import unseen_scenes
from dit_heads.embedded.export import load_judge
from dit_heads.embedded.nets.judge import verdict
from dit_heads.embedded.nets.vae import reconstruction_psnr, to_tensor
from dit_heads.embedded.world.render import render


@pytest.fixture(scope="module")
def renders() -> tuple[list, np.ndarray]:
    scenes = unseen_scenes("test", 200)
    return scenes, np.stack([render(scene).image for scene in scenes])


def test_the_autoencoder_reaches_33_db_on_unseen_scenes(renders):
    assert reconstruction_psnr(load_embedded("sd3").vae, renders[1][:16]) >= 33


def test_the_judge_reads_every_attribute_of_unseen_scenes(renders):
    """At least 97 % of 1000 renders (docs/embedded.md); two standard errors of 200 below that here."""
    scenes, images = renders
    accuracy = verdict(load_judge(), to_tensor(images), scenes).accuracy()
    assert min(accuracy.values()) >= 0.945, accuracy
