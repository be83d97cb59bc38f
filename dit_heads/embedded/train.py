"""Train the embedded models: `python -m dit_heads.embedded.train vae|clip|judge|sd3`. Every run can be stopped and resumed."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

from dit_heads.embedded.data import cache_folder, load_shards
from dit_heads.embedded.vae import VaeLoss, make_vae, reconstruction_psnr
from dit_heads.training import FitConfig, fit, read_average, load_weights

def train_vae(steps: int = 5000, shards: int = 6) -> None:
    images = np.concatenate([i for i, _ in load_shards("train", shards)])
    torch.manual_seed(0)
    vae = make_vae().to(memory_format=torch.channels_last)
    fit(vae, VaeLoss(vae, images), FitConfig(steps, 2e-3, ema=0.998, weight_decay=1e-4, seed=1), cache_folder() / "vae-v1")
    (held, _), = load_shards("validation", 1, count=1000)
    print("validation PSNR", reconstruction_psnr(vae, held[:256]))

if __name__ == "__main__":
    {"vae": train_vae}[sys.argv[1]](*map(int, sys.argv[2:]))
