"""One step of a run, against the same step written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from PIL import Image
from torch import Tensor
from torch.func import functional_call
from torch.testing import assert_close

from dit_heads.loras import train as trainer
from dit_heads.loras.config import TrainConfig
from dit_heads.loras.tasks.in_context import sets_of
from dit_heads.loras.tasks.loss import FlowLoss
from dit_heads.loras.train import train
from dit_heads.training.generators import keyed_generator
from dit_heads.training.loop import Part
from tests.loras.runs import CAPTIONS, TOKENS, settings

# --- one step ---


STEP, SEED, DROPOUT = 5, 3, 0.4


PANELS = (1.0, 3.0)


def asked(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Any]:
    """The loss of one step of a run, before anything was trained but with B at random, and the transformer
    with its gradients."""
    found: list[Any] = []

    def fit(model: Any, loss: FlowLoss, *_: Any, **__: Any) -> None:
        g = torch.Generator().manual_seed(9)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=g))
        value = loss(Part(STEP), torch.Generator())[0]
        value.backward()
        found.extend([value.detach(), model])

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "fit", fit)
        train(config)
    return found[0], found[1]


def draws(data: Any, count: int, shift: float) -> tuple[list[str], list[str], Tensor, list[Tensor]]:
    """Of each sample of the step: its caption, what is said of it, noise level and noise of 4 x 8 x 16."""
    captions = [sample.caption for sample in data.batch_at(STEP, count)]
    said, sigmas, noise = [], [], []
    for place, caption in enumerate(captions):
        g = keyed_generator(SEED, "set", STEP, place)
        said.append("" if torch.rand((), generator=g).item() < DROPOUT else caption)
        u = 1 / (1 + torch.exp(-torch.randn(1, generator=g)))
        sigmas.append(shift / (shift + 1 / u - 1))
        noise.append(torch.randn(4, 8, 16, generator=g))
    return captions, said, torch.cat(sigmas), noise


def pixels(sets: Path, caption: str) -> Tensor:
    """A composite [1, 3, 64, 128] in -1 to 1."""
    folder = sets / f"set{CAPTIONS.index(caption)}"
    both = [np.asarray(Image.open(folder / f"{p}.png")) for p in range(2)]
    return torch.from_numpy(np.concatenate(both, 1)).permute(2, 0, 1)[None] / 127.5 - 1


def by_hand(kind: str, pipe: Any, lora: dict[str, Tensor], sets: Path, scale: float) -> Tensor:
    """The loss of the step, weights W + scale B A written out."""
    data: Any = sets_of(settings("", sets, Path()).data, sets, SEED)
    tokens = (64 // 16) * (128 // 16)
    shift = 3.0 if kind == "sd3" else float(np.exp(calculate_shift(tokens, 256, 4096, 0.5, 1.15)))
    captions, said, s, noises = draws(data, 3, shift)
    with torch.no_grad():
        encoded = torch.cat([pipe.vae.encode(pixels(sets, c)).latent_dist.mean for c in captions])
        latents = (encoded - 0.06) * 1.5
        if kind == "sd3":
            text, _, pooled, _ = pipe.encode_prompt(
                said, said, said, do_classifier_free_guidance=False, max_sequence_length=TOKENS
            )
        else:
            text, pooled, _ = pipe.encode_prompt(said, said, max_sequence_length=TOKENS)
    noise = torch.stack(noises)
    level = s.view(-1, 1, 1, 1)
    x, target = (1 - level) * latents + level * noise, noise - latents
    weight = torch.cat([torch.full((8, 8), PANELS[0]), torch.full((8, 8), PANELS[1])], 1)
    weight = (weight / (sum(PANELS) / 2)).expand_as(target)
    call: dict[str, Any] = {"encoder_hidden_states": text, "pooled_projections": pooled, "return_dict": False}
    if kind == "sd3":
        call |= {"hidden_states": x, "timestep": 1000 * s}
    else:
        x, target, weight = (FluxPipeline._pack_latents(t, 3, 4, 8, 16) for t in (x, target, weight))
        place = FluxPipeline._prepare_latent_image_ids(3, 4, 8, torch.device("cpu"), torch.float32)
        call |= {"hidden_states": x, "timestep": s, "guidance": torch.ones(3)}
        call |= {"img_ids": place, "txt_ids": torch.zeros(TOKENS, 3)}
    changed: dict[str, Tensor] = dict(pipe.transformer.named_parameters())
    for name in [name.removesuffix(".lora_A") for name in lora if name.endswith(".lora_A")]:
        product = lora[f"{name}.lora_B"] @ lora[f"{name}.lora_A"]
        changed[f"{name}.weight"] = changed[f"{name}.weight"].detach() + scale * product
    predicted = functional_call(pipe.transformer, changed, kwargs=call)[0]
    return (weight * (predicted - target) ** 2).sum() / target.numel()


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_loss_and_gradients_of_a_step_equal_those_by_hand(
    kind: str, models: dict[str, Path], sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = settings(
        models[kind],
        sets,
        tmp_path / "run",
        seed=SEED,
        adapter={"rank": 2, "alpha": 5.0, "targets": ["attention", "mlp"]},
        loss={"caption_dropout": DROPOUT, "panel_weights": list(PANELS)},
        optimization={"batch_size": 3},
    )
    loss, model = asked(config, monkeypatch)
    model = model["transformer"]
    ours = {name.replace(".default.weight", ""): p for name, p in model.named_parameters() if p.requires_grad}
    pipe = DiffusionPipeline.from_pretrained(models[kind])
    lora = {name: p.detach().clone().requires_grad_() for name, p in ours.items()}
    expected = by_hand(kind, pipe, lora, sets, 2.5)
    gradients = torch.autograd.grad(expected, list(lora.values()), allow_unused=True)
    assert_close(loss, expected.detach())
    for (name, p), gradient in zip(ours.items(), gradients, strict=True):
        if p.grad is None:
            assert gradient is None or not gradient.any(), name
        else:
            assert gradient is not None, name
            assert_close(p.grad, gradient, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
    assert sum(bool(g is not None and g.any()) for g in gradients) > 30


def test_the_embedded_model_trains_faster_in_bf16_and_to_the_same(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its attention is written out then: a third faster, and the same loss."""
    losses, kinds = [], []
    for precision in ("no", "bf16"):
        config = settings(
            "embedded",
            sets,
            tmp_path / precision,
            seed=SEED,
            data={"sizes": [[64, 64]], "text_tokens": 32},
            optimization={"batch_size": 2, "precision": precision},
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss, model = asked(config, monkeypatch)
        losses.append(loss.item())
        kinds.append({type(p).__name__ for p in model["transformer"].attn_processors.values()})
    assert kinds == [{"JointAttnProcessor2_0"}, {"ExplicitJointAttention"}]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
