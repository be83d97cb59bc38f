"""What comes back from the embedded autoencoder of what vision tasks put through it:
`python benchmarks/autoencoder.py --count 64`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import tyro
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from dit_heads.embedded import load_embedded
from dit_heads.embedded.nets.vae import psnr, to_tensor
from dit_heads.embedded.world.captions import CARDS
from dit_heads.embedded.world.data import scene_of
from dit_heads.embedded.world.render import SIZE, Rendering, boxes, render
from dit_heads.tasks.annotations import box_iou, mask_iou

Picture = NDArray[np.uint8]
BLUE, FRAME = (0, 0, 255), 3  # of a frame around a solid: its colour, and pixels of its line
NEAR, FAR = 2.0, 14.0  # metres
# A walk along seven edges of the cube of colours: 7 x 255 steps of depth instead of 255.
CORNERS = np.array(
    [(0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0), (1, 1, 0), (1, 0, 0), (1, 0, 1), (1, 1, 1)], float
)
CARD_COLOURS = np.array(list(CARDS.values()), float)


def mask_of(scene: Rendering) -> Picture:
    """The first solid white, all else black."""
    return np.where(scene.ids == 1, 255, 0)[..., None].repeat(3, -1).astype(np.uint8)


def mask_read(scene: Rendering, back: Picture) -> float:
    """Intersection over union of a mask that came back."""
    return mask_iou(back.mean(-1) > 127.5, scene.ids == 1)


def frame_of(scene: Rendering) -> Picture:
    """The picture with a hollow blue frame around its first solid."""
    left, top, right, bottom = boxes(scene.ids, 1)[0]
    line = np.zeros(scene.ids.shape, bool)
    line[top:bottom, left:right] = True
    line[top + FRAME : bottom - FRAME, left + FRAME : right - FRAME] = False
    return np.where(line[..., None], BLUE, scene.image).astype(np.uint8)


def frame_read(scene: Rendering, back: Picture) -> float:
    """Intersection over union of the box whose frame is found by its colour."""
    line = np.abs(back.astype(int) - BLUE).sum(-1) < 150
    rows, columns = (np.flatnonzero(line.sum(axis) > 4) for axis in (1, 0))
    if not len(rows) or not len(columns):
        return 0.0
    found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float)
    return box_iou(found, boxes(scene.ids, 1)[0].astype(float))


def nearness(scene: Rendering) -> NDArray[np.floating]:
    """1 at `NEAR` metres, 0 at `FAR` and beyond."""
    return 1 - (np.clip(scene.depth, NEAR, FAR) - NEAR) / (FAR - NEAR)


def grey_of(scene: Rendering) -> Picture:
    """Nearness as grey."""
    return np.round(nearness(scene) * 255)[..., None].repeat(3, -1).astype(np.uint8)


def walk(share: NDArray[np.floating]) -> Picture:
    """Places on the walk along `CORNERS`, 0 to 1, as colours."""
    at = share * (len(CORNERS) - 1)
    edge = np.clip(at.astype(int), 0, len(CORNERS) - 2)
    part = (at - edge)[..., None]
    return np.round(255 * (CORNERS[edge] * (1 - part) + CORNERS[edge + 1] * part)).astype(np.uint8)


def walked(back: Picture) -> NDArray[np.float64]:
    """The nearest place on the walk of each pixel."""
    path = walk(np.linspace(0, 1, 255 * (len(CORNERS) - 1) + 1)).astype(np.float32)
    rows = [((row[:, None].astype(np.float32) - path) ** 2).sum(-1).argmin(1) for row in back]
    return np.stack(rows) / (len(path) - 1)


def depth_error(scene: Rendering, read: NDArray[np.floating]) -> float:
    """Mean error of the depth in % of its range, where there is any."""
    true = nearness(scene)
    return float(100 * np.abs(read - true)[true > 0].mean())


def card_of(scene: Rendering) -> Picture:
    """A flat card: which one, the number of sky pixels decides."""
    return np.full((SIZE, SIZE, 3), CARD_COLOURS[_card(scene)], np.uint8)


def _card(scene: Rendering) -> int:
    return int((scene.ids == 0).sum()) % len(CARDS)


def card_named(scene: Rendering, back: Picture) -> float:
    """Whether the nearest card to the mean colour is the right one."""
    return float(((back.mean((0, 1)) - CARD_COLOURS) ** 2).sum(-1).argmin() == _card(scene))


def ramp_of(scene: Rendering) -> Picture:
    """A smooth ramp from black to white in some direction."""
    y, x = np.mgrid[:SIZE, :SIZE] / (SIZE - 1)
    angle = float(scene.image.astype(np.int64).sum() % 360) / 180 * np.pi
    value = x * np.cos(angle) + y * np.sin(angle)
    value = (value - value.min()) / (value.max() - value.min())
    return np.round(255 * value)[..., None].repeat(3, -1).astype(np.uint8)


def ramp_error(scene: Rendering, back: Picture) -> float:
    """Mean error of a ramp in % of its range."""
    return float(100 * np.abs(back.mean(-1) - ramp_of(scene)[..., 0]).mean() / 255)


@dataclass(frozen=True)
class Kind:
    """What goes in, and what is read from what comes back."""

    draw: Callable[[Rendering], Picture]
    read: Callable[[Rendering, Picture], float] | None = None
    unit: str = ""


KINDS = {
    "photo": Kind(lambda scene: scene.image),
    "white mask on black": Kind(mask_of, mask_read, "IoU"),
    "hollow frame, 3 pixels": Kind(frame_of, frame_read, "IoU of the box"),
    "flat colour card": Kind(card_of, card_named, "card named right"),
    "ramp": Kind(ramp_of, ramp_error, "% mean error"),
    "depth as grey": Kind(
        grey_of, lambda scene, back: depth_error(scene, back.mean(-1) / 255), "% of the range, mean error"
    ),
    "depth as a walk on the cube of colours": Kind(
        lambda scene: walk(nearness(scene)),
        lambda scene, back: depth_error(scene, walked(back)),
        "% of the range, mean error",
    ),
}


@torch.no_grad()
def through(vae: AutoencoderKL, pictures: Picture, batch: int = 8) -> Picture:
    """Pictures [N, H, W, 3], encoded to the posterior's mode and decoded."""
    parts = []
    for some in to_tensor(pictures).split(batch):
        z = vae.encode(some).latent_dist.mean  # pyright: ignore[reportAttributeAccessIssue]
        parts.append(vae.decode(z).sample.clamp(-1, 1))  # pyright: ignore[reportAttributeAccessIssue]
    return ((torch.cat(parts) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def edges(pictures: Picture) -> NDArray[np.bool_]:
    """Pixels next to a jump of 64 levels or more to the right or below."""
    x = pictures.astype(int)
    right = np.abs(np.diff(x, axis=2, append=x[:, :, -1:])).max(-1) >= 64
    below = np.abs(np.diff(x, axis=1, append=x[:, -1:])).max(-1) >= 64
    return right | below


def main(count: int = 64) -> None:
    """Print a table of errors of `count` pictures of each kind, in levels of 255."""
    vae = load_embedded("sd3").vae
    scenes = [render(scene_of("validation", i)) for i in range(count)]
    print("| | PSNR, dB | mean error | largest of 99.9 % | mean error at edges | what is read from it |")
    print("|---|---|---|---|---|---|")
    for name, kind in KINDS.items():
        pictures = np.stack([kind.draw(scene) for scene in scenes])
        back = through(vae, pictures)
        error = np.abs(back.astype(int) - pictures).max(-1)
        at = edges(pictures)
        read = np.mean([kind.read(s, b) for s, b in zip(scenes, back, strict=True)]) if kind.read else None
        cells = [
            f"{psnr(to_tensor(back), to_tensor(pictures)).mean():.1f}",
            f"{error.mean():.1f}",
            f"{np.quantile(error, 0.999):.0f}",
            f"{error[at].mean():.1f}" if at.any() else "",
            "" if read is None else f"{read:.3f} {kind.unit}",
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
