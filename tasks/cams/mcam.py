"""M-CAM: Grad-CAM of a memory's own classifier, each feature counting as far as it looks like the class's slot."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.cams.evidence import Evidence
from tasks.cams.weights import Dense
from tasks.memory import Memory, pooled
from tasks.slots import Found, find_slots, noise_cosines


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a memory says of a batch. gradient dz_c/dq [B,C,F]; likeness tau [B,N,F]; found: the slots; logits [B,C]."""

    gradient: Tensor
    likeness: Tensor
    found: Found
    logits: Tensor


@dataclass(frozen=True, slots=True)
class MCam:
    """w = sum over cells of dz_c/dA, times exp(tau) (Kim and Ro 2021, eq. 6-7).

    z is the answer of the memory's classifier, which the map explains; q is a mean over cells, so that the sum of its
    gradient over cells is dz_c/dq. tau: likeness of the feature in this image and in the slot that the class hangs on.
    """

    memory: Memory
    draws: int = 16

    def weights(self, evidence: Evidence) -> Dense:
        remembered = self.remembered(evidence)
        count, features = len(evidence.activation), evidence.activation.shape[1]
        classes = evidence.classes.expand(count, -1)
        chosen = classes[..., None].expand(-1, -1, features)
        slots = remembered.found.slot.gather(1, classes)[..., None].expand(-1, -1, features)
        alike = remembered.likeness.gather(1, slots)
        return evidence.for_all_cells(remembered.gradient.gather(1, chosen) * alike.exp())

    def remembered(self, evidence: Evidence) -> Remembered:
        """Once for a batch, for all classes."""
        return evidence.probes.once((id(self.memory), self.draws), lambda: self._remember(evidence))

    def _remember(self, evidence: Evidence) -> Remembered:
        with torch.no_grad():
            query = pooled(evidence.activation)
            noise = noise_cosines(evidence.probes.names, query.shape[1], self.memory.slots, self.draws)
            return Remembered(
                self.memory.query_gradient(query),
                self.memory.likeness(evidence.activation),
                find_slots(self.memory, query, noise),
                self.memory(query),
            )

    def forwards(self, features: int, head: str) -> int:
        return 0
