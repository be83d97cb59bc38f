"""Classes of real photographs: `python benchmarks/clothing.py PHOTOS --lora RUN/lora.safetensors`.

PHOTOS has the folders train and test, each with a folder of pictures a class. The LoRA answers about the
pictures of test, with all classes in one instruction. Beside it stands a linear probe on the latents of the
same pictures: logistic regression, whose weight decay is the best of five folds of train.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Float, Int
from torch import Tensor

from dit_heads.embedded import load_embedded
from dit_heads.embedded.evaluate import cell
from dit_heads.embedded.nets.vae import to_tensor
from dit_heads.embedded.world.render import SIZE
from dit_heads.families.latents import encoded
from dit_heads.loras.tasks.class_folder import ClassFolder
from dit_heads.loras.tasks.fitted import fitted_picture
from dit_heads.pipelines.instruct import with_instruct_lora

DECAYS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
FOLDS = 5


def pixels(pairs: ClassFolder) -> np.ndarray:
    """All pictures of a folder, cut to squares, [n, 128, 128, 3]."""
    return np.stack([np.asarray(fitted_picture(pairs.picture(k), (SIZE, SIZE))) for k in range(len(pairs))])


def classes(pairs: ClassFolder) -> Int[Tensor, " n"]:
    """The number of the class of each picture."""
    return torch.tensor([pairs.classes.index(name) for _, name in pairs.files])


@torch.no_grad()
def latents(vae: Any, pictures: np.ndarray) -> Float[Tensor, "n d"]:
    """The latents of pictures, mirrored ones after the others."""
    both = np.concatenate([pictures, pictures[:, :, ::-1]])
    return torch.cat([encoded(vae, to_tensor(some)) for some in np.array_split(both, 16)]).flatten(1)


def probed(
    x: Float[Tensor, "n d"], y: Int[Tensor, " n"], asked: Float[Tensor, "m d"], decay: float
) -> Int[Tensor, " m"]:
    """Classes by logistic regression on standardised features."""
    mean, spread = x.mean(0), x.std(0) + 1e-6
    x, asked = (x - mean) / spread, (asked - mean) / spread
    weight = torch.zeros(int(y.max()) + 1, x.shape[1], requires_grad=True)
    fitted = torch.optim.LBFGS([weight], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        fitted.zero_grad()
        value = F.cross_entropy(x @ weight.T, y) + decay * weight.pow(2).sum() / 2
        value.backward()
        return value

    fitted.step(loss)  # pyright: ignore[reportArgumentType]
    return (asked @ weight.detach().T).argmax(1)


def best_decay(x: Float[Tensor, "n d"], y: Int[Tensor, " n"]) -> float:
    """The weight decay with the best accuracy over the folds. A picture and its mirror image share a fold."""
    count = len(y) // 2
    fold = torch.from_numpy(np.random.default_rng(0).permutation(count) % FOLDS).repeat(2)

    def accuracy(decay: float) -> float:
        right = [
            (probed(x[fold != k], y[fold != k], x[fold == k], decay) == y[fold == k]).float().mean().item()
            for k in range(FOLDS)
        ]
        return float(np.mean(right))

    return max(DECAYS, key=accuracy)


def answers(lora: Path, pictures: np.ndarray, names: Sequence[str], steps: int) -> list[str]:
    """What a LoRA takes pictures for."""
    see = with_instruct_lora(load_embedded("sd3"), lora)
    see.pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(k) for k in range(len(pictures))]
    call = {"at_once": True, "batch_size": 16, "num_inference_steps": steps, "guidance_scale": 1.0}
    found = see.classify(list(pictures), list(names), generator=generators, **call)
    return [each.best for each in found.annotations]


def main(photos: tyro.conf.Positional[Path], lora: Path | None = None, steps: int = 8) -> None:
    """Print the accuracy of both.

    Args:
        photos: Folder with train and test.
        lora: LoRA of a run of the instruct task on train, with `--choices all`.
        steps: Number of inference steps.
    """
    train, test = ClassFolder(photos / "train"), ClassFolder(photos / "test")
    vae, seen, asked = load_embedded("sd3").vae, pixels(train), pixels(test)
    x, y, wanted = latents(vae, seen), classes(train).repeat(2), classes(test)
    decay = best_decay(x, y)
    right = probed(x, y, latents(vae, asked)[: len(wanted)], decay) == wanted
    print(f"| {len(test)} photographs of {len(test.classes)} classes | accuracy |\n|---|---|")
    print(f"| linear probe on latents, weight decay {decay:g} | {cell(right.numpy().astype(float), 3)} |")
    if lora is not None:
        found = answers(lora, asked, test.classes, steps)
        same = [a == test.classes[k] for a, k in zip(found, wanted.tolist(), strict=True)]
        print(f"| {lora.parent.name}, {steps} steps | {cell(np.array(same, float), 3)} |")


if __name__ == "__main__":
    tyro.cli(main)
