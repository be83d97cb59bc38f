"""Objectives of a search: scores of pictures, differentiable with respect to the pictures."""

from dit_heads.objectives.clip import (
    AestheticScore,
    ClipSimilarity,
    aesthetic,
    aesthetic_head,
    clip,
    hpsv2,
    pickscore,
)
from dit_heads.objectives.combine import Threshold, WeightedSum
from dit_heads.objectives.image_tower import ImageTower
from dit_heads.objectives.named import load_objective
from dit_heads.objectives.objective import Objective, checked_scores, name_of, parts_of

__all__ = [
    "AestheticScore",
    "ClipSimilarity",
    "ImageTower",
    "Objective",
    "Threshold",
    "WeightedSum",
    "aesthetic",
    "aesthetic_head",
    "checked_scores",
    "clip",
    "hpsv2",
    "load_objective",
    "name_of",
    "parts_of",
    "pickscore",
]
