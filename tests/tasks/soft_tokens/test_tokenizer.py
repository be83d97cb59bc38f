from pathlib import Path

import pytest
import torch

from dit_heads.errors import InputError
from dit_heads.io.atomic import write_tensors
from dit_heads.tasks.soft_tokens.files import load_tokenizer, save_module
from dit_heads.tasks.soft_tokens.soft import probabilities
from dit_heads.tasks.soft_tokens.tokenizer import Tokenizer, TokenizerConfig

CONFIG = TokenizerConfig("depth", 32, 2, (8, 16), 12, 6)


@pytest.fixture
def tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    made = Tokenizer(CONFIG).eval()
    made.codebook.embedding.data.normal_()
    return made


MAPS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_a_map_becomes_tokens_row_by_row_and_a_map_again(tokenizer: Tokenizer):
    assert (CONFIG.stride, CONFIG.tokens) == (4, 64)
    vectors = tokenizer.encode(MAPS)
    assert vectors.shape == (2, 64, 6)
    changed = MAPS.clone()
    changed[:, :, :16] += 1  # the upper half changes the tokens of the upper half most
    moved = (tokenizer.encode(changed) - vectors).abs().mean((0, 2)).unflatten(0, (8, 8))
    assert moved[:4].mean() > moved[4:].mean()
    assert tokenizer.decode_tokens(tokenizer.tokenize(MAPS)).shape == (2, 2, 32, 32)


def test_soft_tokens_of_certain_probabilities_are_hard_tokens(tokenizer: Tokenizer):
    logits = torch.randn(2, 64, 12, generator=torch.Generator().manual_seed(1))
    hard = tokenizer.decode_tokens(logits.argmax(-1))
    assert torch.allclose(tokenizer.decode_soft(probabilities(logits, float("inf"))), hard, atol=1e-6)


def test_a_file_gives_the_tokenizer_back(tokenizer: Tokenizer, tmp_path: Path):
    tokenizer.half().float()  # as a file holds it
    save_module(tokenizer, CONFIG, tmp_path / "t.safetensors")
    loaded = load_tokenizer(tmp_path / "t.safetensors")
    assert loaded.config == CONFIG
    assert torch.equal(loaded.tokenize(MAPS), tokenizer.tokenize(MAPS))
    assert not any(p.requires_grad for p in loaded.parameters())


def test_other_files_and_sizes_are_refused(tokenizer: Tokenizer, tmp_path: Path):
    with pytest.raises(InputError, match=r"maps: expected \[b, 3, 32, 32\] for depth, got \[2, 3, 16, 32\]"):
        tokenizer.encode(MAPS[:, :, :16])
    path = tmp_path / "other.safetensors"
    with pytest.raises(InputError, match="expected a file of weights"):
        load_tokenizer(path)
    write_tensors(path, {"a": torch.zeros(1)}, {})
    with pytest.raises(InputError, match="settings of soft tokens"):
        load_tokenizer(path)
    save_module(torch.nn.Linear(2, 2), CONFIG, path)
    with pytest.raises(InputError, match="expected the weights of its settings"):
        load_tokenizer(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 30}, "size: expected a multiple of 4"),
        ({"channels": (8, 12)}, r"multiples of 8, got \[12\]"),
        ({"near": 9.0, "far": 2.0}, "near < far"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change: dict, message: str):
    with pytest.raises(InputError, match=message):
        TokenizerConfig(**{"kind": "depth", "size": 32, "channels": (8, 16), **change})
