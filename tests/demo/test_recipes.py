"""What is offered to copy draws the very picture."""

import shlex

import pytest

from dit_heads.cli import main
from dit_heads.demo.drawing import Drawing
from dit_heads.demo.recipes import command_line, python_code
from dit_heads.io.pictures import read_image

KINDS = {
    "plain": {},
    "guided": {"heads": "L1H2, L2", "scale": 4.0, "softness": 0.5, "seed": 7},
    "all": {
        "prompt": "a 'cat'; $HOME \"\\n",
        "negative_prompt": "a dog",
        "heads": "L0H1-2",
        "perturbation": "temperature",
        "temperature": 2.5,
        "region": "image",
        "start": 0.5,
        "steps": 3,
        "width": 48,
        "height": 32,
    },
}


@pytest.mark.parametrize("name", KINDS)
def test_the_command_and_the_code_draw_the_picture_again(roomy, model, settings, tmp_path, monkeypatch, name):
    asked = settings(**KINDS[name])
    expected = roomy.submit(model, Drawing(asked)).wait(60).image.tobytes()
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command_line(asked))
    assert words[0] == "dit-heads" and main(words[1:]) == 0
    assert read_image(tmp_path / "picture.png").tobytes() == expected
    (tmp_path / "picture.png").unlink()
    exec(python_code(asked), {})
    assert read_image(tmp_path / "picture.png").tobytes() == expected
