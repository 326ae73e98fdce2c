"""What is measured of images themselves: whether the answer is right, with which features, and concepts in boxes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.boxes import Rectangles
from tasks.measures.concepts import count
from tasks.measures.features import WAYS, correct, masked_logits
from tasks.measures.settings import MeasureSettings
from tasks.profile import Truth
from tasks.reductions.detectors import Detectors
from tasks.walk import Batch

EVERY_BOX = -1  # stands for a class where all boxes of an image are meant


@dataclass(frozen=True, slots=True)
class Concepts:
    """Concepts in the boxes of some images: a row an image and class, EVERY_BOX for all of the image's boxes.

    rows: positions in the shard; disjoint: components, over all features; unique: features with one; [n] each.
    detectors: the same by feature and class, of all the images.
    """

    rows: NDArray[np.int64]
    classes: NDArray[np.int32]
    disjoint: NDArray[np.int64]
    unique: NDArray[np.int64]
    detectors: Detectors

    @classmethod
    def empty(cls, features: int, classes: int) -> Self:
        none = np.zeros(0, np.int64)
        return cls(none, none.astype(np.int32), none, none, Detectors.empty(features, classes))

    def merge(self, other: Self) -> Self:
        """Both, in this order."""
        return type(self)(
            np.concatenate([self.rows, other.rows]),
            np.concatenate([self.classes, other.classes]),
            np.concatenate([self.disjoint, other.disjoint]),
            np.concatenate([self.unique, other.unique]),
            self.detectors.merge(other.detectors),
        )


class ImageJudge:
    """Measures of each image what the settings name. It keeps nothing of batches.

    truth and rectangles have a row for each image of the shard; masks [F,C] bool by base method: its principal
    features; thresholds [F]: above which a feature's cells count as a concept.
    """

    def __init__(
        self,
        settings: MeasureSettings,
        task: str,
        truth: Truth,
        rectangles: Sequence[Rectangles] | None,
        *,
        masks: Mapping[str, NDArray[np.bool_]],
        thresholds: NDArray[np.float64] | None,
    ) -> None:
        self._settings = settings
        self._task = task
        self._truth = truth
        self._rectangles = rectangles
        self._answers = bool({"features", "performance"} & settings.groups)
        self._masks = masks if "features" in settings.groups else {}
        self._thresholds = thresholds if "concepts" in settings.groups else None

    def columns(self) -> list[str]:
        """All that images have."""
        ways = [f"{base}.{way}" for base in self._masks for way in WAYS]
        return ["accuracy", *ways] if self._answers else []

    def of_images(self, batch: Batch) -> dict[str, Tensor]:
        """Column -> float64 [B]: 1 or 0, or the share of decisions that are right; NaN without a label.

        With masks, only classes that have principal features are decided on; NaN where the label is none of them.
        """
        if not self._answers:
            return {}
        logits = batch.forward.logits
        labelled = torch.from_numpy(self._truth.labelled[batch.rows]).to(logits.device)
        positive = torch.from_numpy(self._truth.positive[batch.rows]).to(logits.device)
        # An image of a one-label task that is labelled with none of the classes has no right answer.
        known = labelled & positive.any(1) if self._task == "one-label" else labelled
        found = {"accuracy": torch.where(known, correct(logits, positive, self._task), torch.nan)}
        asked = known & self._asked_with_masks(batch).to(known.device)
        for base, mask in self._masks.items():
            found |= {f"{base}.{way}": torch.full_like(found["accuracy"], torch.nan) for way in WAYS}
            masks = torch.from_numpy(mask).to(logits.device)
            # A class without principal features, as of labels that no image has, would answer with a bias or its whole
            # logit, and so takes no part.
            told = masks.any(0)
            chosen = asked & (positive[:, told].any(1) if self._task == "one-label" else told.any())
            images = chosen.nonzero()[:, 0].tolist()
            answers = masked_logits(batch.head, batch.probes, masks, images) if images else {}
            for way, masked in answers.items():
                found[f"{base}.{way}"][chosen] = correct(masked[:, told], positive[chosen][:, told], self._task)
        return found

    def _asked_with_masks(self, batch: Batch) -> Tensor:
        """All where a linear head answers in closed form; of others, which take a pass for each class and mask, those
        of the smaller sample."""
        share = 1.0 if batch.head.closed is not None else self._settings.perturbed
        return torch.from_numpy(self._settings.sampled(batch.probes.names, share))

    def no_concepts(self) -> Concepts | None:
        """Of no image; None where concepts are not counted."""
        if self._thresholds is None:
            return None
        return Concepts.empty(len(self._thresholds), self._truth.positive.shape[1])

    def of_concepts(self, batch: Batch) -> Concepts | None:
        """None where concepts are not counted."""
        if self._thresholds is None:
            return None
        activation, classes = batch.forward.activation, self._truth.positive.shape[1]
        places: list[int] = []  # of each region
        boxes: list[Tensor] = []
        rows: list[tuple[int, int]] = []  # class and region
        for place, row in enumerate(batch.rows):
            own = {} if self._rectangles is None else self._rectangles[row]
            rows += [(category, len(boxes) + at) for at, category in enumerate(own)]
            # Boxes of one class alone are all boxes.
            several = [torch.cat(list(own.values()))] if len(own) > 1 else []
            boxes += [*own.values(), *several]
            places += [place] * (len(own) + len(several))
            rows += [(EVERY_BOX, len(boxes) - 1)] if own else []
        thresholds = torch.from_numpy(self._thresholds).to(activation)
        height, width = batch.size
        of_classes, regions = np.array(rows, np.int32).reshape(-1, 2).T
        counts = count(activation, thresholds, boxes, (height, width), images=places)[regions]
        known = torch.from_numpy(of_classes >= 0).to(counts.device)
        return Concepts(
            batch.rows[np.array(places, np.int64)[regions]],
            of_classes,
            counts.sum(1).cpu().numpy(),
            (counts > 0).sum(1).cpu().numpy(),
            Detectors.of(counts[known], of_classes[of_classes >= 0].astype(np.int64), activation, batch.rows, classes),
        )
