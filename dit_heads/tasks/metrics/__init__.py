"""How good answers of vision tasks are, by protocols that are stated."""

from dit_heads.tasks.metrics.depth import DepthProtocol, score_depth
from dit_heads.tasks.metrics.detection import score_coco, score_detection
from dit_heads.tasks.metrics.edits import EditResult, score_edits
from dit_heads.tasks.metrics.labels import score_labels
from dit_heads.tasks.metrics.scores import Scores
from dit_heads.tasks.metrics.segmentation import score_segmentation

__all__ = [
    "DepthProtocol",
    "EditResult",
    "Scores",
    "score_coco",
    "score_depth",
    "score_detection",
    "score_edits",
    "score_labels",
    "score_segmentation",
]
