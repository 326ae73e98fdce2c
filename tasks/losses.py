"""Four losses of classifiers whose classes are each a yes or no, one formula: Khakzar et al.'s equations 1 and 2."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid

from storage.errors import ModelError

LOSSES = ("bce", "wbce", "focal", "cb-focal")


@dataclass(frozen=True, slots=True)
class LossSettings:
    """What the losses leave open. alpha: of Focal; gamma: of Focal and CB-Focal; beta, in (0, 1): of CB-Focal."""

    alpha: float = 0.25
    gamma: float = 2.0
    beta: float = 0.9999


@dataclass(frozen=True, slots=True)
class Loss:
    """-[w+ y (1-p)^gamma log p + w- (1-y) p^gamma log(1-p)], p the sigmoid of a logit.

    positive, negative: w+ and w- of each class [C] float32.
    """

    positive: Tensor
    negative: Tensor
    gamma: float

    @classmethod
    def of(cls, name: str, positives: NDArray[np.int64], negatives: NDArray[np.int64], settings: LossSettings) -> Self:
        """One of LOSSES, of classes of which so many images [C] that are learned from are positive, and negative.

        Raises ModelError where a class has none of either: then there is nothing to learn.
        """
        for counts, kind in ((positives, "positive"), (negatives, "negative")):
            none = np.flatnonzero(np.asarray(counts) == 0).tolist()
            if none:
                raise ModelError(
                    f"no image that is learned from is {kind} for class number {', '.join(map(str, none))}, counted "
                    "from 0: there is nothing to learn. Leave such classes out of `classes`, or change `split`."
                )
        each, other = (np.asarray(counts, np.float64) for counts in (positives, negatives))
        ones = np.ones_like(each)
        match name:
            case "bce":
                weights, gamma = (ones, ones), 0.0
            case "wbce":
                weights, gamma = (other / (each + other), each / (each + other)), 0.0
            case "focal":
                weights, gamma = (settings.alpha * ones, (1 - settings.alpha) * ones), settings.gamma
            case "cb-focal":
                weights, gamma = (_balanced(each, settings.beta), _balanced(other, settings.beta)), settings.gamma
            case _:
                raise ValueError(f"expected a loss of {LOSSES}, got {name!r}")
        positive, negative = (torch.from_numpy(weight).float() for weight in weights)
        return cls(positive, negative, gamma)

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over images and classes of logits [B,C] of any precision and targets [B,C] in [0, 1]; float32."""
        logits, targets = logits.float(), targets.float()
        # As powers of p and of 1 - p would be, without their loss of digits where either is nearly 1.
        log_yes, log_no = logsigmoid(logits), logsigmoid(-logits)
        yes = self.positive * targets * (self.gamma * log_no).exp() * log_yes
        no = self.negative * (1 - targets) * (self.gamma * log_yes).exp() * log_no
        return -(yes + no).mean()

    def to(self, device: torch.device | str) -> Self:
        return replace(self, positive=self.positive.to(device), negative=self.negative.to(device))


def _balanced(counts: NDArray[np.float64], beta: float) -> NDArray[np.float64]:
    """(1 - beta) / (1 - beta^N) (Cui et al. 2019)."""
    weights: NDArray[np.float64] = (1 - beta) / (1 - beta**counts)
    return weights
