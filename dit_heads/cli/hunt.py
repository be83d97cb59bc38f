"""The `hunt` and `tune` commands; imports nothing heavy, as the command line reads it first."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dit_heads.embedded.world.captions import world_prompts
from dit_heads.errors import InputError
from dit_heads.heads import HeadSet
from dit_heads.hunt.config import HuntConfig, read_prompts, style_prompts
from dit_heads.io.pictures import check_writable

if TYPE_CHECKING:
    from dit_heads.hunt.hunter import HeadHunter
    from dit_heads.hunt.trials import Execute, Scorer

Flag = tyro.conf.arg


@dataclass(frozen=True)
class Search:
    """What is searched, and by which pictures."""

    model: str = "embedded"
    """embedded, embedded/flux, a folder in diffusers' format, or a model id of the hub"""
    objective: str = "clip"
    """clip (the embedded one), clip:MODEL, pickscore, hpsv2:FOLDER, aesthetic:FILE or MODULE:FUNCTION"""
    prompts: Annotated[Path | None, Flag(metavar="FILE.txt")] = None
    """a prompt a line; without, captions of the embedded model's world"""
    num_prompts: int = 5
    """how many of those captions"""
    style: Annotated[str | None, Flag(metavar="STYLE")] = None
    """search the heads of a style, such as "at night"; the prompts are its contents"""
    template: str = "{style}, {content}"
    """how style and content make a prompt"""
    candidates: Annotated[str | None, Flag(metavar="HEADS")] = None
    """heads to choose among, such as "L0-5"; without, all"""
    config: Annotated[HuntConfig, Flag(name="")] = field(default_factory=HuntConfig)
    dtype: str = "auto"
    """auto, float32, bfloat16 or float16"""

    def hunter(self, folder: Path, workers: Workers) -> HeadHunter:
        """Everything loaded, ready to run. Raises ValueError for what cannot be."""
        candidates = None if self.candidates is None else HeadSet.parse(self.candidates)
        prompts = read_prompts(self.prompts) if self.prompts else world_prompts(self.num_prompts, self.style)
        if self.style:
            prompts = style_prompts(self.template, [self.style], prompts)
        # Slow to import, so only now; and the model's configs tell a wrong head before its weights are read.
        from dit_heads.hunt.hunter import HeadHunter
        from dit_heads.hunt.plots import drawing
        from dit_heads.models import head_layout

        drawing()
        layout = head_layout(self.model)
        if candidates is not None:
            layout.resolve(candidates)
        scorer = load_scorer(self, workers.device)
        return HeadHunter(
            scorer.pipe,
            scorer.objective,
            prompts,
            folder,
            self.config,
            candidates=candidates,
            call=scorer.call,
            execute=workers.execute(self, scorer),
        )

    def to_json(self) -> dict[str, Any]:
        """All settings; `search_of` takes them."""
        return asdict(self) | {"prompts": self.prompts and str(self.prompts.absolute())}


def search_of(stored: dict[str, Any]) -> Search:
    """The search of `to_json`."""
    config = HuntConfig(**{**stored["config"], "seeds": tuple(stored["config"]["seeds"])})
    prompts = stored["prompts"] and Path(stored["prompts"])
    return Search(**{**stored, "config": config, "prompts": prompts})


def load_scorer(search: Search, device: str) -> Scorer:
    """A search's pipeline and objective, in this process."""
    from dit_heads.hunt.trials import Scorer
    from dit_heads.models import load_pipeline, text_arguments
    from dit_heads.objectives import load_objective

    config = search.config
    objective = load_objective(search.objective)
    pipe = load_pipeline(search.model, search.dtype, device)
    pipe.set_progress_bar_config(disable=True)
    call = {"guidance_scale": config.guidance_scale, **text_arguments(search.model)}
    return Scorer(pipe, objective, call, perturbation=config.perturbation, region=config.region)


@dataclass(frozen=True)
class Workers:
    """Where pictures are drawn."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps, ..."""
    workers: int = 0
    """draw by this many processes of a Ray cluster; 0 draws in this one"""
    cluster: Annotated[str | None, Flag(metavar="ADDRESS")] = None
    """of a running Ray cluster, or auto; without, one is started here"""

    def execute(self, search: Search, scorer: Scorer) -> Execute | None:
        """What runs batches; None for this process."""
        if not self.workers and self.cluster is None:
            return None
        from dit_heads.hunt.cluster import on_ray
        from dit_heads.hunt.trials import fingerprint

        load = partial(load_scorer, search, self.device)
        weights = fingerprint(scorer.pipe.transformer)
        return on_ray(load, self.workers, weights=weights, address=self.cluster)


@dataclass(frozen=True)
class Hunt:
    """Search the heads that raise an objective; results and the evidence go into a folder."""

    out: Annotated[Path, Flag(metavar="FOLDER")] = Path("hunts/general")
    """where they go; the same search started again goes on where it was"""
    search: Annotated[Search, Flag(name="")] = field(default_factory=Search)
    where: Annotated[Workers, Flag(name="")] = field(default_factory=Workers)

    def run(self) -> None:
        check_writable(self.out / "heads.json")
        hunter = self.search.hunter(self.out, self.where)
        from dit_heads.io.atomic import write_text

        write_text(self.out / "search.json", json.dumps(self.search.to_json(), indent=1) + "\n")
        found = hunter.run()
        print(found)
        print(f"wrote {', '.join(map(str, hunter.write(found)))}")


@dataclass(frozen=True)
class Tune:
    """Sweep scale and softness of the heads that a search found, on its prompts."""

    folder: tyro.conf.Positional[Annotated[Path, Flag(metavar="FOLDER")]]
    """of a search that `dit-heads hunt` has finished"""
    heads: Annotated[str | None, Flag(metavar="HEADS")] = None
    """other heads than those it found"""
    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
    """w"""
    softnesses: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    """u"""
    where: Annotated[Workers, Flag(name="")] = field(default_factory=Workers)

    def run(self) -> None:
        found, stored = self.folder / "heads.json", self.folder / "search.json"
        if not stored.is_file() or (self.heads is None and not found.is_file()):
            raise InputError(f"folder: expected one that dit-heads hunt has filled, got '{self.folder}'")
        heads = HeadSet.parse(self.heads) if self.heads else HeadSet.load(found)
        hunter = search_of(json.loads(stored.read_text())).hunter(self.folder, self.where)
        from dit_heads.hunt.tune import tune, write_tuning

        tuning = tune(hunter, heads, self.scales, self.softnesses)
        print(tuning)
        print(f"wrote {', '.join(map(str, write_tuning(hunter, tuning, self.folder)))}")
