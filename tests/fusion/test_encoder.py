"""The encoder of reference pictures: it starts as its semantic branch, and reads patches as the model
does."""

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from dit_heads.errors import InputError
from dit_heads.families import pipelines_of
from dit_heads.fusion.encoder import FusionConfig, ReferenceEncoder, patches_of, positions
from dit_heads.training.widen import widened
from tests.saved import PIPELINES

CONFIG = FusionConfig(vision=12, patches=16, text=20, tokens=3, width=8, heads=2)


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 5, 12, generator=generator), torch.randn(2, 9, 16, generator=generator)


def encoder() -> ReferenceEncoder:
    torch.manual_seed(0)
    return ReferenceEncoder(CONFIG).eval()


def test_an_untrained_encoder_gives_the_semantic_tokens_alone():
    model, (vision, patches) = encoder(), inputs()
    assert model(vision, patches).shape == (2, 3, 20)
    assert torch.equal(model(vision, patches), model(vision, None))
    assert not torch.equal(model(vision, None), model(vision.flip(0), None))


def test_a_trained_one_reads_patches_and_their_places():
    model, (vision, patches) = encoder(), inputs()
    torch.nn.init.normal_(model.look.out_proj.weight)
    assert not torch.allclose(model(vision, patches), model(vision, None))
    assert not torch.allclose(model(vision, patches), model(vision, patches.flip(1)))
    assert model(None, patches).shape == (2, 3, 20)


def test_gradients_reach_patches_after_the_first_step():
    model, (vision, patches) = encoder(), inputs()
    model(vision, patches).square().mean().backward()
    gradient = model.look.out_proj.weight.grad
    assert gradient is not None and gradient.abs().sum() > 0


@pytest.mark.parametrize("kind", PIPELINES)
def test_patches_are_those_that_the_transformer_makes(kind: str):
    pipe: Any = PIPELINES[kind]()
    transformer, seen = pipe.transformer, {}
    patch = transformer.get_submodule({"sd3": "pos_embed.proj", "flux": "x_embedder"}[kind])
    hooks = [
        patch.register_forward_pre_hook(lambda _, args: seen.update(read=args[0])),
        patch.register_forward_hook(lambda _, args, output: seen.update(made=output)),
    ]
    pipe("a", height=32, width=32, num_inference_steps=1, guidance_scale=1.0, output_type="latent")
    for hook in hooks:
        hook.remove()
    latents, wanted = seen["read"], seen["made"]
    if kind == "sd3":
        wanted = wanted.flatten(2).transpose(1, 2)
    else:
        latents = pipelines_of(transformer).unpack(latents, 16, 16)
    assert_close(patches_of(transformer, latents), wanted)
    with widened(transformer, 4):
        assert_close(patches_of(transformer, latents), wanted)


def test_places_differ_and_need_a_square():
    found = positions(torch.zeros(2, 9, 16))
    assert found.shape == (1, 9, 16)
    assert len({tuple(row.tolist()) for row in found[0]}) == 9
    with pytest.raises(InputError, match="patches: expected a square of patches of a width 4 n, got 8 of 16"):
        positions(torch.zeros(1, 8, 16))


def test_sizes_and_inputs_that_do_not_fit_are_named():
    with pytest.raises(InputError, match="width: expected a multiple of 3 heads, got 8"):
        FusionConfig(vision=1, patches=4, text=1, width=8, heads=3)
    with pytest.raises(InputError, match="tokens: expected a whole number of at least 1, got 0"):
        FusionConfig(vision=1, patches=4, text=1, tokens=0)
    with pytest.raises(InputError, match="vision, patches: expected at least one"):
        encoder()(None, None)
