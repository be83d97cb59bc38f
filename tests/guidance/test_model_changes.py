"""What happens to a model before or while it is guided keeps the numbers exact, or is refused."""

import types
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
from diffusers.hooks import apply_first_block_cache, apply_pyramid_attention_broadcast
from diffusers.models.attention_processor import JointAttnProcessor2_0
from torch.testing import assert_close

from dit_heads import HeadGuidance
from tests import tiny
from tests.guidance.by_hand import by_hand, run
from tests.tiny import inputs, sd3, weights

PYRAMID = PyramidAttentionBroadcastConfig(
    spatial_attention_block_skip_range=2,
    spatial_attention_timestep_skip_range=(-1, 2000),
    current_timestep_callback=lambda: 500,
)


def replaced_forward(model: Any) -> None:
    own = type(model).forward
    model.forward = types.MethodType(lambda self, *args, **kwargs: own(self, *args, **kwargs), model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: replaced_forward(m), "the forward of 'transformer' was replaced"),
        (lambda m: replaced_forward(m.transformer_blocks[2]), "the forward of 'transformer_blocks.2' was"),
        (lambda m: apply_first_block_cache(m, FirstBlockCacheConfig(threshold=0.1)), "a block cache"),
        (lambda m: apply_pyramid_attention_broadcast(m, PYRAMID), "hook pyramid_attention_broadcast"),
        (lambda m: setattr(m, "forward", torch.compile(m.forward, backend="eager")), "is compiled"),
    ],
    ids=["forward", "forward of a block", "block cache", "attention cache", "compiled forward"],
)
@pytest.mark.parametrize("attached", [False, True])
def test_what_hides_calls_is_refused_before_and_while_attached(pipe, change, message, attached):
    guide = HeadGuidance(pipe, "L1H0", trunk="two_pass")
    if attached:
        guide.attach()
    change(pipe.transformer)
    with pytest.raises(ValueError, match=message):
        run(pipe) if attached else guide.attach()
    guide.detach()


def test_a_processor_replaced_after_the_fork_is_noticed(pipe):
    with HeadGuidance(pipe, "L1H0"):
        pipe.transformer.transformer_blocks[0].attn.processor = JointAttnProcessor2_0()  # before the fork
        run(pipe)
        pipe.transformer.transformer_blocks[3].attn.processor = JointAttnProcessor2_0()
        with pytest.raises(ValueError, match=r"transformer_blocks\.3\.attn: its attention processor was"):
            run(pipe)


def test_changes_made_while_attached_are_noticed(pipe):
    with HeadGuidance(pipe, "L1H0"):
        pipe.transformer.fuse_qkv_projections()
        with pytest.raises(ValueError, match="was replaced by FusedJointAttnProcessor2_0"):
            run(pipe)
    kinds = {type(p).__name__ for p in pipe.transformer.attn_processors.values()}
    assert kinds == {"FusedJointAttnProcessor2_0"}
    with HeadGuidance(pipe, "L1H0"):
        pipe.transformer = sd3()
        with pytest.raises(ValueError, match="its transformer was replaced"):
            run(pipe)


def test_a_lora_loaded_while_attached_is_noticed(pipe):
    from peft import LoraConfig

    with HeadGuidance(pipe, "L1H0"):
        pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
        with pytest.raises(ValueError, match="its modules were changed"):
            run(pipe)
    plain = run(pipe)
    with HeadGuidance(pipe, "L1H0"):
        assert not torch.equal(run(pipe), plain)
    assert torch.equal(run(pipe), plain)


def test_a_lora_loaded_before_is_guided_with(pipe):
    from peft import LoraConfig

    torch.manual_seed(0)
    adapter = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    pipe.transformer.add_adapter(adapter)
    pipe.transformer.double()
    with HeadGuidance(pipe, "L1H0, L1H3, L3H2", scale=2.0, softness=0.7):
        got = run(pipe)
    assert_close(got, by_hand(pipe, weights(2, (1, 0, 0.7), (1, 3, 0.7), (3, 2, 0.7)), 2.0))


