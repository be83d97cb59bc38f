"""In which words the instruct task asks while it trains."""

import json
from pathlib import Path

import pytest

from dit_heads.embedded.world.text import unknown_words
from dit_heads.loras.config import TrainConfig, config_of
from dit_heads.loras.tasks.instruct import Instruct
from dit_heads.loras.tasks.pairs import Question
from dit_heads.tasks.instructions import canonical, fill, frame_of, phrases


def asking(model: str | Path, **chosen: object) -> TrainConfig:
    instruct = {"conditioning": "tokens", "scenes": 50, **chosen}
    return config_of({"task": "instruct", "model": str(model), "instruct": instruct})


def asked(config: TrainConfig) -> list[Question]:
    """The questions of many steps."""
    questions = Instruct.of(config).asked
    return [question for step in range(16) for question in questions.batch_at(step, 50)]


@pytest.mark.parametrize("model", ["embedded", "other"])
def test_unseen_phrasings_never_occur_in_training(model: str, models: dict[str, Path]):
    found = asked(asking(models["sd3"] if model == "other" else model))
    drawn: dict[str, set[str]] = {}
    for question in found:
        frame = frame_of(question.query)
        unseen = {fill(phrase, question.query) for phrase in phrases(frame, "unseen")}
        seen = [phrase for phrase in phrases(frame, "seen") if fill(phrase, question.query) == question.words]
        assert question.words not in unseen and seen, question.words
        drawn.setdefault(frame, set()).update(seen)
    assert len(drawn) == 7 and len(drawn["depth"]) >= 15
    if model == "other":
        assert len(drawn["depth"]) >= 30


def test_an_embedded_model_reads_every_word_in_many_phrasings():
    words = {question.words for question in asked(asking("embedded"))}
    assert {word for text in words for word in unknown_words(text)} == set()
    assert len(words) > 300


def test_enough_phrasings_can_be_read_on_both_sides():
    """So that unseen ones can be measured on the embedded models."""
    for question in {frame_of(q.query): q for q in asked(asking("embedded"))}.values():
        for split, least in (("seen", 18), ("unseen", 4)):
            texts = [fill(phrase, question.query) for phrase in phrases(frame_of(question.query), split)]
            assert len([text for text in texts if not unknown_words(text)]) >= least, (question.words, split)


def test_validation_asks_as_users_do_and_so_does_a_run_without_paraphrases():
    plain = Instruct.of(asking("embedded", paraphrase=False))
    varied = Instruct.of(asking("embedded"))
    for question in plain.asked.batch_at(0, 20) + varied._measured():
        assert question.words == canonical(question.query)


def test_phrases_of_a_file_are_asked_too_and_are_contents_of_the_run(tmp_path: Path):
    path, phrase = tmp_path / "more.json", "Make the depth of this far scene."
    path.write_text(json.dumps({"depth": [phrase]}))
    config = asking("embedded", phrases=str(path), tasks=["depth"])
    assert phrase in {question.words for question in asked(config)}
    before = Instruct.of(config).contents()
    path.write_text(json.dumps({"depth": [phrase, "Make a depth."]}))
    assert Instruct.of(config).contents() != before
