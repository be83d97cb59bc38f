"""The search against algorithm 1 written out, resumption, and what it refuses."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from dit_heads import HeadGuidance, HeadId, HeadSet
from dit_heads.hunt.config import HuntConfig, read_prompts, style_prompts
from dit_heads.hunt.hunter import HeadHunter
from dit_heads.hunt.rounds import picture_count, rungs_of_round
from dit_heads.hunt.scorer import Scorer, in_process
from tests.saved import red, tiny_flux_pipeline, tiny_pipeline

PROMPTS = ("a cat", "two dogs")
CONFIG = HuntConfig(rounds=2, per_round=2, scale=4.0, steps=2, seeds=(0, 5), batch=5)
CALL = {"max_sequence_length": 8}


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def hunter(pipe, folder: Path, **options) -> HeadHunter:
    given = {"config": CONFIG, "call": CALL, "candidates": "L0H0-2, L2H1-3"} | options
    return HeadHunter(pipe, red, PROMPTS, folder, **given)


def drawn(pipe, heads: list[HeadId], prompt: str, seed: int) -> float:
    """The score of one picture, guided by hand."""
    call = {"guidance_scale": 1.0, "num_inference_steps": 2, "output_type": "pt", **CALL}
    generator = torch.Generator().manual_seed(seed)
    if not heads:
        return pipe(prompt, generator=generator, **call).images[0, 0].mean().item()
    with HeadGuidance(pipe, HeadSet(heads), scale=4.0, softness=1.0):
        return pipe(prompt, generator=generator, **call).images[0, 0].mean().item()


def test_exhaustive_search_is_algorithm_1(pipe, tmp_path):
    result = hunter(pipe, tmp_path).run()
    candidates = [HeadId(0, h) for h in range(3)] + [HeadId(2, h) for h in (1, 2, 3)]
    pairs = [(prompt, seed) for seed in (0, 5) for prompt in PROMPTS]
    chosen: list[HeadId] = []
    for found in result.rounds:
        scores = {
            head: [drawn(pipe, [*chosen, head], *pair) for pair in pairs]
            for head in candidates
            if head not in chosen
        }
        assert found.scores.keys() == scores.keys()
        for head, of_head in scores.items():
            assert list(found.scores[head]) == pytest.approx(of_head, abs=1e-5)
        best = sorted(scores, key=lambda head: -fmean(scores[head]))[:2]
        assert list(found.chosen) == best
        chosen += best
    assert result.heads == HeadSet(chosen) and result.chosen == tuple(chosen)
    assert list(result.unguided) == pytest.approx([drawn(pipe, [], *pair) for pair in pairs], abs=1e-5)
    assert result.pictures == len(pairs) * (1 + 6 + 4)


def test_a_fast_search_draws_what_its_plan_says_and_chooses_by_real_pictures(pipe, tmp_path):
    config = replace(CONFIG, method="fast", share=0.9)
    search = hunter(pipe, tmp_path, config=config)
    result = search.run()
    for number, found in enumerate(result.rounds):
        chosen = list(result.chosen[: 2 * number])
        plan = rungs_of_round(config, 4, 6 - 2 * number)
        counts = sorted((len(scores) for scores in found.scores.values()), reverse=True)
        assert [sum(n >= rung.pairs for n in counts) for rung in plan] == [rung.candidates for rung in plan]
        steepest = sorted(found.scores, key=lambda head: -found.slopes[head])
        skipped = [h for h in search.candidates if h not in found.scores and h not in chosen]
        assert all(found.slopes[steepest[-1]] >= found.slopes[head] for head in skipped)
        for head, scores in found.scores.items():
            pairs = search.pairs[: len(scores)]
            assert list(scores) == pytest.approx([drawn(pipe, [*chosen, head], *p) for p in pairs], abs=1e-5)
        whole = {head: scores for head, scores in found.scores.items() if len(scores) == 4}
        assert list(found.chosen) == sorted(whole, key=lambda head: -fmean(whole[head]))[:2]
    assert result.pictures == picture_count(config, 4, 6)
    assert list(result.unguided) == pytest.approx([drawn(pipe, [], *p) for p in search.pairs], abs=1e-5)


def test_a_fast_search_of_every_picture_finds_what_the_exhaustive_one_does(pipe, tmp_path):
    options = replace(CONFIG, per_round=1)
    fast = hunter(pipe, tmp_path / "fast", config=replace(options, method="fast", share=1.0)).run()
    whole = hunter(pipe, tmp_path / "whole", config=options).run()
    assert fast.rounds[0].chosen == whole.rounds[0].chosen


def test_a_fast_search_and_an_exhaustive_one_share_a_folder(pipe, tmp_path):
    whole = hunter(pipe, tmp_path).run()
    calls = 0

    def none(batches):
        nonlocal calls
        calls += len(batches)
        return in_process(Scorer(pipe, red, {"guidance_scale": 1.0, **CALL}))(batches)

    config = replace(CONFIG, method="fast", rounds=1)
    fast = hunter(pipe, tmp_path, config=config, execute=none).run()
    assert (
        calls == 0
        and fast.rounds[0].scores.items()
        <= {
            head: scores[: len(fast.rounds[0].scores.get(head, ()))]
            for head, scores in whole.rounds[0].scores.items()
        }.items()
    )


@pytest.mark.parametrize("broken_at", [0, 2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 4))])
@pytest.mark.parametrize("method", ["exhaustive", "fast"])
def test_an_interrupted_search_goes_on_to_the_same_result(pipe, tmp_path, broken_at, method):
    config = replace(CONFIG, method=method, share=1.0)
    whole = hunter(pipe, tmp_path / "whole", config=config).run()
    drawn = 0

    def breaking(batches):
        nonlocal drawn
        for batch, scores in in_process(Scorer(pipe, red, {"guidance_scale": 1.0, **CALL}))(batches):
            if drawn == broken_at:
                raise KeyboardInterrupt
            drawn += 1
            yield batch, scores

    with pytest.raises(KeyboardInterrupt):
        hunter(pipe, tmp_path / "broken", config=config, execute=breaking).run()
    assert hunter(pipe, tmp_path / "broken", config=config).run() == whole
    lines = [(tmp_path / name / "trials.jsonl").read_text() for name in ("whole", "broken")]
    assert lines[0] == lines[1]


def test_the_order_in_which_batches_come_back_does_not_matter(pipe, tmp_path):
    local = in_process(Scorer(pipe, red, {"guidance_scale": 1.0, **CALL}))
    backwards = hunter(pipe, tmp_path / "a", execute=lambda batches: local(batches[::-1])).run()
    assert backwards == hunter(pipe, tmp_path / "b").run()


@pytest.mark.parametrize("method", ["exhaustive", "fast"])
def test_a_finished_search_that_runs_again_writes_the_same_files(pipe, tmp_path, method):
    config = replace(CONFIG, method=method, share=0.9, seeds=(0,), per_round=1)
    files = []
    for _ in range(2):
        search = hunter(pipe, tmp_path, config=config)
        search.write(search.run())
        search.scores([HeadSet.parse("L1H1")], scale=1.0)  # as `tune` does: not of this search
        files.append({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("seeds", (0, 1), r"seeds: \[0, 1\] there, \[0, 5\] here"),
        ("scale", 2.0, r"scale: 2\.0 there, 4\.0 here"),
        ("softness", 0.5, r"softness: 0\.5 there, 1\.0 here"),
        ("candidates", "L0", r"candidates: 'L0' there"),
        ("prompts", ["a bird"], r"prompts: \['a bird'\] there"),
    ],
)
def test_a_folder_with_results_of_other_pictures_is_refused(pipe, tmp_path, name, value, message):
    stored = {**hunter(pipe, tmp_path).provenance, name: value}
    (tmp_path / "heads.json").write_text(json.dumps({"heads": ["L0H0"], "provenance": stored}))
    with pytest.raises(ValueError, match=rf"folder: '.*heads\.json' is of another search \({message}"):
        hunter(pipe, tmp_path)


@pytest.mark.parametrize("text", ["notes", "{}", '{"heads": ["L0H1"]}', "[]"])
def test_results_of_something_else_are_left_alone(pipe, tmp_path, text):
    (tmp_path / "heads.json").write_text(text)
    with pytest.raises(ValueError, match=r"heads\.json' is not the result of a search; choose"):
        hunter(pipe, tmp_path)
    assert (tmp_path / "heads.json").read_text() == text


@pytest.mark.parametrize("text", ["{", "[]", '{"asked": 1}'])
def test_a_file_of_slopes_that_is_none_is_named(pipe, tmp_path, text):
    (tmp_path / "screen-1.json").write_text(text)
    with pytest.raises(ValueError, match=r"screen-1\.json' does not hold the slopes of a search"):
        hunter(pipe, tmp_path, config=replace(CONFIG, method="fast", share=1.0)).run()


def test_stored_slopes_of_another_model_are_not_taken(pipe, tmp_path):
    config = replace(CONFIG, method="fast", share=1.0, rounds=1)
    hunter(pipe, tmp_path / "a", config=config).run()
    other = tiny_pipeline()
    torch.nn.init.normal_(other.transformer.proj_out.weight)
    other.set_progress_bar_config(disable=True)
    fresh = hunter(other, tmp_path / "b", config=config).run()
    (tmp_path / "c").mkdir()
    (tmp_path / "a/screen-1.json").rename(tmp_path / "c/screen-1.json")
    assert hunter(other, tmp_path / "c", config=config).run() == fresh


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_flux_is_searched_fast_in_half_precision(tmp_path, dtype):
    """Its pipelines cast timesteps to the precision of the latents: steps are told by their index."""
    flux = tiny_flux_pipeline()
    flux.set_progress_bar_config(disable=True)
    for part in (flux.transformer, flux.vae, flux.text_encoder, flux.text_encoder_2):
        part.to(dtype)
    config = HuntConfig(method="fast", share=1.0, per_round=1, steps=4, batch=2, micro_batch=1)
    call = CALL | {"height": 16, "width": 16}
    found = HeadHunter(flux, red, PROMPTS, tmp_path, config, call=call, candidates="L0H0, L2H1").run()
    for each in found.rounds:
        assert set(each.slopes) == {HeadId(b, h) for b in range(3) for h in range(4)}
        assert any(each.slopes.values())


def test_a_screen_that_is_broken_off_stores_nothing(pipe, tmp_path):
    def flat(images, prompts):
        return red(images.detach(), prompts)

    flat.name = "flat"  # pyright: ignore[reportFunctionMemberAccess]
    config = replace(CONFIG, method="fast", share=1.0)
    with pytest.raises(ValueError, match="the fast search takes its gradient"):
        HeadHunter(pipe, flat, PROMPTS, tmp_path, config, call=CALL).run()
    assert [path.name for path in tmp_path.iterdir()] == ["trials.jsonl"]


def test_every_head_is_a_candidate_by_default(pipe, tmp_path):
    found = hunter(pipe, tmp_path, candidates=None, config=HuntConfig(steps=1, per_round=1)).run()
    assert set(found.rounds[0].scores) == {HeadId(b, h) for b in range(3) for h in range(4)}


def test_more_rounds_of_the_same_search_use_its_log(pipe, tmp_path):
    first = hunter(pipe, tmp_path, config=HuntConfig(rounds=1, per_round=2, scale=4.0, steps=2)).run()
    more = hunter(pipe, tmp_path, config=HuntConfig(rounds=2, per_round=2, scale=4.0, steps=2)).run()
    assert more.rounds[0] == first.rounds[0] and more.pictures == first.pictures + 2 * 4


def test_another_search_in_the_same_folder_is_refused(pipe, tmp_path):
    hunter(pipe, tmp_path)
    with pytest.raises(ValueError, match=r"of another search .*region: 'joint' there, 'image' here"):
        hunter(pipe, tmp_path, config=HuntConfig(region="image"))
    with pytest.raises(ValueError, match=r"of another search .*weights"):
        other = tiny_pipeline()
        torch.nn.init.normal_(other.transformer.proj_out.weight)
        hunter(other, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": "L0H9"}, "heads: block 0 has heads up to L0H3"),
        ({"config": HuntConfig(rounds=3, per_round=3)}, "expected at most 6 heads in all.*3 x 3"),
    ],
)
def test_bad_arguments_are_refused(pipe, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        hunter(pipe, tmp_path, **options)


@pytest.mark.parametrize("prompts", [[], ["a cat", " "]])
def test_no_prompts_or_empty_ones_are_refused(pipe, tmp_path, prompts):
    with pytest.raises(ValueError, match="prompts: expected at least one"):
        HeadHunter(pipe, red, prompts, tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("rounds", 0), ("per_round", 0), ("steps", 0), ("batch", 0), ("seeds", ())]
)
def test_bad_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"{name}: expected a (whole number|list)"):
        HuntConfig(**{name: value})


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.tensor([1.0, float("nan"), 1.0, 1.0, 1.0]), "not finite for 'two dogs'"),
        (torch.zeros(5, 2), r"gave \(5, 2\), expected a tensor \(5,\)"),
        (3.0, "gave float"),
    ],
)
def test_scores_that_are_none_end_the_search(pipe, tmp_path, scores, message):
    def odd(images, prompts):
        return scores

    odd.name = "odd"  # pyright: ignore[reportFunctionMemberAccess]
    with pytest.raises(ValueError, match=message):
        HeadHunter(pipe, odd, PROMPTS, tmp_path, CONFIG, call=CALL).run()


def test_what_is_written_shows_the_search(pipe, tmp_path):
    search = hunter(pipe, tmp_path)
    result = search.run()
    written = {path.name for path in search.write(result)}
    assert written == {"heads.json", "scores.csv", "curve.png", "sheet.png", "round-1.png", "round-2.png"}
    assert {path.name for path in tmp_path.iterdir()} == written | {"trials.jsonl"}
    assert HeadSet.load(tmp_path / "heads.json") == result.heads
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * (6 + 4)
    assert {row["head"] for row in rows if row["chosen"] == "1"} == set(map(str, result.chosen))
    first = result.rounds[0].chosen[0]
    of_first = [float(row["score"]) for row in rows if row["round"] == "1" and row["head"] == str(first)]
    assert of_first == list(result.rounds[0].scores[first])


def test_the_curve_goes_from_no_heads_to_all_that_were_chosen(pipe, tmp_path):
    search = hunter(pipe, tmp_path)
    result = search.run()
    curve = search.curve(result)
    assert len(curve) == 5 and curve[0] == list(result.unguided)
    assert curve[1] == list(result.rounds[0].scores[result.chosen[0]])
    assert curve[3] == list(result.rounds[1].scores[result.chosen[2]])


def test_style_prompts():
    assert style_prompts("{style}, {content}", ["at night"], ["a cat", "a dog"]) == [
        "at night, a cat",
        "at night, a dog",
    ]
    with pytest.raises(ValueError, match=r"template: expected \{style\} and \{content\}"):
        style_prompts("{style}", ["a"], ["b"])


def test_prompts_of_a_file(tmp_path):
    (tmp_path / "p.txt").write_text("a cat\n\n  two dogs \n")
    assert read_prompts(tmp_path / "p.txt") == ["a cat", "two dogs"]
    (tmp_path / "p.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="holds none"):
        read_prompts(tmp_path / "p.txt")
