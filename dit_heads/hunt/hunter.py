"""HeadHunter: the attention heads that raise an objective (arXiv 2506.10978, algorithm 1), exactly or fast.

The fast search screens all heads by gradients. It draws pictures only for the most promising heads, and more
pictures the better a head does. It chooses by real pictures, as the exhaustive search does.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from dit_heads.errors import InputError
from dit_heads.heads import HeadId, HeadSet
from dit_heads.heads.names import every_head
from dit_heads.hunt.config import HuntConfig
from dit_heads.hunt.cost import ScreenCost
from dit_heads.hunt.evaluator import Done, Evaluator
from dit_heads.hunt.log import TrialLog
from dit_heads.hunt.report import check_folder, result_sheet, write_result
from dit_heads.hunt.result import Result, Round, provenance_of
from dit_heads.hunt.rounds import exhaustive_round, fast_round, picture_count
from dit_heads.hunt.scorer import Backend, HeadCounts, InProcess, Scorer
from dit_heads.hunt.slopes import slopes_of_round
from dit_heads.hunt.trials import Execute, Pair, Strength
from dit_heads.objectives import Objective


class HeadHunter:
    """Search the heads of a pipeline for those that raise an objective.

    >>> hunter = HeadHunter(pipe, embedded_clip(), prompts, Path("hunts/night"))   # doctest: +SKIP
    >>> result = hunter.run()                                                      # doctest: +SKIP

    Args:
        pipe: a text-to-image pipeline.
        objective: what scores its pictures.
        prompts: each is drawn with every seed of the config.
        folder: where the log is. The same search resumes there; another one is refused.
        config: the settings.
        candidates: the heads to choose among. Default: all.
        call: further arguments of the pipeline.
        execute: scores batches. Default: in this process.

    Raises:
        InputError: for bad arguments, and for an objective that does not give one finite number a picture.
    """

    def __init__(
        self,
        pipe: Any,
        objective: Objective,
        prompts: Sequence[str],
        folder: Path,
        config: HuntConfig | None = None,
        *,
        candidates: HeadSet | str | None = None,
        call: Mapping[str, Any] | None = None,
        execute: Execute | None = None,
    ) -> None:
        config = config or HuntConfig()
        given = {"guidance_scale": config.guidance_scale, **(call or {})}
        kind = {name: getattr(config, name) for name in ("perturbation", "region", "temperature")}
        scorer = Scorer(pipe, objective, given, **kind)
        _check_prompts(prompts)
        self._start(InProcess(scorer, execute), prompts, folder, config, candidates)

    @classmethod
    def on(
        cls,
        backend: Backend,
        prompts: Sequence[str],
        folder: Path,
        config: HuntConfig,
        *,
        candidates: HeadSet | str | None = None,
    ) -> HeadHunter:
        """A search whose pipeline and objective only the workers of `backend` hold.

        Args:
            backend: what draws and scores, such as `cluster.Cluster`.
            prompts, folder, config, candidates: as for a search in this process.

        Raises:
            InputError: for bad arguments.
        """
        hunter = cls.__new__(cls)
        _check_prompts(prompts)
        hunter._start(backend, prompts, folder, config, candidates)
        return hunter

    def _start(
        self,
        backend: Backend,
        prompts: Sequence[str],
        folder: Path,
        config: HuntConfig,
        candidates: HeadSet | str | None,
    ) -> None:
        self.backend, self.config, self.folder = backend, config, Path(folder)
        self.pairs: list[Pair] = [(prompt, seed) for seed in config.seeds for prompt in prompts]
        self.candidates = _candidates(backend.head_counts, candidates)
        _check_rounds(config, len(self.candidates))
        # All that scores depend on; the rest of the settings each trial has itself, so that they may vary.
        self.header = {**backend.identity, "batch": config.batch}
        self.provenance = provenance_of(self.header, config, prompts, self.candidates)
        self.log = TrialLog(self.folder / "trials.jsonl", self.header)
        check_folder(self.folder, self.provenance)
        self.evaluator = Evaluator(backend, self.log, config, self.pairs)

    def run(self) -> Result:
        """Search until the end, with a progress bar. After an interruption, call it again to resume."""
        rounds: list[Round] = []
        chosen: tuple[HeadId, ...] = ()
        self.evaluator.used.clear()
        total = picture_count(self.config, len(self.pairs), len(self.candidates))
        with tqdm(total=total, unit="picture", desc="hunting") as bar:
            for number in range(1, self.config.rounds + 1):
                rounds.append(self._round(number, chosen, bar.update))
                chosen += rounds[-1].chosen
            unguided = self.evaluator.scores([None], self.pairs, bar.update)[0]
        return Result(tuple(rounds), unguided, len(self.evaluator.used), self.provenance)

    def _round(self, number: int, chosen: tuple[HeadId, ...], done: Done) -> Round:
        left = [head for head in self.candidates if head not in chosen]
        if self.config.method == "exhaustive":
            return exhaustive_round(self.evaluator, left, chosen, done)
        path = self.folder / f"screen-{number}.json"
        slopes = slopes_of_round(self.evaluator, chosen, path, self.header, done)
        return fast_round(self.evaluator, left, chosen, slopes, done)

    def write(self, result: Result) -> list[Path]:
        """Write everything that shows a result into the folder of the search; see `report.write_result`.

        Args:
            result: what `run` returned.

        Returns:
            The files.
        """
        return write_result(self.folder, result, self.pairs, self.curve(result), contact_sheet(self, result))

    def cost(self) -> ScreenCost | None:
        """What the gradient screen of a round takes; None for an exhaustive search, which has none."""
        if self.config.method != "fast":
            return None
        return self.backend.cost(self.pairs[0][0], len(self.pairs), self.config.micro_batch)

    def curve(self, result: Result) -> list[list[float]]:
        """Scores of the first 0, 1, 2 and so on of the chosen heads, each a list with a score for each pair.

        Args:
            result: what `run` returned.
        """
        return self.scores([_set_of(result.chosen[:n]) for n in range(len(result.chosen) + 1)])

    def scores(
        self, sets: Sequence[HeadSet | None], *, scale: float | None = None, softness: float | None = None
    ) -> list[list[float]]:
        """Scores of head sets, from the log or from pictures that are drawn now.

        Args:
            sets: None stands for no guidance.
            scale, softness: of the pictures. Default: those of the search.

        Returns:
            A list for each set, with a score for each pair.
        """
        strength = Strength(
            self.config.scale if scale is None else scale,
            self.config.softness if softness is None else softness,
        )
        with tqdm(total=len(sets) * len(self.pairs), unit="picture", desc="scoring", leave=False) as bar:
            return self.evaluator.scores(sets, self.pairs, bar.update, strength)


def contact_sheet(hunter: HeadHunter, result: Result, rows: int = 5) -> Image.Image:
    """Draw pictures without heads and after each round, side by side.

    Args:
        hunter: the search.
        result: what its `run` returned.
        rows: number of (prompt, seed) pairs that are shown, from the first.

    Returns:
        A sheet with a row for each pair and a column for each round.
    """
    after = itertools.accumulate((found.chosen for found in result.rounds), initial=())
    pairs = hunter.pairs[:rows]
    cells = [hunter.evaluator.pictures(_set_of(heads), pairs) for heads in after]
    footer = f"scale {hunter.config.scale:g}, softness {hunter.config.softness:g}"
    return result_sheet(result, pairs, cells, footer)


def _check_prompts(prompts: Sequence[str]) -> None:
    if not prompts or not all(isinstance(p, str) and p.strip() for p in prompts):
        raise InputError(f"prompts: expected at least one, and none empty, got {list(prompts)}")


def _check_rounds(config: HuntConfig, candidates: int) -> None:
    if config.rounds * config.per_round > candidates:
        raise InputError(
            f"rounds, per_round: expected at most {candidates} heads in all, the number of candidates, "
            f"got {config.rounds} x {config.per_round}"
        )


def _set_of(heads: Sequence[HeadId]) -> HeadSet | None:
    return HeadSet(heads) if heads else None


def _candidates(counts: HeadCounts, heads: HeadSet | str | None) -> tuple[HeadId, ...]:
    if heads is None:
        return every_head(*counts)
    return (HeadSet.parse(heads) if isinstance(heads, str) else heads).resolve(*counts)
