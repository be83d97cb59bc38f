"""Training of LoRAs, from YAML to the file: a step by hand, runs killed and resumed, shared by processes."""

from __future__ import annotations

import csv
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL, DiffusionPipeline, FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.func import functional_call
from torch.testing import assert_close

from dit_heads.cli import main
from dit_heads.errors import InputError
from dit_heads.loras import train as trainer
from dit_heads.loras.config import TrainConfig, as_mapping, config_of, shared
from dit_heads.loras.tasks.in_context import sets_of
from dit_heads.loras.tasks.loss import FlowLoss
from dit_heads.loras.train import train
from dit_heads.tasks.markers import markers
from dit_heads.training import loop
from dit_heads.training.checkpoints import read_average
from dit_heads.training.generators import keyed_generator
from dit_heads.training.loop import Part
from tests.loras.sets.test_dataset import PHOTOS
from tests.saved import tiny_flux_pipeline, tiny_pipeline, tiny_vae

ROOT = Path(__file__).parents[2]
CAPTIONS = ("a cat", "a dog by day", "an owl", "bees at noon", "a fox")
TOKENS = 12  # that the T5 reads


def autoencoder() -> AutoencoderKL:
    """One that shrinks eight times, as those of SD3 and FLUX do."""
    torch.manual_seed(1)
    return tiny_vae(8, 8, 8, 8)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny pipelines."""
    root = tmp_path_factory.mktemp("models")
    for kind, pipe in (("sd3", tiny_pipeline()), ("flux", tiny_flux_pipeline())):
        whole: Any = type(pipe)(**{**pipe.components, "vae": autoencoder()})
        whole.save_pretrained(root / kind)
    return {kind: root / kind for kind in ("sd3", "flux")}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five sets of two pictures of 64 x 64."""
    root = tmp_path_factory.mktemp("data") / "sets"
    rng = np.random.default_rng(0)
    for k, caption in enumerate(CAPTIONS):
        (root / f"set{k}").mkdir(parents=True)
        for p in range(2):
            coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            coarse.resize((64, 64)).save(root / f"set{k}/{p}.png")
        (root / f"set{k}/caption.txt").write_text(caption)
    return root


def settings(model: str | Path, sets: Path, out: Path, /, **changes: Any) -> TrainConfig:
    """A short run; `changes` are sections of the YAML."""
    found: dict[str, Any] = {
        "model": str(model),
        "out": str(out),
        "data": {"root": str(sets), "sizes": [[64, 64]], "text_tokens": TOKENS},
        "adapter": {"rank": 2},
        "loss": {},
        "optimization": {
            "steps": 6,
            "batch_size": 4,
            "warmup": 2,
            "learning_rate": 0.01,
            "ema": 0.9,
            "precision": "no",
        },
        "watch": {},
    }
    for name, change in changes.items():
        found[name] = {**found[name], **change} if isinstance(change, Mapping) else change
    return config_of(found)


def weights(out: Path) -> dict[str, Tensor]:
    return load_file(out / "lora.safetensors")


