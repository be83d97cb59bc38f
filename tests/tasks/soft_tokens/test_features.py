"""Features of heads, against hooks that are written by hand for each architecture."""

from typing import Any

import pytest
import torch

from dit_heads.errors import InputError
from dit_heads.families import layout_of, training_of
from dit_heads.tasks.soft_tokens import features
from dit_heads.tasks.soft_tokens.features import (
    FeatureConfig,
    Normaliser,
    channels_of,
    features_of,
    massive_channels,
)
from tests.tiny import BLOCKS, DIM, HEADS, MODELS, transformer

LEVELS = (0.1, 0.4)


def given(kind: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    shapes = ((2, 4, 8, 8), (2, 5, 16), (2, 12))
    latents, text, pooled = (torch.randn(s, generator=g, dtype=torch.float64) for s in shapes)
    return latents, text, pooled


def by_hand(model: Any, kind: str, wanted: str, latents: Any, text: Any, pooled: Any) -> dict[int, Any]:
    """What hooks on the modules see in one pass a level: rows of image tokens, by block."""
    found: dict[int, list[Any]] = {block: [] for block in range(BLOCKS)}
    single = kind == "flux"
    blocks = list(model.transformer_blocks) + (list(model.single_transformer_blocks) if single else [])

    def output_of(block: int, whole: bool) -> Any:
        rows = slice(text.shape[1], None) if whole else slice(None)
        return lambda _, args, out=None: found[block].append((args[0] if out is None else out)[:, rows])

    hooks = []
    for number, block in enumerate(blocks):
        whole = single and number >= len(model.transformer_blocks)
        if wanted == "inputs":
            take = output_of(number, whole)
            hooks.append(
                block.attn.register_forward_pre_hook(
                    lambda m, a, kw, take=take: take(m, (kw["hidden_states"],)), with_kwargs=True
                )
            )
        elif whole:
            hooks.append(block.attn.register_forward_hook(output_of(number, whole)))
        else:
            hooks.append(block.attn.to_out[0].register_forward_pre_hook(output_of(number, whole)))
    with torch.no_grad():
        for level in LEVELS:
            noisy = (1 - level) * latents + level * features._noise(latents, level)
            sigmas = torch.full((2,), level, dtype=torch.float64)
            training_of(model).velocity(model, noisy, sigmas, text, pooled, 1.0)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("wanted", ["outputs", "inputs"])
def test_features_are_what_hooks_by_hand_see(kind: str, wanted: Any):
    model, parts = transformer(kind), given(kind)
    hand = by_hand(model, kind, wanted, *parts)
    heads = "L1H0, L1H2, L3" if wanted == "outputs" else "L1H0, L3"
    got = features_of(model, *parts, FeatureConfig(heads, wanted, LEVELS))
    expected = []
    for level in range(len(LEVELS)):
        first, last = hand[1][level], hand[3][level]
        chosen = first.unflatten(-1, (HEADS, DIM))[..., [0, 2], :].flatten(-2)
        expected += [chosen if wanted == "outputs" else first, last]
    assert torch.allclose(got, torch.cat(expected, -1), atol=1e-10)
    assert got.shape[1] == 16


@pytest.mark.parametrize("kind", ["sd3.5-medium", "flux"])
def test_channels_have_the_names_of_their_heads(kind: str):
    model, parts = transformer(kind), given(kind)
    for wanted in ("outputs", "inputs"):
        config = FeatureConfig("all", wanted, (0.2,))  # pyright: ignore[reportArgumentType]
        found = channels_of(model, config)
        assert sum(found.width) == features_of(model, *parts, config).shape[-1]
        assert len(set(found.names)) == len(found.names)
    assert found.names[:2] == (("L0", "L0i") if kind == "sd3.5-medium" else ("L0", "L1"))


def test_the_model_is_as_it_was_afterwards():
    model, parts = transformer("sd3.5-medium"), given("sd3")
    before = dict(model.attn_processors)
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    features_of(model, *parts, FeatureConfig())
    with pytest.raises(InputError, match="the model has blocks L0 to L3"):
        features_of(model, *parts, FeatureConfig("L9"))
    assert all(model.attn_processors[name] is each for name, each in before.items())
    assert hooks == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]


def test_one_forward_pass_a_level_and_the_same_features_in_any_batch():
    model, (latents, text, pooled) = transformer("sd3"), given("sd3")
    calls = []
    hook = model.register_forward_hook(lambda *_: calls.append(1))
    both = features_of(model, latents, text, pooled, FeatureConfig(levels=LEVELS))
    hook.remove()
    assert len(calls) == 2
    alone = features_of(model, latents[1:], text[1:], pooled[1:], FeatureConfig(levels=LEVELS))
    assert torch.allclose(both[1:], alone, atol=1e-10)


def test_massive_channels_are_dropped_and_the_others_normalised():
    x = torch.randn(50, 4, 8, generator=torch.Generator().manual_seed(0)) + 1
    x[..., 3] *= 100
    assert massive_channels(x).tolist() == [3]
    normaliser = Normaliser.fitted(x)
    found = normaliser(x).flatten(0, 1)
    assert found.shape[-1] == 7
    assert found.mean(0).abs().max() < 1e-4 and (found.std(0) - 1).abs().max() < 1e-4


@pytest.mark.parametrize(
    "change",
    [{"levels": ()}, {"levels": (0.1, 0.1)}, {"levels": (1.5,)}, {"heads": "block 3"}, {"kind": "all"}],
)
def test_settings_that_do_not_fit_are_refused(change: dict):
    with pytest.raises(InputError):
        FeatureConfig(**change)


def test_two_heads_of_one_block_and_layouts_agree():
    layout = layout_of(transformer("sd3.5-medium"))
    assert len(features.chosen_heads(layout, "all")) == BLOCKS * HEADS + 3 * HEADS
