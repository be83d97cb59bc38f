"""Guidance by attention heads: `HeadGuidance`, its `Report`, and the `Perturbation` of heads."""

from dit_heads.guidance.guidance import HeadGuidance, Report
from dit_heads.guidance.perturb import Perturbation

__all__ = ["HeadGuidance", "Perturbation", "Report"]