def logged(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open() as file:
        return list(csv.DictReader(file))


def same(a: Path, b: Path) -> bool:
    """Bit for bit: the LoRA, and all of the checkpoint."""
    for name in ("lora.safetensors", "checkpoint.safetensors"):
        first, second = load_file(a / name), load_file(b / name)
        if first.keys() != second.keys() or not all(torch.equal(first[k], second[k]) for k in first):
            return False
    return True


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


# --- a whole run, and what it writes ---


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_the_file_draws_in_stock_diffusers_what_the_averaged_weights_draw(
    kind: str, models: dict[str, Path], sets: Path, tmp_path: Path
):
    watch = {"prompts": ["a cat", "an owl"], "sample_steps": 3, "guidance_scale": 3.0, "sample_every": 4}
    config = settings(
        models[kind],
        sets,
        tmp_path / "run",
        adapter={"rank": 2, "alpha": 3.0},
        optimization={"learning_rate": 0.1},
        watch=watch,
    )
    assert train(config) == tmp_path / "run/lora.safetensors"
    names = {path.name for path in (config.out / "samples").iterdir()}
    assert names == {f"step-{step}-{n}.png" for step in ("000004", "000006") for n in range(2)}
    pipe: Any = DiffusionPipeline.from_pretrained(models[kind])
    pipe.set_progress_bar_config(disable=True)

    def draw(prompt: str) -> np.ndarray:
        call: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 3.0, "height": 64, "width": 128}
        call["generator"] = torch.Generator().manual_seed(0)
        return np.asarray(pipe(prompt, max_sequence_length=TOKENS, **call).images[0]).astype(int)

    plain = [draw(prompt) for prompt in watch["prompts"]]
    pipe.load_lora_weights(str(config.out), weight_name="lora.safetensors")
    for n, prompt in enumerate(watch["prompts"]):
        stored = np.asarray(Image.open(config.out / f"samples/step-000006-{n}.png")).astype(int)
        assert np.abs(stored - draw(prompt)).max() <= 1
        assert np.abs(stored - plain[n]).max() > 20


def test_a_run_leaves_its_files_and_learns(models: dict[str, Path], sets: Path, tmp_path: Path):
    config = settings(
        models["sd3"],
        sets,
        tmp_path / "run",
        optimization={"steps": 30},
        watch={"validation": str(sets), "sample_every": 10, "keep_every": 15, "track": ["tensorboard"]},
    )
    train(config)
    found = {path.name for path in config.out.iterdir()}
    assert found == {
        *("cache", "checkpoint.safetensors", "config.json", "data.json", "log.csv", "lora.safetensors"),
        *("lora-000015.safetensors", "README.md", "tensorboard", "validation.csv"),
    }
    rows = (config.out / "validation.csv").read_text().split()[1:]
    losses = [float(row.split(",")[1]) for row in rows]
    assert len(losses) == 3 and losses[2] < losses[1] < losses[0]
    with safe_open(config.out / "lora.safetensors", "pt") as file:
        assert yaml.safe_load(file.metadata()["dit_heads"]) == shared(config)
    average, step, _ = read_average(config.out)
    assert step == 30
    for name, tensor in weights(config.out).items():
        inside = name.replace(".weight", ".default.weight")
        assert torch.equal(tensor, average[inside])


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


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_prior_pictures_that_are_missing_are_drawn_once(
    precision: str, models: dict[str, Path], sets: Path, tmp_path: Path
):
    prior = tmp_path / "prior"

    def run(out: str, count: int) -> Path:
        loss = {"prior": str(prior), "prior_prompt": "an owl", "prior_count": count, "prior_weight": 0.5}
        config = settings(
            models["sd3"],
            sets,
            tmp_path / out,
            loss=loss,
            optimization={"steps": 1, "precision": precision},
            watch={"sample_steps": 2},
        )
        train(config)
        return config.out

    row = logged(run("first", 3))[0]
    assert float(row["loss"]) == pytest.approx(float(row["sets"]) + 0.5 * float(row["prior"]), abs=2e-4)
    drawn = {path.name: path.read_bytes() for path in prior.iterdir()}
    assert drawn.keys() == {f"prior-000{n}.{kind}" for n in range(3) for kind in ("png", "txt")}
    assert drawn["prior-0001.txt"] == b"an owl"
    assert len({drawn[f"prior-000{n}.png"] for n in range(3)}) == 3
    assert np.asarray(Image.open(prior / "prior-0000.png")).shape == (64, 64, 3)
    written = {path.name: path.stat().st_mtime_ns for path in prior.iterdir()}
    (prior / "prior-0001.png").unlink()
    run("second", 3)
    assert {path.name: path.read_bytes() for path in prior.iterdir()} == drawn
    again = {name for name in drawn if (prior / name).stat().st_mtime_ns != written[name]}
    assert again == {"prior-0001.png", "prior-0001.txt"}


