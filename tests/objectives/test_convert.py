"""The conversions against forwards written out from the original models' own definitions."""

import pickle
import string
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close
from transformers import CLIPModel, CLIPTokenizer

from dit_heads.objectives import aesthetic_head, hpsv2
from dit_heads.objectives.convert import convert_aesthetic, convert_hpsv2

WIDTH, TEXT_WIDTH, EMBED, INNER, SIZE, PATCH, LENGTH = 20, 16, 12, 24, 24, 8, 10
HEADS = {"text_head": 8, "vision_head": 10}
PIECES = [c + end for c in string.ascii_lowercase for end in ("", "</w>")]
WORDS = len(PIECES) + 2
State = dict[str, Tensor]


def drawn(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> State:
    g = torch.Generator().manual_seed(0)
    return {k: 0.3 * torch.randn(shape, generator=g).to(dtype) for k, shape in shapes.items()}


def blocks(prefix: str, width: int, inner: int, depth: int) -> dict[str, tuple[int, ...]]:
    parts: dict[str, tuple[int, ...]] = {
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
        "mlp.c_fc.weight": (inner, width),
        "mlp.c_fc.bias": (inner,),
        "mlp.c_proj.weight": (width, inner),
        "mlp.c_proj.bias": (width,),
    }
    return {f"{prefix}transformer.resblocks.{n}.{k}": v for n in range(depth) for k, v in parts.items()}


def open_clip_state() -> State:
    """Random weights of an open_clip CLIP of two ViTs: 2 blocks for pictures, 11 for texts."""
    norms = {"visual.ln_pre": WIDTH, "visual.ln_post": WIDTH, "ln_final": TEXT_WIDTH}
    return drawn(
        {
            "visual.class_embedding": (WIDTH,),
            "visual.positional_embedding": ((SIZE // PATCH) ** 2 + 1, WIDTH),
            "visual.conv1.weight": (WIDTH, 3, PATCH, PATCH),
            "visual.proj": (WIDTH, EMBED),
            "token_embedding.weight": (WORDS, TEXT_WIDTH),
            "positional_embedding": (LENGTH, TEXT_WIDTH),
            "text_projection": (TEXT_WIDTH, EMBED),
            "logit_scale": (),
            **{f"{n}.{part}": (width,) for n, width in norms.items() for part in ("weight", "bias")},
            **blocks("visual.", WIDTH, INNER, 2),
            **blocks("", TEXT_WIDTH, INNER, 11),
        }
    )


def norm(x: Tensor, s: State, name: str) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    x = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    return x * s[f"{name}.weight"] + s[f"{name}.bias"]


def block(x: Tensor, s: State, name: str, head: int, mask: Tensor | float = 0.0) -> Tensor:
    """[N, D] -> [N, D], every head's map written out."""
    joint = norm(x, s, f"{name}.ln_1") @ s[f"{name}.attn.in_proj_weight"].T + s[f"{name}.attn.in_proj_bias"]
    q, k, v = (part.split(head, dim=-1) for part in joint.split(x.shape[-1], dim=-1))
    maps = [(a @ b.T * head**-0.5 + mask).softmax(-1) for a, b in zip(q, k, strict=True)]
    seen = torch.cat([m @ c for m, c in zip(maps, v, strict=True)], dim=-1)
    x = x + seen @ s[f"{name}.attn.out_proj.weight"].T + s[f"{name}.attn.out_proj.bias"]
    inner = norm(x, s, f"{name}.ln_2") @ s[f"{name}.mlp.c_fc.weight"].T + s[f"{name}.mlp.c_fc.bias"]
    inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    return x + inner @ s[f"{name}.mlp.c_proj.weight"].T + s[f"{name}.mlp.c_proj.bias"]


def embed_image(pixels: Tensor, s: State) -> Tensor:
    """One picture [3, S, S] -> [E]."""
    cut = [
        (s["visual.conv1.weight"] * pixels[:, y : y + PATCH, x : x + PATCH]).sum((1, 2, 3))
        for y in range(0, SIZE, PATCH)
        for x in range(0, SIZE, PATCH)
    ]
    x = torch.stack([s["visual.class_embedding"], *cut]) + s["visual.positional_embedding"]
    x = norm(x, s, "visual.ln_pre")
    for n in range(2):
        x = block(x, s, f"visual.transformer.resblocks.{n}", HEADS["vision_head"])
    return norm(x[0], s, "visual.ln_post") @ s["visual.proj"]


def embed_text(ids: Tensor, s: State) -> Tensor:
    """One text [N] -> [E]; the vector at the highest id is its own."""
    x = s["token_embedding.weight"][ids] + s["positional_embedding"][: len(ids)]
    mask = torch.full((len(ids), len(ids)), float("-inf"), dtype=x.dtype).triu(1)
    for n in range(11):
        x = block(x, s, f"transformer.resblocks.{n}", HEADS["text_head"], mask)
    return norm(x, s, "ln_final")[ids.argmax()] @ s["text_projection"]


@pytest.fixture(scope="module")
def state() -> State:
    return open_clip_state()


@pytest.fixture(scope="module")
def folder(state, tmp_path_factory) -> Path:
    work = tmp_path_factory.mktemp("hpsv2")
    torch.save({"state_dict": state, "epoch": 3}, work / "model.pt")
    convert_hpsv2(work / "model.pt", work / "converted", **HEADS)
    vocabulary = {p: i for i, p in enumerate([*PIECES, "<|startoftext|>", "<|endoftext|>"])}
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(work / "tokenizer")
    return work


def test_converted_towers_equal_the_forward_written_out(folder, state):
    model: Any = CLIPModel.from_pretrained(folder / "converted", dtype=torch.float64).eval()
    double = {k: v.double() for k, v in state.items()}
    pixels = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ids = torch.tensor([[WORDS - 2, 5, 7, 9, WORDS - 1, 0, 0], [WORDS - 2, 5, WORDS - 1, 0, 0, 0, 0]])
    with torch.no_grad():
        seen = model.get_image_features(pixel_values=pixels).pooler_output
        said = model.get_text_features(input_ids=ids).pooler_output
    assert_close(seen, torch.stack([embed_image(p, double) for p in pixels]), atol=1e-10, rtol=1e-8)
    assert_close(said, torch.stack([embed_text(i, double) for i in ids]), atol=1e-10, rtol=1e-8)
    assert_close(model.logit_scale, double["logit_scale"])


def test_hpsv2_is_the_plain_cosine_of_letterboxed_pictures(folder, state):
    score = hpsv2(str(folder / "converted"), str(folder / "tokenizer"))
    image = torch.rand(1, 3, SIZE // 2, SIZE, generator=torch.Generator().manual_seed(2))
    boxed = F.pad(image[0], (0, 0, SIZE // 4, SIZE // 4))
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    pixels = (boxed - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    letters = [PIECES.index("a"), PIECES.index("b</w>")]
    ids = torch.tensor([WORDS - 2, *letters, WORDS - 1])
    expected = F.cosine_similarity(embed_image(pixels, state), embed_text(ids, state), dim=0)
    assert_close(score(image, ["ab"]), expected[None], atol=1e-5, rtol=0)
    assert score.name == f"hpsv2:{folder / 'converted'}"


def test_a_conversion_keeps_the_dtype_and_leaves_nothing_else(state, tmp_path):
    torch.save({"state_dict": {k: v.half() for k, v in state.items()}}, tmp_path / "model.pt")
    convert_hpsv2(tmp_path / "model.pt", tmp_path / "out" / "deep", **HEADS)
    files = sorted(path.name for path in (tmp_path / "out" / "deep").iterdir())
    assert files == ["config.json", "model.safetensors"]
    assert {t.dtype for t in load_file(tmp_path / "out/deep/model.safetensors").values()} == {torch.float16}


def edited(state: State, **changes: Tensor | None) -> State:
    """`state` with weights replaced, added or (None) left out; `__` stands for a dot."""
    new = state | {k.replace("__", "."): v for k, v in changes.items() if v is not None}
    return {k: v for k, v in new.items() if changes.get(k.replace(".", "__"), v) is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logit_scale": None}, "missing: logit_scale; unknown: none"),
        ({"visual__head": torch.ones(1)}, "missing: none; unknown: visual.head"),
        (
            {"transformer__resblocks__4__ln_1__bias": None, "extra": torch.ones(1)},
            "missing: transformer.resblocks.4.ln_1.bias; unknown: extra",
        ),
        (
            {"transformer__resblocks__11__ln_1__bias": torch.ones(TEXT_WIDTH)},
            r"missing: transformer.resblocks.11.attn.in_proj_bias, .* and 3 more; unknown: none",
        ),
        ({"ln_final__bias": torch.ones(3)}, r"text_model.final_layer_norm.bias to be \(16,\), got \(3,\)"),
        ({"visual__positional_embedding": torch.ones(9, WIDTH)}, r"to be \(5, 20\), got \(9, 20\)"),
    ],
    ids=str,
)
def test_other_weights_are_refused_by_name(state, tmp_path, changes, message):
    torch.save({"state_dict": edited(state, **changes)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=message):
        convert_hpsv2(tmp_path / "model.pt", tmp_path / "out", **HEADS)
    assert not (tmp_path / "out").exists()


def test_a_head_that_does_not_divide_the_width_is_refused(state, tmp_path):
    torch.save({"state_dict": state}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="vision_head: expected a divisor of the width 20, got 80"):
        convert_hpsv2(tmp_path / "model.pt", tmp_path / "out")


class Runs:
    """A pickle that would run code when it is read."""

    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


@pytest.mark.parametrize("convert", [convert_hpsv2, convert_aesthetic])
def test_what_is_not_tensors_is_refused_and_not_run(tmp_path, monkeypatch, convert):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code.pt").write_bytes(pickle.dumps(Runs()))
    (tmp_path / "text.pt").write_text("nothing")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    torch.save({"other": torch.ones(1)}, tmp_path / "other.pt")
    for name in ("code.pt", "text.pt", "absent.pt", "list.pt", "other.pt"):
        with pytest.raises(ValueError, match=r"^(pickle_path: .*'.+\.pt'|weights: expected layers)"):
            convert(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


# --- LAION's aesthetic predictor ---

# The numbers and widths of the official pickle.
OFFICIAL = {0: (1024, 768), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}


def aesthetic_state(layers: dict[int, tuple[int, int]]) -> State:
    shapes: dict[str, tuple[int, ...]] = {f"layers.{n}.weight": shape for n, shape in layers.items()}
    return drawn(shapes | {f"layers.{n}.bias": shape[:1] for n, shape in layers.items()})


def test_the_predictor_is_the_product_of_its_layers(tmp_path):
    state = aesthetic_state(OFFICIAL)
    torch.save(state, tmp_path / "head.pth")
    convert_aesthetic(tmp_path / "head.pth", tmp_path / "head.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["head.pth", "head.safetensors"]
    x = torch.randn(3, 768, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = x
    for n in (0, 2, 4, 6, 7):
        expected = expected @ state[f"layers.{n}.weight"].double().T + state[f"layers.{n}.bias"].double()
    head = aesthetic_head(load_file(tmp_path / "head.safetensors")).double()
    assert_close(head(x), expected)


def test_layers_are_in_the_order_of_their_numbers():
    layers = {2: (3, 4), 10: (1, 3)}
    assert [layer.weight.shape for layer in aesthetic_head(aesthetic_state(layers))] == [(3, 4), (1, 3)]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"mlp.weight": torch.ones(1, 2)}, "expected layers.N.weight and layers.N.bias, got mlp.weight"),
        ({"layers.0.weight": torch.ones(1, 2)}, "expected layers.N.weight and layers.N.bias"),
        (aesthetic_state({0: (3, 4), 2: (1, 2)}), r"lead to one number, got shapes \[\(3, 4\), \(1, 2\)\]"),
        (aesthetic_state({0: (3, 4)}), r"lead to one number, got shapes \[\(3, 4\)\]"),
        ({"layers.0.weight": torch.ones(1), "layers.0.bias": torch.ones(1)}, r"got shapes \[\(1,\)\]"),
    ],
)
def test_other_heads_are_refused(state, message):
    with pytest.raises(ValueError, match=message):
        aesthetic_head(state)
