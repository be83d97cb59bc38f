"""HeadHunter measured on the embedded SD3: the paper's claims, and the fast search against the exact one.

    python benchmarks/hunt.py general styles interactions --folder out/hunt

Searches ask the embedded CLIP on validation prompts; what they found is scored on test prompts by that CLIP
and by the judge, which no search asks. Every score of a search is stored in the folder; run the command again
to resume.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import tyro
from agreement import share_interval, spearman, split_half

from dit_heads import HeadGuidance, HeadHunter, HeadId, HeadSet
from dit_heads.embedded import TEXT_TOKENS
from dit_heads.embedded.evaluate import cell, paint, unseen_scenes
from dit_heads.embedded.export import load_judge
from dit_heads.embedded.nets.judge import verdict
from dit_heads.embedded.objective import embedded_clip
from dit_heads.embedded.world.captions import caption, content
from dit_heads.embedded.world.scenes import STYLES, Scene
from dit_heads.hunt.config import HuntConfig
from dit_heads.hunt.plots import draw_grid
from dit_heads.hunt.result import Result
from dit_heads.io.atomic import write_text
from dit_heads.models import load_pipeline
from dit_heads.tasks.metrics.scores import interval

GENERAL = HuntConfig(per_round=4, scale=2.0, steps=10, batch=16)
STYLE = replace(GENERAL, rounds=3, per_round=1)
SOFTNESSES = (0.5, 1.0)
CFG = 4.0
SOLIDS = 3  # of general prompts: with fewer, the model is right without guidance


@dataclass(frozen=True)
class Extent:
    """How much is measured.

    Attributes:
        prompts: number of validation prompts that a general search draws; a style's draws a quarter.
        count: number of test prompts.
        batch: number of pictures side by side.
        search_steps, steps: of a picture in a search, and of one that is measured.
        scales: head guidance scales that are swept after a search.
        candidates: heads to choose among; None for all.
        styles: what the stage of that name searches.
    """

    prompts: int
    count: int
    batch: int
    search_steps: int = 10
    steps: int = 28
    scales: tuple[float, ...] = (0.5, 1.5, 3.0, 6.0)
    candidates: str | None = None
    styles: tuple[str, ...] = STYLES[1:]

    def quick(self) -> Extent:
        """So little that the code runs in a minute; the figures mean nothing."""
        heads = "L1H0, L3H2, L5H4, L6H1, L7H5"
        return Extent(8, 4, self.batch, 3, 2, scales=(1.5,), candidates=heads, styles=STYLES[1:2])


@dataclass(frozen=True)
class Guided:
    """Heads and how strongly they guide, and the mean score of a search's prompts under them."""

    heads: HeadSet
    scale: float
    softness: float
    score: float

    def preset(self, effect: str) -> dict[str, Any]:
        """As an entry of a file of `dit_heads/heads/presets/`."""
        strength = {"scale": self.scale, "softness": self.softness}
        return {"effect": effect, **self.heads.to_json(), **strength, "verified": True}


@dataclass
class Search:
    """A search and its outcome; `seconds` of all sessions it took."""

    hunter: HeadHunter
    result: Result
    seconds: float


