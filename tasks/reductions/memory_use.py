"""How a memory serves its classifier over an archive: which slots its classes hang on, and whether both agree."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.slots import Found


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """A reduction over images. Counts merge exactly in any order; the float sum does so in a fixed order.

    Of the images that the classifier predicts as class c: votes [N,C], on which slot c hangs; positive [C], of them
    those whose slot's loss lowers the logit; steady [C] float64, the sum of the shares of draws that find the same
    slot; recalled [C], those that the memory's classifier predicts so too. decisions [C]: where both decide on c, in a
    one-label task the same images, in a multi-label task all; agreed [C]: where they decide alike.
    """

    votes: NDArray[np.int64]
    positive: NDArray[np.int64]
    steady: NDArray[np.float64]
    recalled: NDArray[np.int64]
    decisions: NDArray[np.int64]
    agreed: NDArray[np.int64]

    @classmethod
    def empty(cls, slots: int, classes: int) -> Self:
        counts = [np.zeros(classes, np.int64) for _ in range(4)]
        return cls(np.zeros((slots, classes), np.int64), counts[0], np.zeros(classes), *counts[1:])

    @classmethod
    def of(cls, found: Found, slots: int, predicted: Tensor, recalled: Tensor, task: str) -> Self:
        """Of a batch: what the slot search found, and what classifier and memory predict [B,C] bool."""
        classes = predicted.shape[1]
        image, category = predicted.nonzero(as_tuple=True)
        votes = torch.bincount(found.slot[image, category] * classes + category, minlength=slots * classes)
        decided = torch.ones_like(predicted) if task == "multi-label" else predicted
        counted = (found.positive & predicted, recalled & predicted, decided, (recalled == predicted) & decided)
        positive, also, decisions, agreed = torch.stack(counted).sum(1).cpu().numpy()
        steady = torch.where(predicted, found.steady.double(), 0.0).sum(0)
        table = votes.view(slots, classes).cpu().numpy()
        return cls(table, positive, steady.cpu().numpy(), also, decisions, agreed)

    def merge(self, other: Self) -> Self:
        """Both. Raises ValueError where they are not of one memory."""
        if self.votes.shape != other.votes.shape:
            raise ValueError(f"cannot merge the use of memories of {self.votes.shape} and {other.votes.shape}")
        theirs = other.arrays()
        return type(self)(**{name: values + theirs[name] for name, values in self.arrays().items()})

    def of_all_classes(self) -> Self:
        """Of all classes together, as of one."""
        return type(self)(**{name: values.sum(-1, keepdims=True) for name, values in self.arrays().items()})

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Images that the classifier predicts as each class [C]."""
        return np.asarray(self.votes.sum(0))

    def shares(self) -> NDArray[np.float64]:
        """Which share of the images predicted as each class hangs on each slot [N,C]; 0 for a class without one."""
        return np.asarray(self.votes / np.maximum(self.predicted, 1))

    def agreement(self) -> NDArray[np.float64]:
        """How often the memory's classifier decides as the original head does [C]; NaN where nothing is decided."""
        return _share(self.agreed, self.decisions)

    def recall(self) -> NDArray[np.float64]:
        """How often the memory predicts the class too where the classifier does [C]; NaN where it never does."""
        return _share(self.recalled, self.predicted)

    def steadiness(self) -> NDArray[np.float64]:
        """Mean over the predicted images of the share of draws that find the same slot [C]; NaN without one."""
        return _share(self.steady, self.predicted)

    def positivity(self) -> NDArray[np.float64]:
        """Share of the predicted images whose slot's loss lowers the logit [C]; NaN without one."""
        return _share(self.positive, self.predicted)

    def slots_used(self) -> NDArray[np.float64]:
        """How many slots the votes of each class spread over [C]: exp of an entropy, 1 to N; NaN without votes."""
        shares = self.shares()
        shares = np.where(shares > 0, shares, 1.0)  # 0 log 0 is 0, as 1 log 1 is
        return np.where(self.predicted > 0, np.exp(-(shares * np.log(shares)).sum(0)), np.nan)

    def most_used(self, count: int) -> NDArray[np.int32]:
        """The slots that each class hangs on most often [C,count], of equals the first; -1 where there are no more."""
        order = np.argsort(-self.votes, axis=0, kind="stable")[:count]
        voted = np.take_along_axis(self.votes, order, axis=0) > 0
        found = np.full((self.votes.shape[1], count), -1, np.int32)
        found[:, : len(order)] = np.where(voted, order, -1).T
        return found

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The sums and counts by their names."""
        return {
            "votes": self.votes,
            "positive": self.positive,
            "steady": self.steady,
            "recalled": self.recalled,
            "decisions": self.decisions,
            "agreed": self.agreed,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        return cls(**arrays)


def _share(part: NDArray[Any], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(part / np.where(whole > 0, whole, np.nan))


def merge_uses(left: MemoryUse | None, right: MemoryUse | None) -> MemoryUse | None:
    """Both; None: no memory is asked. Raises ValueError where only one profile asks one."""
    if (left is None) != (right is None):
        raise ValueError("cannot merge a profile with a memory and one without")
    return None if left is None or right is None else left.merge(right)
