"""What the class's probability does where the input is masked by a map: one further forward a map.

before: Y, the probability of the class; after: O, that of b + (x - b) m, b being the dark level and m the map in [0, 1]
(`Probes.behind`). The inverse drop is the drop behind 1 - m. All [n] -> float64 [n]. Chattopadhay et al., 2018, section
4.1, without their factor of 100.
"""

import torch
from torch import Tensor


def drop(before: Tensor, after: Tensor) -> Tensor:
    """max(Y - O, 0) / Y, in [0, 1]; 0 where Y is 0, as an underflow leaves it: there is nothing to lose."""
    left, right = before.double(), after.double()
    return torch.where(left > 0, (left - right).relu() / left, 0.0)


def increase(before: Tensor, after: Tensor) -> Tensor:
    """1 where Y < O, else 0."""
    return (before < after).double()