class Bench:
    """The parts that all measurements share."""

    def __init__(self, folder: Path, extent: Extent, device: str, dtype: str = "float32") -> None:
        self.folder, self.extent = folder, extent
        self.pipe = load_pipeline("embedded", dtype, device)
        self.pipe.set_progress_bar_config(disable=True)
        self.judge, self.clip = load_judge(), embedded_clip()
        self.scenes = unseen_scenes("test", extent.count, solids=SOLIDS)

    def hunter(self, name: str, prompts: Sequence[str], config: HuntConfig) -> HeadHunter:
        extent = self.extent
        config = replace(config, batch=extent.batch, steps=extent.search_steps)
        options: dict[str, Any] = {
            "candidates": extent.candidates,
            "call": {"max_sequence_length": TEXT_TOKENS},
        }
        return HeadHunter(self.pipe, self.clip, prompts, self.folder / name, config, **options)

    def general_prompts(self) -> list[str]:
        return [caption(scene) for scene in unseen_scenes("validation", self.extent.prompts, solids=SOLIDS)]

    def search(self, name: str, prompts: Sequence[str], config: HuntConfig) -> Search:
        """Run a search, or read what is stored of it."""
        hunter, clock = self.hunter(name, prompts, config), self.folder / name / "seconds.json"
        before, began = json.loads(clock.read_text()) if clock.exists() else 0.0, time.time()
        known = len(hunter.log)
        result = hunter.run()
        seconds = before + (time.time() - began if len(hunter.log) > known else 0.0)
        write_text(clock, json.dumps(seconds))
        hunter.write(result)
        return Search(hunter, result, seconds)

    def strongest(self, name: str, hunter: HeadHunter, sets: Sequence[HeadSet]) -> Guided:
        """Of head sets x scales x softnesses the best on the prompts of a search, and what softness did."""
        tried = [
            Guided(heads, scale, softness, fmean(scores))
            for scale, softness in itertools.product(self.extent.scales, SOFTNESSES)
            for heads, scores in zip(sets, hunter.scores(sets, scale=scale, softness=softness), strict=True)
        ]
        best = [
            max((one for one in tried if one.softness == u), key=lambda one: one.score) for u in SOFTNESSES
        ]
        print(f"{name}, best CLIP score x 100 at each u:")
        for one in best:
            print(f"  {one.heads}, w {one.scale:g}, u {one.softness:g}: {100 * one.score:.2f}")
        return max(best, key=lambda one: one.score)

    def table(
        self, scenes: Sequence[Scene], prompts: Sequence[str], rows: dict[str, tuple[float, Guided | None]]
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Print and return scores of test prompts under each guidance, (CFG, heads)."""
        print("| guidance | attributes right, % | paired difference | CLIP score x 100 | paired difference |")
        print("|---|---|---|---|---|")
        found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name, (cfg, guided) in rows.items():
            found[name] = self._scores(scenes, prompts, cfg, guided)
            pairs = zip(found[name], found["none"], strict=True)
            cells = [shown for values, none in pairs for shown in (cell(values), cell(values - none))]
            label = f"{name}: {guided.heads}, w {guided.scale:g}, u {guided.softness:g}" if guided else name
            print(f"| {label} | {' | '.join(cells)} |", flush=True)
        return found

    @torch.no_grad()
    def _scores(
        self, scenes: Sequence[Scene], prompts: Sequence[str], cfg: float, guided: Guided | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Attributes right, in %, and CLIP score x 100 of a picture of each prompt."""
        heads = guided and HeadGuidance(self.pipe, guided.heads, scale=guided.scale, softness=guided.softness)
        call: dict[str, Any] = {"num_inference_steps": self.extent.steps, "max_sequence_length": TEXT_TOKENS}
        call |= {"guidance_scale": cfg, "batch": self.extent.batch}
        pictures = paint(self.pipe, scenes, prompts=prompts, guidance=heads, **call)
        pairs = zip(pictures.split(1), prompts, strict=True)
        scores = torch.cat([self.clip(picture / 2 + 0.5, [prompt]) for picture, prompt in pairs])
        return 100 * verdict(self.judge, pictures, scenes).per_picture().numpy(), 100 * scores.numpy()


def general(bench: Bench) -> None:
    """The general search, exhaustive and fast, and what both find worth on test prompts. How many heads and
    how strong is swept on the prompts of the search; `preset.json` is what the showcase reads."""
    prompts = bench.general_prompts()
    whole = bench.search("general", prompts, GENERAL)
    fast = bench.search("general-fast", prompts, replace(GENERAL, method="fast"))
    compare(whole, fast)
    rows = _rows(bench, whole, fast)
    write_preset(bench, whole, *(rows[name][1] for name in ("HeadHunter", "best layer")))
    beside(bench.table(bench.scenes, [caption(scene) for scene in bench.scenes], rows))


def write_preset(bench: Bench, whole: Search, heads: Guided | None, layer: Guided | None) -> None:
    """The choice as `dit-heads showcase` reads it, with every number of it."""
    assert heads and layer
    unguided = fmean(whole.result.unguided)
    gains = {head: fmean(scores) - unguided for head, scores in whole.result.rounds[0].scores.items()}
    scales = " ".join(f"{scale:g}" for scale in bench.extent.scales)
    command = f"python benchmarks/hunt.py general --prompts {bench.extent.prompts} --scales {scales}"
    provenance = {
        "command": command,
        "score": {"no guidance": unguided, "heads": heads.score, "block": layer.score},
        "single heads": {str(head): round(gains[head], 5) for head in sorted(gains, key=lambda h: -gains[h])},
        **whole.result.provenance,
    }
    presets = [heads.preset("general"), layer.preset("general, one block")]
    found = {"model": "embedded/sd3", "source": f"measured: {command}", "presets": presets}
    path = bench.folder / "preset.json"
    write_text(path, json.dumps(found | {"provenance": provenance}, indent=1) + "\n")
    print(f"wrote {path}")


def _rows(bench: Bench, whole: Search, fast: Search) -> dict[str, tuple[float, Guided | None]]:
    """What is compared on test prompts: CFG and heads, each at its best strength on the search's prompts."""
    heads = bench.strongest("HeadHunter", whole.hunter, _prefixes(whole.result))
    fast_heads = bench.strongest("fast HeadHunter", whole.hunter, _prefixes(fast.result))
    layer = bench.strongest("a layer", whole.hunter, _blocks(whole))
    return {
        "none": (1.0, None),
        f"CFG {CFG:g}": (CFG, None),
        "best layer": (1.0, layer),
        "HeadHunter": (1.0, heads),
        "fast HeadHunter": (1.0, fast_heads),
        f"CFG {CFG:g} and HeadHunter": (CFG, heads),
    }


def _prefixes(result: Result) -> list[HeadSet]:
    """The first 1, 2, 4 ... and all chosen heads."""
    number = len(result.chosen)
    return [HeadSet(result.chosen[:n]) for n in sorted({min(2**k, number) for k in range(number + 1)})]


def _blocks(search: Search) -> list[HeadSet]:
    """Every block that has candidates, as a whole."""
    return [HeadSet.parse(f"L{block}") for block in sorted({head.block for head in search.hunter.candidates})]


def compare(whole: Search, fast: Search) -> None:
    """The first round of a fast search against that of the exhaustive one."""
    singles, screen = whole.result.rounds[0].scores, fast.result.rounds[0]
    heads = sorted(singles)
    table = np.array([singles[head] for head in heads])
    ranked = sorted(heads, key=lambda head: -fmean(singles[head]))
    drawn = sorted(screen.scores, key=lambda head: ranked.index(head))
    gained = sum(fmean(singles[head]) > fmean(whole.result.unguided) for head in heads)
    print(f"{gained} of {len(heads)} heads raise the score alone")
    print(f"split-half rank correlation of the exhaustive ranking: {split_half(table):.2f}")
    agreement = spearman([screen.slopes[head] for head in heads], table.mean(1).tolist())
    print(f"rank correlation of the gradient screen with it: {agreement:.2f}")
    places = [ranked.index(head) + 1 for head in drawn]
    print(f"places in it of the {len(drawn)} heads that the fast search drew: {places}")
    both = set(whole.result.chosen) & set(fast.result.chosen)
    print(f"chosen by both: {len(both)} of {len(whole.result.chosen)}")
    print("| search | heads | pictures | steps of the model | seconds |\n|---|---|---|---|---|")
    for name, found in (("exhaustive", whole), ("fast", fast)):
        steps = found.result.pictures * found.hunter.config.steps
        print(f"| {name} | {found.result.heads} | {found.result.pictures} | {steps} | {found.seconds:.0f} |")


def beside(found: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Print what the fast search gains beside the exhaustive one."""
    exhaustive, fast = (found[name][1] - found["none"][1] for name in ("HeadHunter", "fast HeadHunter"))
    low, high = share_interval(fast, exhaustive)
    print(f"CLIP score x 100 of the fast search less the exhaustive one: {cell(fast - exhaustive)}")
    print(f"share of its gain: {fast.mean() / exhaustive.mean():.2f} [{low:.2f}, {high:.2f}]")


def styles(bench: Bench) -> None:
    """Searches of every style: do later rounds help, do the heads transfer to new prompts?"""
    for style in bench.extent.styles:
        prompt_of: Callable[[Scene], str] = lambda scene, style=style: f"{style}, {content(scene)}"  # noqa: E731
        name = style.replace(" ", "-")
        prompts = [prompt_of(scene) for scene in unseen_scenes("validation", bench.extent.prompts // 4)]
        whole = bench.search(name, prompts, STYLE)
        fast = bench.search(f"{name}-fast", prompts, replace(STYLE, method="fast"))
        print(f"\n### {style}\n{whole.result}")
        compare(whole, fast)
        curve = [fmean(scores) for scores in whole.hunter.curve(whole.result)]
        print("score after each round:", ", ".join(f"{100 * mean:.2f}" for mean in curve))
        print("place of each chosen head alone:", ", ".join(_places(whole.result)))
        scenes = [replace(scene, style=style) for scene in bench.scenes[: len(bench.scenes) // 2]]
        beside(bench.table(scenes, [prompt_of(scene) for scene in scenes], _rows(bench, whole, fast)))


def _places(result: Result) -> list[str]:
    """Of the chosen heads in the ranking of heads that guide alone: late for those that need company."""
    alone = result.rounds[0].scores
    ranked = sorted(alone, key=lambda head: -fmean(alone[head]))
    return [f"{head} {ranked.index(head) + 1}" for head in result.chosen]


def interactions(bench: Bench, top: int = 20) -> None:
    """What two of the best heads gain together beyond what they gain alone, as a picture."""
    prompts, pairs = bench.general_prompts(), bench.extent.prompts // 2
    singles = bench.search("general", prompts, GENERAL).result.rounds[0].scores
    heads: list[HeadId] = sorted(singles, key=lambda head: -fmean(singles[head]))[:top]
    hunter = bench.hunter("interactions", prompts[:pairs], GENERAL)
    (base,) = hunter.scores([None])
    alone = dict(zip(heads, hunter.scores([HeadSet([head]) for head in heads]), strict=True))
    couples = list(itertools.combinations(heads, 2))
    joint = hunter.scores([HeadSet(couple) for couple in couples])
    grid = [[float("nan")] * len(heads) for _ in heads]
    found = {}
    for (a, b), scores in zip(couples, joint, strict=True):
        found[a, b] = extra = np.array(scores) - np.array(alone[a]) - np.array(alone[b]) + np.array(base)
        for x, y in ((a, b), (b, a)):
            grid[heads.index(x)][heads.index(y)] = 100 * float(extra.mean())
    labels = [str(head) for head in heads]
    title = f"What two heads gain together beyond their gains alone (CLIP score x 100, {pairs} prompts)"
    path = bench.folder / "interactions.png"
    draw_grid(grid, path, rows=("", labels), columns=("", labels), title=title, decimals=1)
    sure = [extra for extra in found.values() if interval(extra)[0] > 0 or interval(extra)[1] < 0]
    ranked = sorted(found, key=lambda couple: -found[couple].mean())
    print(f"wrote {path}; {len(sure)} of {len(found)} interactions differ from 0 (95 % intervals)")
    for a, b in (*ranked[:3], *ranked[-3:]):
        print(f"  {a}, {b}: {cell(100 * found[a, b])}")


STAGES = {"general": general, "styles": styles, "interactions": interactions}


def main(
    stages: tyro.conf.Positional[tuple[str, ...]] = tuple(STAGES),
    folder: Path = Path("out/hunt"),
    prompts: int = 20,
    count: int = 96,
    batch: int = 16,
    scales: tuple[float, ...] = (0.5, 1.5, 3.0, 6.0),
    device: str = "auto",
    dtype: str = "float32",
    quick: bool = False,
) -> None:
    """Run stages.

    Args:
        stages: general, styles or interactions; all of them by default.
        folder: where searches are stored.
        prompts: number of validation prompts of a general search; that of a style has a quarter.
        count, batch: number of test prompts that heads are measured on, and of pictures side by side.
        scales: head guidance scales that are swept after a search.
        device, dtype: where models run, and the model's number format.
        quick: measure so little that it only shows that everything runs.
    """
    extent = Extent(prompts, count, batch, scales=scales)
    bench = Bench(folder, extent.quick() if quick else extent, device, dtype)
    for name in stages:
        print(f"\n## {name}", flush=True)
        STAGES[name](bench)


if __name__ == "__main__":
    tyro.cli(main)
