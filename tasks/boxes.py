"""The boxes of a shard's images as the classifier sees them, and as measures of maps take them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.classifier import Classifier
from tasks.measures import located
from tasks.profile import Truth

Rectangles = Mapping[int, Tensor]
"""Class -> its boxes in the classifier's input, int64 [k,4]: x0, y0, x1, y1, half-open."""


def rectangles_of(classifier: Classifier, images: Sequence[NDArray[Any]], truth: Truth) -> Sequence[Rectangles] | None:
    """The boxes of each decoded image, as the classifier sees them; without those of labels that are no class, and
    those that the crop leaves out. None where truth has no boxes."""
    if truth.boxes is None:
        return None
    number = {name: index for index, name in enumerate(classifier.classes)}
    found: list[dict[int, Tensor]] = []
    for image, boxes in zip(images, truth.boxes, strict=True):
        known = [box for box in boxes or () if box.label in number]
        sides = torch.tensor([[box.x0, box.y0, box.x1, box.y1] for box in known], dtype=torch.float64).reshape(-1, 4)
        rectangles = located.rectangles(classifier.preprocess.boxes(image.shape, sides))
        of_class: dict[int, list[Tensor]] = {}
        for box, rectangle in zip(known, rectangles, strict=True):
            if bool((rectangle[2:] > rectangle[:2]).all()):
                of_class.setdefault(number[box.label], []).append(rectangle)
        found.append({category: torch.stack(those) for category, those in sorted(of_class.items())})
    return found


@dataclass(frozen=True, slots=True)
class Boxed:
    """index [B,T]: which of the following an image and class have, -1 for none; boxes int64 [k,4], region [H,W] bool,
    and whether it is small."""

    index: Tensor
    rectangles: list[Tensor]
    regions: Tensor
    small: Tensor

    @classmethod
    def of(
        cls,
        rectangles: Sequence[Rectangles] | None,
        rows: NDArray[np.int64],
        classes: Tensor,
        size: tuple[int, int],
        share: float,
    ) -> Self:
        """Of images [B], these rows of the shard, and classes [B,T]; boxes below this share of the input are small."""
        index = torch.full(classes.shape, -1)
        found: list[Tensor] = []
        for place, (row, categories) in enumerate(zip(rows, classes.tolist(), strict=True)):
            boxes = {} if rectangles is None else rectangles[row]
            for column, category in enumerate(categories):
                if category in boxes:
                    index[place, column] = len(found)
                    found.append(boxes[category])
        regions = [located.region(those, size) for those in found]
        stacked = torch.stack(regions) if regions else torch.zeros((0, *size), dtype=torch.bool)
        small = torch.tensor([located.small(those, size, share) for those in found], dtype=torch.bool)
        device = classes.device
        return cls(index.to(device), [those.to(device) for those in found], stacked.to(device), small.to(device))

    def take(self, which: Tensor) -> Self:
        """Those of some cases [n]."""
        rectangles = [self.rectangles[one] for one in which.tolist()]
        return type(self)(self.index, rectangles, self.regions[which], self.small[which])
