"""Train the embedded models: `python -m dit_heads.embedded.train vae|clip|judge|t5|sd3|export`, then
`flux|distill|export-flux`.

Runs are kept in the cache folder. They can be stopped at any time; run the same command again to resume.
`export` writes the weights that ship with the package from the existing checkpoints.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
import tyro
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import T5EncoderModel

from dit_heads.embedded import WEIGHTS, load_embedded
from dit_heads.embedded.export import export_flux_weights, export_weights, packaged
from dit_heads.embedded.nets import flux, sd3
from dit_heads.embedded.nets.clip import Clip, ClipLoss, retrieval
from dit_heads.embedded.nets.corpus import STOCK, Corpus, encode_latents, make_composites
from dit_heads.embedded.nets.judge import Judge, JudgeLoss, labels, verdict
from dit_heads.embedded.nets.reader import Reader, ReaderLoss, make_directed_t5, reading
from dit_heads.embedded.nets.vae import VaeLoss, latent_statistics, make_vae, reconstruction_psnr, to_tensor
from dit_heads.embedded.world.captions import GRIDS, caption, scenes_caption
from dit_heads.embedded.world.data import cache_folder, load_shards, scene_of
from dit_heads.embedded.world.scenes import Scene
from dit_heads.embedded.world.text import make_clip_tokenizer, make_t5_tokenizer
from dit_heads.io.atomic import atomic_file
from dit_heads.training.checkpoints import load_weights, read_average
from dit_heads.training.loop import FitConfig, fit
from dit_heads.training.precision import bf16_is_faster

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")
DISTILLED = "flux-distilled"
COMPOSITES = (1200, 700, 900, 900, 700, 200)  # number of composites for each of `GRIDS`
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _folder(name: str) -> Path:
    return cache_folder() / name


def _train_images(shards: int) -> NDArray[np.uint8]:
    return np.concatenate([images for images, _ in load_shards("train", shards)])


def _scenes(count: int, split: str = "train") -> list[Scene]:
    return [scene_of(split, i) for i in range(count)]  # pyright: ignore[reportArgumentType]


def _validation(count: int) -> NDArray[np.uint8]:
    return next(load_shards("validation", 1, count=1000))[0][:count]


def _has_run(name: str) -> bool:
    return (_folder(name) / "checkpoint.safetensors").exists()


def _run(part: str, warm: int) -> str:
    """The name of a run: from scratch, or the n-th that starts from the shipped weights."""
    return f"{part}-warm-{warm}" if warm else f"{part}-v1"


def _last(part: str) -> str:
    """The latest existing run of a part."""
    return next(name for n in range(9, -1, -1) if _has_run(name := _run(part, n)) or not n)


def trained(model: M, name: str) -> M:
    """A model with the averaged weights of a run such as "clip-v1"; without that run, the shipped weights."""
    if _has_run(name):
        weights, step, _ = read_average(_folder(name))
        print(f"{name}: weights of step {step}")
    else:
        weights = packaged(name.split("-")[0])
        print(f"{name}: no run in {cache_folder()}, so the shipped weights")
    load_weights(model, weights)
    return model.to(DEVICE).eval()


def _channels_last(model: M) -> M:
    return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def vae(steps: int = 4000, shards: int = 6) -> None:
    """Train the autoencoder on crops of 64 x 64 pixels."""
    torch.manual_seed(0)
    model = make_vae()
    config = FitConfig(steps, 2e-3, "muon", warmup=100, ema=0.998, weight_decay=1e-4, seed=1)
    fit(model, VaeLoss(model, _train_images(shards)), config, _folder("vae-v2"))
    print(f"validation PSNR {reconstruction_psnr(model.cpu(), _validation(512)):.2f} dB")


def clip(steps: int = 2500, shards: int = 6) -> None:
    """Train both text towers of CLIP and its image tower."""
    images = _train_images(shards)
    torch.manual_seed(0)
    tokenizer = make_clip_tokenizer()
    model = Clip(len(tokenizer))
    config = FitConfig(steps, 2e-3, "muon", warmup=100, ema=0.998, weight_decay=0.05, seed=2)
    fit(model, ClipLoss(model, tokenizer, images, _scenes(len(images))), config, _folder("clip-v1"))
    right = retrieval(model.cpu(), tokenizer, _validation(250), _scenes(250, "validation"))
    print(f"own caption first among 250: {right[0]:.1%} (first tower), {right[1]:.1%} (second)")


def judge(steps: int = 6000, shards: int = 7) -> None:
    """Train the judge of attributes and report its accuracy on fresh renders."""
    data = list(load_shards("train", shards))
    images, coverage = (np.concatenate(part) for part in zip(*data, strict=True))
    torch.manual_seed(0)
    model = _channels_last(Judge())
    config = FitConfig(steps, 2e-3, "muon", warmup=100, ema=0.998, weight_decay=0.02, seed=3)
    fit(model, JudgeLoss(model, images, coverage, labels(_scenes(len(images)))), config, _folder("judge-v1"))
    seen = verdict(model.cpu(), to_tensor(_validation(1000)), _scenes(1000, "validation")).accuracy()
    print("accuracy on 1000 fresh renders:", {k: round(v, 4) for k, v in seen.items()})


@dataclass(frozen=True)
class Recipe:
    """Settings of the training of a transformer."""

    steps: int = 5000
    shards: int = 5
    batch: int = 64
    hours: float | None = None
    """Hours after which the run stops early, with a checkpoint."""
    warm: int = 0
    """Number of the run that starts from the shipped weights. 0 trains from scratch."""
    shift: float = sd3.SHIFT
    """Shift of the noise levels. 1 trains more at low noise, where textures form."""
    objects: float = 0.0
    """Additional weight of errors on solids."""
    dots: float = 1.0
    """Relative frequency of scenes with dotted solids."""
    panels: float = 0.1
    """Share of batches that are composites of unrelated panels."""
    composites: int = 1
    """Number of composites, in units of 5,100."""
    clip_dropout: float = 0.0
    """Share of captions that only T5 reads, and CLIP does not (arXiv 2403.03206)."""
    rate: float = 1.5e-3
    """Peak learning rate."""
    long: float = 0.1
    """Fraction of the run, at its end, in which every other batch of single pictures has the pipeline's
    default text length."""
    probe: bool = False
    """Use the probe in a run that starts from the shipped weights, too."""
    decline: float = 0.3
    """Fraction of the run, at its end, in which the learning rate decays."""
    precision: str = "auto"
    """Precision: no, bf16 or auto, which measures the speed and depends on the machine's load."""

    def fit(self, part: str, student: sd3.Probed, loss: sd3.ProbedLoss, seed: int) -> None:
        if self.warm:
            load_weights(student, packaged(part))
        config = FitConfig(
            self.steps,
            self.rate,
            "muon",
            decline=self.decline,
            ema=0.9995,
            weight_decay=0.01,
            precision=self.precision,
            seed=seed,
        )
        fit(student, loss, config, _folder(_run(part, self.warm)), until=_until(self.hours))

    def corpus(self, stock: int) -> Corpus:
        draws = {"dots": self.dots, "panels": self.panels, "clip_dropout": self.clip_dropout}
        return _corpus(self.shards, self.batch, stock, self.composites, **draws)

    def weights(self) -> dict[str, Any]:
        probed = self.probe or not self.warm
        return {"shift": self.shift, "objects": self.objects, "probed": probed, "long": self.long}


