"""Settings that no search could follow are refused before anything else happens."""

import subprocess
import sys
from typing import Any

import pytest

from dit_heads.errors import InputError
from dit_heads.hunt.config import HuntConfig, read_prompts, style_prompts


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scale": 0.0}, "scale: expected a number above 0, got 0.0"),
        ({"scale": float("inf")}, "scale: expected"),
        ({"softness": 3.0}, "softness: expected a number above 0 and at most 1, got 3.0"),
        ({"softness": 0.0}, "softness: expected"),
        ({"share": 0.0}, "share: expected a number above 0"),
        ({"method": "quick"}, "method: expected 'exhaustive' or 'fast', got 'quick'"),
        ({"guidance_scale": -1.0}, "guidance_scale: expected a number of at least 0"),
        ({"seeds": (2**70,)}, "seeds: expected"),
        ({"seeds": (-1,)}, "seeds: expected"),
        ({"micro_batch": 0}, "micro_batch: expected a whole number of at least 1"),
        ({"perturbation": "blur"}, "perturbation: expected identity, uniform"),
        ({"region": "sky"}, "region: expected joint, image"),
        ({"perturbation": "uniform", "region": "image_to_image"}, "'image_to_image' is defined for identity"),
        ({"perturbation": "temperature"}, "temperature: expected a number for 'temperature'"),
        ({"temperature": 2.0}, "temperature: expected a number for 'temperature' and for no other"),
    ],
)
def test_settings_out_of_range_are_refused(given: Any, message):
    with pytest.raises(InputError, match=message):
        HuntConfig(**given)


def test_every_perturbation_can_be_searched_with():
    assert HuntConfig(perturbation="temperature", temperature=2.0, region="image").temperature == 2.0
    assert HuntConfig(region="image_to_image").region == "image_to_image"


def test_settings_are_light_to_import():
    script = "import sys, dit_heads.hunt.config as c; c.HuntConfig(); print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "False"


@pytest.mark.parametrize(
    "template",
    ["{style}", "{content}", "{style} {content} {mood}", "{style}, {content}, {}", "{style} {content} {"],
)
def test_a_template_of_other_braces_is_refused(template):
    with pytest.raises(InputError, match=r"template: expected \{style\} and \{content\} in it, and no other"):
        style_prompts(template, ["at night"], ["a cat"])


def test_a_file_of_prompts_that_is_no_text_is_named(tmp_path):
    (tmp_path / "prompts.txt").write_bytes(b"a cat\n\xff\xfe\n")
    with pytest.raises(InputError, match=r"prompts: cannot read '.*prompts\.txt'"):
        read_prompts(tmp_path / "prompts.txt")
