"""Guidance by attention heads: `HeadGuidance`, its `Report`, and the `Perturbation` of heads."""

from dit_heads.guidance.guidance import HeadGuidance
from dit_heads.guidance.perturb import Perturbation
from dit_heads.guidance.runs import Report

__all__ = ["HeadGuidance", "Perturbation", "Report"]
