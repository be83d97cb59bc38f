"""Train a LoRA on sets of images (In-Context LoRA, arXiv 2410.23775): `dit-heads train CONFIG.yaml`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm import tqdm

from dit_heads.errors import InputError
from dit_heads.families import pipelines_of, training_of
from dit_heads.io.atomic import write_text
from dit_heads.io.pictures import check_writable, write_png
from dit_heads.loras.base import (
    add_adapter,
    drop_text_encoders,
    fill,
    latent_encoder,
    load_base,
    text_encoder,
)
from dit_heads.loras.config import DataConfig, OptimizerConfig, TrainConfig, check, shared
from dit_heads.loras.publish import check_hub, push, write_card
from dit_heads.loras.run_folder import (
    check_data,
    check_folder,
    check_places,
    contents,
    fixed_settings,
    held,
)
from dit_heads.loras.sets.captions import check_length
from dit_heads.loras.sets.dataset import SetDataset
from dit_heads.loras.tasks.in_context import UNSAID, SetLoss
from dit_heads.loras.watch import Watcher, check_tracking, drawing_call
from dit_heads.loras.weights.files import save_lora
from dit_heads.models import EMBEDDED
from dit_heads.training.checkpoints import check_resumable
from dit_heads.training.loop import FitConfig, fit
from dit_heads.training.precision import training_precision


def train(config: TrainConfig) -> Path:
    """Train a LoRA and return the path of its file, `lora.safetensors` in the folder `config.out`.

    The folder also gets the checkpoint, `log.csv`, drawings in `samples/` and a card. Started by `accelerate
    launch`, processes share the batches. Raises ValueError for settings, data and a model that do not go
    together, before anything is trained."""
    check(config)
    check_places(config)
    check_writable(config.out / "lora.safetensors")
    check_tracking(config.watch)
    check_hub(config.watch.hub_id)
    state: Any = PartialState(cpu=not torch.cuda.is_available())
    _check_batch(config.optimization, state.num_processes)
    if state.is_main_process:
        check_folder(config)
    precision = training_precision(config.optimization.precision)
    how = fit_config(config, precision)
    check_resumable(config.out, how, fixed_settings(config))
    data, validation = _sets(config.data, config.data.root, config.seed), _validation(config)
    with held(config.out) if state.is_main_process else nullcontext():
        return _trained(config, state, how, precision, data, validation)


def _trained(
    config: TrainConfig,
    state: Any,
    how: FitConfig,
    precision: str,
    data: SetDataset,
    validation: SetDataset | None,
) -> Path:
    """The file of a LoRA, once its folder is this run's alone."""
    if state.is_main_process:
        check_data(config.out, {"root": contents(data)})
    pipe = load_base(config.model, config.optimization.base, precision, state.device)
    with state.main_process_first():
        loss = prepared(pipe, config, data, validation, show=state.is_main_process)
    if state.is_main_process and loss.prior is not None:
        check_data(config.out, {"prior": contents(loss.prior)})
    drop_text_encoders(pipe)
    add_adapter(pipe.transformer, config.adapter, config.seed)
    if config.model in EMBEDDED and precision == "bf16" and state.device.type == "cpu":
        write_attention_out(pipe.transformer)
    if config.optimization.gradient_checkpointing:
        pipe.transformer.enable_gradient_checkpointing()
    watch = Watcher(pipe, loss, config, validation, precision) if state.is_main_process else None
    fit(pipe.transformer, loss, how, config.out, settings=fixed_settings(config), watch=watch)
    path = config.out / "lora.safetensors"
    if state.is_main_process:
        save_lora(pipe.transformer, path, metadata={"dit_heads": json.dumps(shared(config))})
        write_card(config, pipe)
        push(config.watch.hub_id, config.out)
    state.wait_for_everyone()
    return path


def write_attention_out(transformer: Any) -> None:
    """A third faster on a CPU in bf16; its maps are small with as few tokens as the embedded models see."""
    transformer.set_attn_processor(training_of(transformer).explicit_attention())


def fit_config(config: TrainConfig, precision: str) -> FitConfig:
    """The settings as the training loop takes them."""
    chosen = config.optimization
    return FitConfig(
        steps=chosen.steps,
        learning_rate=chosen.learning_rate,
        optimizer=chosen.optimizer,
        warmup=chosen.warmup,
        decline=chosen.decline,
        weight_decay=chosen.weight_decay,
        betas=(0.9, 0.999),
        clip=chosen.clip,
        ema=chosen.ema,
        precision=precision,
        checkpoint_minutes=config.watch.checkpoint_minutes,
        log_every=10,
        seed=config.seed,
        accumulate=chosen.accumulate,
    )