Options = Annotated[Recipe, tyro.conf.arg(name="")]


def sd3_model(recipe: Options) -> None:
    """Train the SD3 transformer."""
    towers = trained(Clip(len(make_clip_tokenizer())), "clip-v1")
    texts = sd3.TextEncoders(towers.text, towers.text_2, _t5())
    torch.manual_seed(0)
    student = sd3.Student()
    corpus = recipe.corpus(STOCK)
    loss = sd3.Sd3Loss(student, texts, corpus, recipe.steps, **recipe.weights())
    recipe.fit("sd3", student, loss, seed=4)


def t5(steps: int = 1500, shards: int = 6, warm: bool = False) -> None:
    """Train T5, before the transformers, to tell which attribute belongs to which solid of which panel.

    A warm run starts from the shipped T5 and keeps its tokens of single captions similar.
    """
    scenes, tokenizer, model = _scenes(4000 * shards), make_t5_tokenizer(), _new_reader()
    kept = None
    if warm:
        load_weights(model, packaged("t5"))
        kept = copy.deepcopy(model.t5).eval().requires_grad_(False)
        kept.to(DEVICE)  # pyright: ignore[reportArgumentType]
    config = FitConfig(steps, 2e-3, "muon", warmup=100, ema=0.995, weight_decay=0.01, seed=7, log_every=20)
    fit(model, ReaderLoss(model, tokenizer, scenes, anchor=kept), config, _folder("t5-v2"))
    _report_reading(model.cpu(), tokenizer)


def _report_reading(model: Reader, tokenizer: Any) -> None:
    """Print the share of solids in unseen captions that are read correctly, by number of panels."""
    rng = np.random.default_rng(0)
    unseen = _scenes(1000, "validation")
    right = reading(model, tokenizer, unseen, [caption(scene) for scene in unseen])
    print(f"solids of 1000 unseen captions read right: {right:.1%}")
    for rows, columns in GRIDS:
        panels = rows * columns
        sheets = [unseen[at : at + panels] for at in range(0, len(unseen) - panels + 1, panels)]
        texts = [scenes_caption(scenes, rows, columns, rng) for scenes in sheets]
        right = reading(model, tokenizer, [s for scenes in sheets for s in scenes], texts, panels)
        print(f"solids of {len(texts)} joint captions of {rows} x {columns} panels: {right:.1%}")


