"""What a search maximises: scores of pictures that can be differentiated."""

from dit_heads.objectives.objectives import (
    AestheticScore,
    ClipSimilarity,
    Objective,
    Threshold,
    WeightedSum,
    aesthetic,
    aesthetic_head,
    checked_scores,
    clip,
    embedded_clip,
    hpsv2,
    load_objective,
    name_of,
    pickscore,
)

__all__ = [
    "AestheticScore",
    "ClipSimilarity",
    "Objective",
    "Threshold",
    "WeightedSum",
    "aesthetic",
    "aesthetic_head",
    "checked_scores",
    "clip",
    "embedded_clip",
    "hpsv2",
    "load_objective",
    "name_of",
    "pickscore",
]