def test_a_lora_under_layerwise_casting_is_guided():
    from peft import LoraConfig

    model = sd3(dtype=torch.float32)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    given = {k: v.float() if v.is_floating_point() else v for k, v in inputs(2).items()}
    options: dict[str, Any] = {"scale": 2.0, "conditional": slice(None)}
    with torch.no_grad(), HeadGuidance(model, "L1H0", trunk="two_pass", **options):
        expected = model(**given).sample
    with torch.no_grad(), HeadGuidance(model, "L1H0", trunk="shared", **options):
        assert_close(model(**given).sample, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "compile",
    [lambda t: t.compile(backend="eager"), lambda t: t.transformer_blocks[2].compile(backend="eager")],
)
def test_compiled_transformers_are_refused_also_while_attached(pipe, compile):
    with HeadGuidance(pipe, "L1H0"):
        compile(pipe.transformer)
        with pytest.raises(ValueError, match="compiled"):
            run(pipe)
    with pytest.raises(ValueError, match="compiled"):
        HeadGuidance(pipe, "L1H0").attach()


def test_a_compiled_module_is_refused(pipe):
    with pytest.raises(ValueError, match="compiled"):
        HeadGuidance(torch.compile(pipe.transformer, backend="eager"), "L1H0", conditional=slice(None))


def test_block_caches_are_refused(pipe):
    from diffusers import FirstBlockCacheConfig
    from diffusers.hooks import apply_first_block_cache

    apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match="a block cache"):
        HeadGuidance(pipe, "L1H0").attach()


class Mixing(JointAttnProcessor2_0):
    """Looks across the rows of a batch."""

    def __call__(self, attn: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(attn, hidden_states + hidden_states.mean(0), *args, **kwargs)


@torch.no_grad()
def test_auto_takes_two_passes_where_a_processor_is_unknown_and_says_so():
    model: Any = sd3()
    model.transformer_blocks[2].attn.processor = Mixing()
    options: dict[str, Any] = {"scale": 2.0, "conditional": slice(None)}
    with HeadGuidance(model, "L1H0", trunk="two_pass", **options):
        expected = model(**inputs(2)).sample
    with HeadGuidance(model, "L1H0", **options) as guide:
        assert torch.equal(model(**inputs(2)).sample, expected)
        assert guide.report.trunk == "two_pass" and "has Mixing" in guide.report.reason
    with pytest.raises(ValueError, match=r"trunk: expected stock .* has Mixing"):
        HeadGuidance(model, "L1H0", trunk="shared", **options).attach()
    with HeadGuidance(model, "L3H0", **options) as guide:  # the fork lies behind it
        model(**inputs(2))
        assert guide.report.trunk == "shared"


@torch.no_grad()
@pytest.mark.parametrize("trunk", ["shared", "two_pass"])
def test_masks_have_the_rows_of_the_batch(trunk):
    model, arguments = tiny.flux(), inputs(4, "flux")
    tokens = arguments["encoder_hidden_states"].shape[1] + arguments["hidden_states"].shape[1]
    mask = torch.rand(4, 1, 1, tokens, generator=torch.Generator().manual_seed(0)) > 0.3
    call = {**arguments, "joint_attention_kwargs": {"attention_mask": mask}}
    with HeadGuidance(model, "L1H0, L3H2", scale=2.0, conditional=slice(2, 4), trunk=trunk):
        together = model(**call).sample
    for row in (2, 3):
        rows = slice(row, row + 1)
        alone = {k: v[rows] if len(v) == 4 else v for k, v in arguments.items()}
        alone["joint_attention_kwargs"] = {"attention_mask": mask[rows]}
        with HeadGuidance(model, "L1H0, L3H2", scale=2.0, conditional=slice(None), trunk=trunk):
            assert_close(together[rows], model(**alone).sample, atol=1e-5, rtol=1e-5)


def test_a_backend_set_while_attached_stays_set():
    from diffusers.models.attention_dispatch import attention_backend

    model: Any = tiny.flux()
    with attention_backend("native"):
        with HeadGuidance(model, "L1H0", conditional=slice(None)):
            model.set_attention_backend("_native_math")
        assert {p._attention_backend for p in model.attn_processors.values()} == {"_native_math"}


@torch.no_grad()
def test_sd3_does_not_take_up_the_backend_of_another_model():
    from diffusers.models.attention_dispatch import attention_backend

    model = sd3(dtype=torch.float32)
    given = {k: v.float() if v.is_floating_point() else v for k, v in inputs(2).items()}
    with HeadGuidance(model, "L1H0", conditional=slice(None)):
        expected = model(**given).sample
        with attention_backend("_native_cudnn"):  # cannot run here; stock SD3 does not ask for it
            assert torch.equal(model(**given).sample, expected)
