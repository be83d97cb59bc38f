"""Runs diffusers' own pipeline tests against the drop-in classes, as a plugin of pytest.

Bring a checkout of diffusers (and `pip install parameterized requests_mock`), then

    python -m pytest -c /dev/null -p benchmarks.diffusers_tests CHECKOUT/tests/pipelines/stable_diffusion_3

Every class there that tests a parent of a drop-in class tests the drop-in class instead. With
`--classes guided` each of its calls also has a head to guide by; with `--classes stock` the parents are
tested, for comparison. No hub is asked: the tokenizers and the config that these tests take from there are
the embedded model's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer, CLIPTokenizer, T5Config

from dit_heads.embedded.world.text import make_clip_tokenizer, make_t5_tokenizer
from dit_heads.pipelines import guided

DROP_IN = {kind.stock: kind for kind in vars(guided).values() if hasattr(kind, "stock")}
T5 = T5Config(d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, vocab_size=1103)
LOCAL: dict[Any, Callable[[], Any]] = {
    AutoConfig: lambda: T5,
    AutoTokenizer: make_t5_tokenizer,
    CLIPTokenizer: make_clip_tokenizer,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--classes", choices=("drop-in", "guided", "stock"), default="drop-in")


def pytest_configure() -> None:
    for kind, make in LOCAL.items():
        kind.from_pretrained = staticmethod(_unless_local(kind.from_pretrained, make))


def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    ours = [item for item in items if getattr(item.cls, "pipeline_class", None) in DROP_IN]
    config.hook.pytest_deselected(items=[item for item in items if item not in ours])
    items[:] = ours
    classes = config.getoption("--classes")
    for kind in {item.cls for item in ours}:
        if classes != "stock":
            kind.pipeline_class = DROP_IN[kind.pipeline_class]
        if classes == "guided" and hasattr(kind, "get_dummy_inputs"):
            kind.get_dummy_inputs = _with_heads(kind.get_dummy_inputs)


def _unless_local(load: Callable[..., Any], make: Callable[[], Any]) -> Callable[..., Any]:
    @functools.wraps(load)
    def from_pretrained(name: Any, *args: Any, **kwargs: Any) -> Any:
        return make() if str(name).startswith("hf-internal-testing/") else load(name, *args, **kwargs)

    return from_pretrained


def _with_heads(inputs: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    @functools.wraps(inputs)
    def given(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return {**inputs(*args, **kwargs), "heads": "L0H0", "head_guidance_scale": 1.0}

    return given