def _new_reader() -> Reader:
    torch.manual_seed(0)
    return Reader(make_directed_t5(len(make_t5_tokenizer())))


def _t5() -> T5EncoderModel:
    return trained(_new_reader(), "t5-v2").t5


def flux_model(recipe: Options) -> None:
    """Train the FLUX transformer on the latents and texts of SD3, with its guidance embedding at 1."""
    student = _flux_student()
    corpus = recipe.corpus(flux.STOCK)
    loss = flux.FluxLoss(student, _flux_texts(), corpus, recipe.steps, **recipe.weights())
    recipe.fit("flux", student, loss, seed=5)


def distill(steps: int = 1500, shards: int = 5, batch: int = 64, hours: float | None = None) -> None:
    """Distil CFG into the guidance embedding of the FLUX transformer."""
    corpus, student = _corpus(shards, batch, flux.STOCK), trained(_flux_student(), _last("flux"))
    texts, teacher = _flux_texts(), copy.deepcopy(student.transformer)
    config = FitConfig(steps, 5e-4, "muon", warmup=100, ema=0.999, weight_decay=0.01, seed=6)
    loss = flux.DistilledLoss(student, teacher, texts, corpus, steps)
    fit(student, loss, config, _folder(DISTILLED), until=_until(hours))


def _flux_student() -> flux.FluxStudent:
    torch.manual_seed(0)
    return flux.FluxStudent()


def _flux_texts() -> flux.FluxTexts:
    return flux.FluxTexts(flux.load_clip_text(WEIGHTS).to(DEVICE), _t5())  # pyright: ignore[reportArgumentType]


def _until(hours: float | None) -> float | None:
    return None if hours is None else time.time() + 3600 * hours


def normalised_vae() -> AutoencoderKL:
    """The trained autoencoder, with the shift and scale of its latents in its config."""
    model = trained(make_vae(), "vae-v2")
    if not _has_run("vae-v2"):
        shipped = load_embedded("sd3").vae.config
        model.register_to_config(shift_factor=shipped.shift_factor, scaling_factor=shipped.scaling_factor)
        return model
    shift, scale = latent_statistics(model, _validation(512))
    model.register_to_config(shift_factor=round(shift, 5), scaling_factor=round(scale, 5))
    return model


def _corpus(shards: int, batch: int, stock: int, times: int = 1, **draws: float) -> Corpus:
    """The training data, with `times` as many composites as `COMPOSITES`. Latents are cached in files."""
    data = list(load_shards("train", shards))
    images, coverage = (np.concatenate(part) for part in zip(*data, strict=True))
    vae = _channels_last(normalised_vae())
    vae = vae.bfloat16() if DEVICE.type == "cpu" and bf16_is_faster() else vae
    singles = [_cached(f"latents-v2/{k}.pt", encode_latents, vae, shard) for k, (shard, _) in enumerate(data)]
    composites = [
        _cached(_sheets(grid, times * count), make_composites, vae, images, grid, times * count)
        for grid, count in zip(GRIDS, COMPOSITES, strict=True)
    ]
    return Corpus(torch.cat(singles), coverage, _scenes(len(coverage)), composites, batch, stock, **draws)


def _sheets(grid: tuple[int, int], count: int) -> str:
    return f"latents-v2/{grid[0]}x{grid[1]}-{count}.pt"


def _cached(name: str, make: Callable[..., T], *arguments: Any) -> T:
    """The result of `make`, cached in a file."""
    path = _folder(name)
    if not path.exists():
        made = make(*arguments)
        with atomic_file(path) as file:
            torch.save(made, file)
    return torch.load(path, weights_only=True)


def export(out: Path = WEIGHTS) -> None:
    """Write weights from the runs in the cache folder, finished or not, into the package or another folder.

    Parts without a run keep the shipped weights.
    """
    student = trained(sd3.Student(), _last("sd3"))
    towers = trained(Clip(len(make_clip_tokenizer())), "clip-v1")
    export_weights(student, towers, _t5(), normalised_vae(), trained(Judge(), "judge-v1"), out)


def export_flux() -> None:
    """Write the FLUX transformer. Its pipeline shares all other parts with SD3."""
    student = trained(_flux_student(), _last("flux"))
    export_flux_weights(trained(student, DISTILLED) if _has_run(DISTILLED) else student)


COMMANDS = {
    "vae": vae,
    "clip": clip,
    "judge": judge,
    "sd3": sd3_model,
    "export": export,
    "t5": t5,
    "flux": flux_model,
    "distill": distill,
    "export-flux": export_flux,
}



def quick_attention() -> AbstractContextManager[Any]:
    """A context in which attention trains faster: on a CPU in bf16, the backward pass of flash attention is
    slow, and with the plain kernel a step takes two thirds of the time."""
    return nullcontext() if DEVICE.type == "cuda" else sdpa_kernel(SDPBackend.MATH)


if __name__ == "__main__":
    with quick_attention():
        tyro.extras.subcommand_cli_from_dict(COMMANDS)
