"""Fixtures of the demo's tests: an engine on a tiny model, and a browser on a page of it."""

import asyncio
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dit_heads.cli.generate import Settings
from dit_heads.demo.engine import Engine
from dit_heads.demo.limits import Limits
from dit_heads.fusion.encoder import ReferenceEncoder
from dit_heads.loras import Lora, LowRank, write_lora
from dit_heads.loras.config import config_of
from dit_heads.loras.tasks.multimodal import fusion_config
from dit_heads.models import load_image_tower
from dit_heads.tasks.soft_tokens.features import channels_of
from tests.demo.browsing import WIDE, show
from tests.pipelines.tokens_made import HEADS, parts, saved
from tests.saved import tiny_pipeline

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


@pytest.fixture(autouse=True)
def _closed_loops(monkeypatch):
    """Gradio makes event loops for its locks and leaves them open; here they are closed."""
    made, new = [], asyncio.new_event_loop
    monkeypatch.setattr(asyncio, "new_event_loop", lambda: made.append(new()) or made[-1])
    yield
    for loop in made:
        if not loop.is_running():
            loop.close()


@pytest.fixture(scope="package")
def model(tmp_path_factory) -> str:
    """A folder of the tiny SD3 pipeline."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="package")
def roomy(model):
    """An engine with room for all jobs of a test, shared by the tests of a run."""
    with Engine({model: tiny_pipeline}, Limits(queue=500, per_visitor=500)) as engine:
        yield engine


@pytest.fixture(scope="package")
def instruct_lora(tmp_path_factory) -> Path:
    """A LoRA of the task instruct for the tiny model: it reads a source, and changes pictures visibly."""
    g = torch.Generator().manual_seed(0)
    run = {"task": "instruct", "instruct": {"conditioning": "channels"}, "data": {"text_tokens": 256}}
    read = LowRank(torch.eye(32), torch.randn(32, 32, generator=g) / 4, kernel=(8, 2, 2))
    turned = LowRank(torch.randn(2, 32, generator=g), torch.randn(32, 2, generator=g))
    path = tmp_path_factory.mktemp("instruct") / "seeing.safetensors"
    changes = {"pos_embed.proj": read, "transformer_blocks.1.attn.to_q": turned}
    write_lora(path, Lora(changes), {"dit_heads": json.dumps(run)})
    return path


@pytest.fixture(scope="package")
def edit_lora(tmp_path_factory) -> Path:
    """A LoRA of the task multimodal for the tiny model, with its encoder of references: both the source and
    the references change pictures visibly."""
    g = torch.Generator().manual_seed(1)
    chosen = {"tokens": 3, "width": 16, "heads": 2, "layers": 1}
    run = {"task": "multimodal", "multimodal": chosen, "data": {"text_tokens": 256}}
    read = LowRank(torch.eye(32), torch.randn(32, 32, generator=g) / 4, kernel=(8, 2, 2))
    turned = LowRank(torch.randn(2, 32, generator=g), torch.randn(32, 2, generator=g))
    folder = tmp_path_factory.mktemp("multimodal")
    changes = {"pos_embed.proj": read, "transformer_blocks.1.attn.add_k_proj": turned}
    write_lora(folder / "editing.safetensors", Lora(changes), {"dit_heads": json.dumps(run)})
    config = config_of({"multimodal": chosen}).multimodal
    with torch.random.fork_rng():
        torch.manual_seed(1)
        encoder = ReferenceEncoder(fusion_config(tiny_pipeline(), load_image_tower("embedded"), config))
        torch.nn.init.normal_(encoder.look.out_proj.weight)
    save_file(encoder.state_dict(), folder / "references.safetensors")
    return folder / "editing.safetensors"


@pytest.fixture(scope="package")
def soft_tokens(tmp_path_factory) -> Path:
    """Soft tokens of random weights for the tiny model."""
    with torch.random.fork_rng():
        transformer = tiny_pipeline().transformer
        width = sum(channels_of(transformer, HEADS).width) * len(HEADS.levels)
        return saved(parts(32, width), tmp_path_factory.mktemp("soft") / "tokens")


@pytest.fixture
def settings(model):
    """Settings of a quick picture, some of them others."""

    def make(**changes) -> Settings:
        quick = {"prompt": "a cat", "model": model, "steps": 2, "guidance_scale": 2.0}
        return Settings(**{**quick, **changes})

    return make


@pytest.fixture(scope="module")
def address(model, instruct_lora, edit_lora, soft_tokens):
    """A page of the tiny model, served while the tests of a file run."""
    pytest.importorskip("gradio")
    from dit_heads.demo.serve import running

    weights = {"instruct_lora": instruct_lora, "edit_lora": edit_lora, "soft_tokens": soft_tokens}
    how = {"limits": Limits(steps=400), "loaders": {model: tiny_pipeline}}
    with running([model], port=0, **how, **weights) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as started:
        yield started.chromium.launch(executable_path=str(CHROMIUM), args=list(QUIET))


@pytest.fixture
def visit(browser, address):
    """Open the page, at one of its tabs, in a context of its own; errors of its scripts fail the test."""
    opened, problems = [], []

    def open_page(tab="Guide", **options):
        context = browser.new_context(**{**WIDE, **options})
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(address)
        show(page, tab)
        opened.append(context)
        return page

    yield open_page
    for context in opened:
        context.close()
    assert problems == []