def _check_batch(config: OptimizerConfig, processes: int) -> None:
    size, parts = config.batch_size, processes * config.accumulate
    if size % parts:
        raise InputError(
            f"batch_size: expected a multiple of {parts} ({processes} processes x {parts // processes} "
            f"parts), got {size}"
        )


# --- what is learned from ---


def prepared(
    pipe: Any, config: TrainConfig, data: SetDataset, validation: SetDataset | None, *, show: bool
) -> SetLoss:
    """The loss, after everything that training reads was drawn and encoded."""
    cache = config.data.cache or config.out / "cache"
    texts, latents = text_encoder(pipe, cache, config.data.text_tokens), latent_encoder(pipe, cache)
    prior = _prior(pipe, config, show=show)
    everything = [each for each in (data, validation, prior) if each is not None]
    said = [*config.watch.prompts, *(sample.caption for each in everything for sample in each.samples)]
    said = list(dict.fromkeys(said))
    _warn_of_cuts(pipe, said, config.data.text_tokens)
    fill(texts, [UNSAID, *said], "captions", show=show)
    fill(latents, [view for each in everything for view in each.views()], "pictures", show=show)
    return SetLoss(
        pipe.transformer,
        data,
        latents,
        texts,
        config.loss,
        batch_size=config.optimization.batch_size,
        seed=config.seed,
        shift=_shift(pipe, config.loss.shift),
        prior=prior,
    )


def _sets(data: DataConfig, root: Path, seed: int) -> SetDataset:
    return SetDataset(
        root,
        rows=data.rows,
        columns=data.columns,
        buckets=data.sizes,
        fit=data.fit,
        flip=data.flip,
        seed=seed,
        on_error=data.on_error,
    )


def _validation(config: TrainConfig) -> SetDataset | None:
    root = config.watch.validation
    return None if root is None else _sets(config.data, root, config.seed)


def _shift(pipe: Any, wanted: float | None) -> float | None:
    scheduler = pipe.scheduler.config
    return None if wanted is None and scheduler.use_dynamic_shifting else wanted or scheduler.shift


def _warn_of_cuts(pipe: Any, captions: Iterable[str], tokens: int | None) -> None:
    names = sorted(name for name in pipe.components if name.startswith("tokenizer"))
    length = tokens or pipelines_of(pipe.transformer).text_tokens
    limits = [None] * (len(names) - 1) + [length]  # the last is the T5
    for caption in captions:
        check_length([getattr(pipe, name) for name in names], caption, limits)


def _prior(pipe: Any, config: TrainConfig, *, show: bool) -> SetDataset | None:
    """Pictures that the model shall keep to; those that are missing of a prompt are drawn first."""
    folder = config.loss.prior
    if folder is None:
        return None
    data = DataConfig(sizes=config.data.sizes[:1], columns=1, fit=config.data.fit)
    if config.loss.prior_prompt is not None:
        _draw_prior(pipe, config.loss.prior_prompt, folder, config, show=show)
    return _sets(data, folder, config.seed)


def _draw_prior(pipe: Any, prompt: str, folder: Path, config: TrainConfig, *, show: bool) -> None:
    (height, width), *_ = config.data.sizes
    tokens = config.data.text_tokens
    text = {} if tokens is None else {"max_sequence_length": tokens}
    folder.mkdir(parents=True, exist_ok=True)
    for number in tqdm(range(config.loss.prior_count), desc="drawing prior", leave=False, disable=not show):
        path = folder / f"prior-{number:04}.png"
        if path.exists():
            continue
        with _in_its_format(pipe.transformer):
            image = pipe(prompt, **text, **drawing_call(config.watch, height, width, number)).images[0]
        write_text(path.with_suffix(".txt"), prompt)
        write_png(image, path, {"prompt": prompt, "seed": number})


def _in_its_format(transformer: Any) -> Any:
    """Where a transformer in half precision reads the float32 that other parts of a pipeline put out."""
    kind = transformer.dtype
    return torch.autocast(transformer.device.type, kind, enabled=kind != torch.float32)
