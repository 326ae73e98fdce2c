"""What pass 1 tells pass 2: limits of the common scales, which features are selected, what counts as a concept."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.errors import ModelError
from tasks.cams.scaling import CommonScale
from tasks.profile import Profile
from workflows.configuration import Explain
from workflows.models import ModelDescription
from workflows.survey import Settings


@dataclass(frozen=True, slots=True)
class Scales:
    """By base method: limits [C, 2] and feature masks [F, C]. thresholds [F]: above which a feature's cells count as a
    concept; None: not asked for."""

    limits: Mapping[str, np.ndarray[Any, Any]]
    masks: Mapping[str, np.ndarray[Any, Any]]
    thresholds: np.ndarray[Any, Any] | None = None


def scales_of(explain: Explain, settings: Settings, model: ModelDescription, profile: Profile) -> Scales:
    """Limits and masks from pass 1. Raises ModelError where they cannot make a scale that was asked for."""
    scaled = {method.base for method in settings.explain.methods if method.scaled}
    selected = {method.base for method in settings.explain.methods if method.selected}
    judged = "features" in settings.explain.measures.groups  # of every method that has principal features
    limits, masks = {}, {}
    for base in settings.profile.bases:
        found = profile.limits(base, source=explain.limits.source, low=explain.limits.low, high=explain.limits.high)
        try:
            CommonScale.between(found, model.classes, layer=model.layer, kind=explain.limits.scale)
        except ModelError:
            if base in scaled:
                raise
        else:
            limits[base] = found
        if base in selected or (judged and base in settings.profile.featured):
            features = explain.features
            masks[base] = profile.mask(base, share=features.share, rank=features.rank, importance=features.importance)
    measures = settings.explain.measures
    thresholds = profile.features.above(measures.concept) if "concepts" in measures.groups else None
    return Scales(limits, masks, thresholds)
