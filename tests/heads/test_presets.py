import pytest

from dit_heads.heads.presets import named_heads

# Blocks and heads a block of the models that the paper searched.
SIZES = {
    "stabilityai/stable-diffusion-3-medium-diffusers": (24, 24),
    "black-forest-labs/FLUX.1-dev": (57, 24),
}


@pytest.mark.parametrize("named", list(named_heads()), ids=lambda named: f"{named.model}: {named.effect}")
def test_each_fits_its_model_and_names_its_source(named):
    blocks, heads = SIZES[named.model]
    assert named.heads.resolve([heads] * blocks)
    assert "arXiv" in named.source and not named.verified


def test_effects_are_told_apart():
    keys = [(named.model, named.effect) for named in named_heads()]
    assert len(keys) == len(set(keys)) == 25