# --- what is refused ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"optimization": {"batch_size": 4, "accumulate": 3}},
            r"batch_size: expected a multiple of 3 \(1 processes x 3 parts\), got 4",
        ),
        ({"data": {"root": "nowhere"}}, "data: expected a folder, got 'nowhere'"),
        ({"watch": {"validation": "nowhere"}}, "data: expected a folder, got 'nowhere'"),
        ({"adapter": {"rank": 0}}, "rank: expected a whole number of at least 1, got 0"),
    ],
)
def test_mistakes_are_named_before_a_model_is_loaded(
    changes: dict[str, Any], message: str, sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trainer, "load_base", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ValueError, match=message):
        train(settings("it", sets, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": {"targets": ["attn.to_qq"]}}, "targets: expected some of attention, .*got attn.to_qq"),
        ({"adapter": {"blocks": "L7"}}, "blocks: "),
        (
            {"data": {"sizes": [[64, 64], [256, 160]]}},
            "sizes: expected composites of at most 256 pixels a side .* panels of 256 x 160, .* 256 x 320",
        ),
        ({"optimization": {"optimizer": "adamw8bit"}}, "optimizer: 8 bits need a CUDA GPU"),
        ({"task": "instruct"}, "task: expected one of in_context, got 'instruct'"),
    ],
)
def test_what_configs_and_the_machine_tell_is_told_before_weights_are_loaded(
    changes: dict[str, Any],
    message: str,
    models: dict[str, Path],
    sets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(trainer, "load_base", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=message):
        train(settings(models["sd3"], sets, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_the_weights_do_not_depend_on_when_pictures_and_captions_are_encoded(
    models: dict[str, Path], sets: Path, tmp_path: Path
):
    for encode in ("all", "lazy", "off"):
        chosen = {"data": {"encode": encode}, "optimization": {"steps": 2, "precision": "bf16"}}
        train(settings(models["sd3"], sets, tmp_path / encode, **chosen))
        assert same(tmp_path / "all", tmp_path / encode)
    kept = [len(list((tmp_path / encode / "cache").glob("*"))) for encode in ("all", "lazy")]
    assert kept[0] == 5 + 5 + 1 and 0 < kept[1] <= kept[0]  # pictures, captions, and none
    assert not (tmp_path / "off/cache").exists()


def test_a_run_goes_on_with_its_own_settings_alone(
    models: dict[str, Path], sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "run"
    train(settings(models["sd3"], sets, out, optimization={"steps": 2}))
    first = weights(out)
    with pytest.raises(ValueError, match=f"resume: '{re.escape(str(out))}' holds a run; choose another"):
        train(settings(models["sd3"], sets, out, resume="never"))
    for change, message in (
        ({"adapter": {"rank": 3}}, "rank: expected 2, as the run in '.*' has it, got 3"),
        ({"optimization": {"batch_size": 2}}, "batch_size: expected 4, .*, got 2"),
        ({"loss": {"caption_dropout": 0.5}}, "caption_dropout: expected 0.05, .*, got 0.5"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "load_base", lambda *_: pytest.fail("loaded"))
            with pytest.raises(ValueError, match=message):
                train(settings(models["sd3"], sets, out, **change))
    assert read_average(out)[1] == 2
    changed = {"data": {"cache": str(tmp_path / "cache")}, "watch": {"sample_steps": 3}}
    train(settings(models["sd3"], sets, out, **changed))
    train(settings(models["sd3"], sets, tmp_path / "straight"))
    assert read_average(out)[1] == 6 and same(out, tmp_path / "straight")
    assert not all(torch.equal(first[name], tensor) for name, tensor in weights(out).items())


def test_a_run_keeps_the_precision_that_its_weights_were_loaded_for(
    models: dict[str, Path], sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    loaded: list[str] = []
    load = trainer.load_base
    monkeypatch.setattr(trainer, "load_base", lambda *args: loaded.append(args[2]) or load(*args))
    for faster, steps in ((False, 1), (True, 2)):
        monkeypatch.setattr("dit_heads.training.precision.bf16_is_faster", lambda faster=faster: faster)
        chosen = {"optimization": {"steps": steps, "precision": "auto"}}
        config = settings(models["sd3"], sets, tmp_path / "run", **chosen)
        with pytest.warns(UserWarning, match="keeps 'no'") if faster else nullcontext():
            train(config)
    assert loaded == ["no", "no"] and '"precision": "no"' in (config.out / "config.json").read_text()


def test_a_loss_that_is_not_a_number_ends_the_run_and_harms_nothing(
    models: dict[str, Path], sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = settings(models["sd3"], sets, tmp_path / "run", watch={"checkpoint_minutes": 0})
    call = FlowLoss.__call__

    def broken(self: FlowLoss, part: Part, g: torch.Generator) -> tuple[Tensor, Mapping[str, Any]]:
        loss, figures = call(self, part, g)
        return (loss * float("nan") if part.step == 3 else loss), figures

    with monkeypatch.context() as patch:
        patch.setattr(FlowLoss, "__call__", broken)
        with pytest.raises(
            ValueError, match=r"loss: expected a finite gradient, got nan at step 3; .* is kept"
        ):
            train(config)
    average, step, _ = read_average(config.out)
    assert step == 3 and all(tensor.isfinite().all() for tensor in average.values())
    assert not (config.out / "lora.safetensors").exists()
    train(config)
    train(settings(models["sd3"], sets, tmp_path / "straight"))
    assert same(config.out, tmp_path / "straight")


class Scaler:
    def __init__(self, scale: float) -> None:
        self.get_scale = lambda: scale


def test_fp16_may_overflow_now_and_then_but_not_for_ever():
    loop._check_finite(1.0, 0, None)
    loop._check_finite(float("inf"), 0, Scaler(1024.0))
    for scaler in (None, Scaler(2.0**-20)):
        with pytest.raises(ValueError, match="got inf at step 7"):
            loop._check_finite(float("inf"), 7, scaler)


# --- killed, and shared ---

# Children are forked from a process that has imported everything, before torch has threads.
FORKS = """
import contextlib, os, random, signal, sys, time
from pathlib import Path
import torch
from dit_heads.cli import main
import dit_heads.loras.train
from dit_heads.training.checkpoints import read_average

def started(file):
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        sys.stderr = open(os.devnull, "w")
        os._exit(main(["train", file]))
    return child

def done(out):
    return read_average(out)[1] if (out / "checkpoint.safetensors").exists() else 0

def encoded(out):
    return len(list((out / "cache").glob("*.safetensors"))) if (out / "cache").exists() else 0

def stop(file, out, reached, sign, pause):
    child = started(file)
    while not reached(out):
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "ended early"
        time.sleep(0.002)
    time.sleep(pause)
    os.kill(child, sign)
    return os.waitpid(child, 0)[1]
"""
KILLS = """
file, out, count, steps = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
rng = random.Random(count)
for k in range(count):
    least = k * (steps - 5) // count
    reached = (lambda out: done(out) >= least) if k else (lambda out: encoded(out) > 2)
    status = stop(file, out, reached, signal.SIGKILL, rng.uniform(0, 0.1))
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
    print("killed after", done(out), flush=True)
assert os.waitpid(started(file), 0)[1] == 0
"""
INTERRUPT = """
signal.signal(signal.SIGINT, signal.default_int_handler)  # of the foreground, wherever the tests run
file, out = sys.argv[1], Path(sys.argv[2])
status = stop(file, out, lambda out: (out / "log.csv").exists(), signal.SIGINT, 0)
print("ended with", os.waitstatus_to_exitcode(status), "after", done(out))
assert os.waitpid(started(file), 0)[1] == 0
"""


def outside(script: str, *arguments: object) -> str:
    command = [sys.executable, "-c", FORKS + script, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def as_yaml(config: TrainConfig, path: Path) -> Path:
    path.write_text(yaml.safe_dump(as_mapping(config)))
    return path


@pytest.fixture
def single() -> Iterator[None]:
    """One thread here, as there: sums over threads differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("single")
def test_a_run_killed_at_random_ends_as_one_that_was_not(
    kills: int, models: dict[str, Path], sets: Path, tmp_path: Path
):
    watch = {"checkpoint_minutes": 0, "validation": str(sets), "sample_every": 8, "keep_every": 5}
    chosen = {"optimization": {"steps": 8 + 4 * kills, "decline": 0.5}, "watch": watch}
    config = settings(models["sd3"], sets, tmp_path / "killed", **chosen)
    said = outside(KILLS, as_yaml(config, tmp_path / "run.yaml"), config.out, kills, 8 + 4 * kills)
    steps = [int(line.split()[-1]) for line in said.splitlines() if line.startswith("killed after")]
    assert len(steps) == kills and len(set(steps)) > kills // 2
    straight = settings(models["sd3"], sets, tmp_path / "straight", **chosen)
    train(straight)
    assert same(config.out, straight.out)
    for name in ("validation.csv", "lora-000005.safetensors"):
        assert (config.out / name).exists()
    assert (config.out / "validation.csv").read_text() == (straight.out / "validation.csv").read_text()
    assert [row["step"] for row in logged(config.out)] == [row["step"] for row in logged(straight.out)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.usefixtures("single")
def test_ctrl_c_leaves_a_checkpoint(models: dict[str, Path], sets: Path, tmp_path: Path):
    chosen = {"optimization": {"steps": 25}}
    config = settings(models["sd3"], sets, tmp_path / "stopped", **chosen)
    said = outside(INTERRUPT, as_yaml(config, tmp_path / "run.yaml"), config.out)
    code, step = map(int, re.findall(r"\d+", said.splitlines()[0]))
    assert code == 130 and 1 <= step < 25
    train(settings(models["sd3"], sets, tmp_path / "straight", **chosen))
    assert same(config.out, tmp_path / "straight")


def test_a_batch_in_parts_trains_as_a_whole_one(models: dict[str, Path], sets: Path, tmp_path: Path):
    for parts in (1, 2, 4):
        config = settings(
            models["sd3"], sets, tmp_path / str(parts), optimization={"accumulate": parts, "steps": 11}
        )
        train(config)
        assert_close(weights(config.out), weights(tmp_path / "1"), rtol=1e-3, atol=2e-5)
        losses = [[float(row["loss"]) for row in logged(tmp_path / str(p))] for p in (1, parts)]
        assert len(losses[0]) == 2 and losses[1] == pytest.approx(losses[0], abs=2e-4)


@pytest.mark.slow
def test_two_processes_train_as_one(models: dict[str, Path], sets: Path, tmp_path: Path):
    """With a masked loss, a prior, and each process's share in two parts, as `torchrun` starts them."""
    prior = {"prior": str(tmp_path / "prior"), "prior_prompt": "an owl", "prior_count": 3}
    chosen: dict[str, Any] = {
        "loss": {**prior, "panel_weights": [1, 0]},
        "optimization": {"steps": 21},
        "watch": {"sample_steps": 1, "validation": str(sets), "sample_every": 10},
    }
    one = settings(models["sd3"], sets, tmp_path / "one", **chosen)
    train(one)
    chosen["optimization"] |= {"accumulate": 2}
    two = settings(models["sd3"], sets, tmp_path / "two", **chosen)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    launch = f"--nproc_per_node 2 --master_port {port} --redirects 3 --log-dir {tmp_path / 'ranks'}"
    command = [sys.executable, "-m", "torch.distributed.run", *launch.split(), "-m", "dit_heads.cli", "train"]
    command += [str(as_yaml(two, tmp_path / "two.yaml"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    said = [path.read_text() for path in (tmp_path / "ranks").rglob("stdout.log")]
    assert len(said) == 2 and "".join(said).count("wrote") == 1
    assert_close(weights(two.out), weights(one.out), rtol=1e-3, atol=2e-5)
    for name in ("loss", "sets", "prior", "gradient"):
        ours, theirs = ([float(row[name]) for row in logged(out)] for out in (one.out, two.out))
        assert len(ours) == 3 and theirs == pytest.approx(ours, abs=3e-4)
    losses = [(out / "validation.csv").read_text().split()[1:] for out in (one.out, two.out)]
    ours, theirs = ([float(row.split(",")[1]) for row in rows] for rows in losses)
    assert len(ours) == 3 and theirs == pytest.approx(ours, abs=1e-4)


# --- the command ---


def test_the_command_says_where_the_file_is(models: dict[str, Path], sets: Path, tmp_path: Path):
    config = settings(models["sd3"], sets, tmp_path / "run", optimization={"steps": 1})
    file = as_yaml(config, tmp_path / "run.yaml")
    command = [sys.executable, "-m", "dit_heads.cli", "train", str(file), "--seed", "4"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert (done.returncode, done.stdout) == (0, f"wrote {config.out}/lora.safetensors\n")
    assert "torchvision" not in done.stderr and "Warning" not in done.stderr
    assert '"seed": 4' in (config.out / "config.json").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"root": "nowhere"}}, "data: expected a folder, got 'nowhere'"),
        ({"model": "/nowhere/model"}, "model: expected embedded, embedded/sd3, embedded/flux, a folder, "),
        ({"adapter": {"blocks": "L7"}}, "blocks: "),
    ],
)
def test_the_command_names_a_mistake_in_one_line(
    changes: dict[str, Any],
    message: str,
    models: dict[str, Path],
    sets: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    config = settings(models["sd3"], sets, tmp_path / "run", **changes)
    assert main(["train", str(as_yaml(config, tmp_path / "run.yaml"))]) == 2
    out, err = capsys.readouterr()
    last = err.splitlines()[-1].split("\r")[-1]
    assert out == "" and "dit-heads: error: " in last and message in last
    assert not (config.out / "lora.safetensors").exists()


# --- real photographs ---


@pytest.mark.skipif(not (PHOTOS / "subjects").is_dir(), reason="no photographs beside the checkout")
def test_real_photographs_train_without_a_warning(tmp_path: Path):
    """Sets of four photographs of one thing; pytest makes an error of any warning."""
    for subject in sorted((PHOTOS / "subjects").iterdir()):
        (tmp_path / "sets" / subject.name).mkdir(parents=True)
        for p, photo in enumerate(sorted(subject.glob("*.jpg"))[:4]):
            shutil.copy(photo, tmp_path / f"sets/{subject.name}/{p}.jpg")
        panels = " ".join(f"{marker} a photo of it" for marker in markers(2, 2))
        (tmp_path / f"sets/{subject.name}/caption.txt").write_text(f"Four photos of a thing. {panels}")
    config = settings(
        "embedded",
        tmp_path / "sets",
        tmp_path / "run",
        data={"rows": 2, "columns": 2, "sizes": [[64, 64], [80, 48]], "text_tokens": 64},
        loss={"panel_weights": [1, 1, 1, 2]},
        optimization={"steps": 20, "batch_size": 2, "precision": "auto"},
        watch={"validation": str(tmp_path / "sets"), "sample_every": 20},
    )
    train(config)
    assert read_average(config.out)[1] == 20
    kept = list((config.out / "cache").iterdir())
    assert len(kept) == 8 + 2  # pictures; one caption, and none
    loss = float((config.out / "validation.csv").read_text().split(",")[-1])
    assert 0 < loss < 2 and all(tensor.isfinite().all() for tensor in weights(config.out).values())
