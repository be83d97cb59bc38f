"""The drop-in pipelines of pipelines/guided.py."""

import inspect
import json
from typing import Any

import diffusers
import pytest
import torch

from dit_heads import HeadGuidance
from dit_heads.pipelines import guided
from dit_heads.pipelines.guided import FluxHeadsPipeline, HeadsMixin, StableDiffusion3HeadsPipeline
from tests import tiny
from tests.saved import tiny_flux_pipeline, tiny_pipeline

CLASSES = [
    c
    for c in vars(guided).values()
    if inspect.isclass(c) and issubclass(c, HeadsMixin) and c is not HeadsMixin
]


@pytest.fixture
def pipe() -> Any:
    stock = tiny.pipeline(tiny.sd3())
    pipe: Any = StableDiffusion3HeadsPipeline(**stock.components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe: Any, **options: Any) -> Any:
    call = {"num_inference_steps": 3, "guidance_scale": 3.5, "output_type": "latent"}
    return pipe(**tiny.prompts(2), **(call | options)).images


@pytest.mark.parametrize("kind", CLASSES, ids=lambda c: c.__name__)
def test_each_is_the_diffusers_class_with_more_arguments(kind):
    stock = kind.stock
    assert issubclass(kind, stock) and stock.__module__.startswith("diffusers.")
    theirs, ours = (inspect.signature(c.__call__).parameters for c in (stock, kind))
    assert list(ours)[: len(theirs)] == list(theirs)
    assert {"heads", "head_guidance_scale", "softness"} <= set(ours) - set(theirs)
    assert ours["head_guidance_scale"].default == 3.0 and ours["heads"].default is None


def test_a_call_with_heads_is_head_guidance(pipe):
    got = run(pipe, heads="L1H0, L2", head_guidance_scale=2.0, softness=0.5, head_guidance_stop=0.5)
    stock: Any = tiny.pipeline(pipe.transformer)
    with HeadGuidance(stock, "L1H0, L2", scale=2.0, softness=0.5, stop=0.5):
        assert torch.equal(run(stock), got)
    assert pipe.head_guidance_report.guided == [0, 1]


def test_a_call_without_heads_is_the_parents(pipe):
    assert torch.equal(run(pipe), run(tiny.pipeline(pipe.transformer)))


def test_options_without_heads_are_refused(pipe):
    with pytest.raises(ValueError, match="heads: expected heads to guide by, got none with scale, softness"):
        run(pipe, softness=0.5, head_guidance_scale=2.0)


def test_bad_heads_are_refused_and_the_pipeline_stays_whole(pipe):
    with pytest.raises(ValueError, match="blocks L0 to L3, got L9"):
        run(pipe, heads="L9")
    run(pipe, heads="L1")


def test_a_saved_folder_loads_in_stock_diffusers(tmp_path):
    pipe: Any = StableDiffusion3HeadsPipeline(**tiny_pipeline().components)
    pipe.save_pretrained(tmp_path)
    assert (
        json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "StableDiffusion3Pipeline"
    )
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    assert type(again) is diffusers.StableDiffusion3Pipeline
    assert type(StableDiffusion3HeadsPipeline.from_pretrained(tmp_path)) is StableDiffusion3HeadsPipeline


def test_a_stock_pipeline_can_be_turned_into_one():
    pipe: Any = StableDiffusion3HeadsPipeline.from_pipe(tiny_pipeline())
    pipe.set_progress_bar_config(disable=True)
    images = pipe("a cat", heads="L1H0", num_inference_steps=1, output_type="np").images
    assert images.shape == (1, 32, 32, 3)


AUTO = (
    (diffusers.AutoPipelineForText2Image, ""),
    (diffusers.AutoPipelineForImage2Image, "Img2Img"),
    (diffusers.AutoPipelineForInpainting, "Inpaint"),
)


@pytest.mark.parametrize("family", ["StableDiffusion3", "Flux"])
def test_auto_pipelines_turn_one_into_that_of_another_task(family):
    made = tiny_pipeline() if family == "StableDiffusion3" else tiny_flux_pipeline()
    pipe = getattr(guided, f"{family}HeadsPipeline")(**made.components)
    for auto, task in AUTO:
        pipe = auto.from_pipe(pipe)  # from the task before it
        assert type(pipe) is getattr(guided, f"{family}Heads{task}Pipeline")
        assert pipe.transformer is made.transformer
        assert type(auto.from_pipe(made)) is type(pipe).stock  # stock pipelines stay stock


def test_flux_takes_heads_too():
    parts: Any = dict.fromkeys(["vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"])
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe: Any = FluxHeadsPipeline(transformer=tiny.flux(), scheduler=scheduler, **parts)
    pipe.set_progress_bar_config(disable=True)
    given = {k: v for k, v in tiny.prompts(1).items() if k in ("prompt_embeds", "pooled_prompt_embeds")}
    call = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "latent"}
    pictures = [
        pipe(**given, **call, **heads, generator=torch.Generator().manual_seed(0)).images
        for heads in ({}, {"heads": "L3H1"})
    ]
    assert not torch.allclose(*pictures)


def test_a_subclass_of_a_drop_in_pipeline_is_guided_like_it():
    class Mine(guided.StableDiffusion3HeadsPipeline):
        """As users write it."""

    assert Mine.stock is guided.StableDiffusion3HeadsPipeline.stock
    assert Mine.__call__ is guided.StableDiffusion3HeadsPipeline.__call__
    assert "heads" in inspect.signature(Mine.__call__).parameters
