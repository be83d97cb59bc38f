"""What all tests of training runs share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from tests.loras.runs import CAPTIONS
from tests.saved import tiny_flux_pipeline, tiny_pipeline, tiny_vae


def autoencoder() -> AutoencoderKL:
    """One that shrinks eight times, as those of SD3 and FLUX do."""
    torch.manual_seed(1)
    return tiny_vae(8, 8, 8, 8)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny pipelines."""
    root = tmp_path_factory.mktemp("models")
    for kind, pipe in (("sd3", tiny_pipeline()), ("flux", tiny_flux_pipeline())):
        whole: Any = type(pipe)(**{**pipe.components, "vae": autoencoder()})
        whole.save_pretrained(root / kind)
    return {kind: root / kind for kind in ("sd3", "flux")}


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five sets of two pictures of 64 x 64."""
    root = tmp_path_factory.mktemp("data") / "sets"
    rng = np.random.default_rng(0)
    for k, caption in enumerate(CAPTIONS):
        (root / f"set{k}").mkdir(parents=True)
        for p in range(2):
            coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            coarse.resize((64, 64)).save(root / f"set{k}/{p}.png")
        (root / f"set{k}/caption.txt").write_text(caption)
    return root
