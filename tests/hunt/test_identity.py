"""A log goes on with the very same pipeline and objective alone, and says what differs."""

from collections.abc import Callable
from typing import Any

import accelerate
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from PIL import Image
from torch import nn

from dit_heads.errors import InputError
from dit_heads.hunt.config import HuntConfig
from dit_heads.hunt.hunter import HeadHunter
from dit_heads.hunt.identity import objective_identity, pipeline_identity, plain
from dit_heads.hunt.log import differences
from dit_heads.objectives import Threshold, WeightedSum
from tests.saved import red, tiny_flux_pipeline, tiny_pipeline


def nudge(module: nn.Module) -> None:
    weight = list(module.parameters())[-1]
    with torch.no_grad():
        weight.view(-1)[-1] += 1e-3


def shift(pipe: Any) -> None:
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=12.0)


def heun(pipe: Any) -> None:
    pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)


def scaling(pipe: Any) -> None:
    pipe.vae.register_to_config(scaling_factor=1.4)


def words(pipe: Any) -> None:
    pipe.tokenizer_3.add_tokens("cat")


def length(pipe: Any) -> None:
    pipe.tokenizer.model_max_length = 16


def without(pipe: Any) -> None:
    pipe.text_encoder_3 = None


CHANGES: list[tuple[Callable[[Any], object], str]] = [
    (shift, r"components\.scheduler\.config\.shift: 3\.0 there, 12\.0 here"),
    (heun, r"components\.scheduler\.class: 'FlowMatchEuler.*' there, 'FlowMatchHeun.*' here"),
    (lambda pipe: nudge(pipe.transformer), r"components\.transformer\.weights"),
    (lambda pipe: nudge(pipe.vae), r"components\.vae\.weights"),
    (scaling, r"components\.vae\.config\.scaling_factor: 1\.5 there, 1\.4 here"),
    (lambda pipe: nudge(pipe.text_encoder), r"components\.text_encoder\.weights"),
    (lambda pipe: nudge(pipe.text_encoder_3), r"components\.text_encoder_3\.weights"),
    (without, r"components\.text_encoder_3: .* there, None here"),
    (words, r"components\.tokenizer_3\.content"),
    (length, r"components\.tokenizer\.content"),
    (lambda pipe: pipe.transformer.half(), r"transformer\.dtype: 'float32' there, 'float16' here"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_another_pipeline_in_the_same_folder_is_refused_with_what_differs(change, message, tmp_path):
    HeadHunter(tiny_pipeline(), red, ["a cat"], tmp_path)
    other = tiny_pipeline()
    change(other)
    with pytest.raises(InputError, match=rf"log: .* is of another search \(.*{message}"):
        HeadHunter(other, red, ["a cat"], tmp_path)


def test_a_search_goes_on_with_offloaded_weights(tmp_path):
    config = HuntConfig(steps=1, per_round=1)
    pipes = [tiny_pipeline(), tiny_pipeline()]
    accelerate.cpu_offload(pipes[1].transformer, torch.device("cpu"))
    here, offloaded = (HeadHunter(p, red, ["a cat"], tmp_path, config, candidates="L0H0") for p in pipes)
    drawn = offloaded.run()
    assert here.run() == drawn
    ours, theirs = (search.evaluator.pictures(drawn.heads, search.pairs) for search in (here, offloaded))
    assert ours == theirs


def test_other_arguments_of_calls_are_refused(tmp_path):
    picture = Image.new("RGB", (4, 4))
    call = {"control_image": picture, "guidance_scale": 2.0, "noise": torch.zeros(2)}
    HeadHunter(tiny_pipeline(), red, ["a cat"], tmp_path, call=call)
    picture.putpixel((0, 0), (1, 0, 0))
    with pytest.raises(InputError, match=r"\(call\.control_image\.picture: '\w+' there, '\w+' here\)"):
        HeadHunter(tiny_pipeline(), red, ["a cat"], tmp_path, call=call)


@pytest.mark.parametrize("make", [tiny_pipeline, tiny_flux_pipeline])
def test_a_pipeline_stays_the_same_by_being_used_saved_and_loaded(make, tmp_path):
    pipe = make()
    before = pipeline_identity(pipe)
    pipe.set_progress_bar_config(disable=True)
    pipe("a cat", num_inference_steps=2, max_sequence_length=8)
    assert pipeline_identity(pipe) == before
    pipe.save_pretrained(tmp_path)
    loaded = pipeline_identity(type(pipe).from_pretrained(tmp_path))
    assert list(differences(before, loaded)) == []
    assert "0.4" not in str(before.get("_diffusers_version", ""))


def test_adapters_and_their_scales_count():
    peft = pytest.importorskip("peft")
    pipe: Any = tiny_pipeline()
    config = peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)
    plain_one = pipeline_identity(pipe)
    pipe.transformer.add_adapter(config, adapter_name="night")
    found = [pipeline_identity(pipe)]
    pipe.set_adapters(["night"], [0.5])
    found.append(pipeline_identity(pipe))
    pipe.transformer.disable_adapters()
    found.append(pipeline_identity(pipe))
    assert found[0]["components"]["transformer"]["adapters"] == ["night"]
    assert all(one != plain_one for one in found)
    assert found[0] != found[1] != found[2] != found[0]
    pipe.transformer.enable_adapters()
    pipe.set_adapters(["night"], [1.0])
    assert pipeline_identity(pipe) == found[0]


class Net(nn.Module):
    """An objective with weights of its own."""

    name = "net"

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        nn.init.ones_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)


class Holder:
    name = "holder"

    def __init__(self) -> None:
        self.net = Net()

    def __call__(self, images: torch.Tensor, prompts: Any) -> torch.Tensor:
        return red(images, prompts)


@pytest.mark.parametrize(
    "make",
    [
        Net,
        Holder,
        lambda: WeightedSum({red: 1.0, Holder(): 2.0}),
        lambda: Threshold(red, Holder(), 0.0),
    ],
    ids=["module", "holder", "sum", "threshold"],
)
def test_the_weights_of_an_objective_count(make):
    objective, other = make(), make()
    assert objective_identity(objective) == objective_identity(other)
    nets = [part for part in _held(other) if isinstance(part, nn.Module)]
    nudge(nets[0])
    assert objective_identity(objective) != objective_identity(other)


def _held(objective: Any) -> list[Any]:
    if isinstance(objective, nn.Module):
        return [objective]
    inner = vars(objective).values()
    nested = [o for o in [*inner, *getattr(objective, "weights", {})] if isinstance(o, Holder)]
    return [*inner, *(holder.net for holder in nested)]


def test_the_source_of_a_function_counts():
    assert objective_identity(red)["objective_parts"]["source"]


def test_what_cannot_be_told_apart_is_refused():
    with pytest.raises(InputError, match=r"call\.callback: expected numbers, text, tensors or pictures"):
        plain({"callback": object()}, "call")
