"""M-CAM: Grad-CAM of a memory's own classifier, each feature counting as far as it looks like the class's slot."""

import copy
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from storage.errors import ModelError
from tasks.cams.evidence import Evidence
from tasks.cams.weights import Dense
from tasks.memory import Memory, pooled
from tasks.slots import Found, find_slots, noise_cosines


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a memory says of a batch. likeness tau [B,N,F]; found: the slots; logits [B,C]."""

    likeness: Tensor
    found: Found
    logits: Tensor

    def of_classes(self, classes: Tensor, absent: Tensor) -> dict[str, Tensor]:
        """Each case's slot int32, and its drop, steady share and the memory's logit float64 [B,T].

        classes: [T] for every image or [B,T]; absent, of the same shape: which stand for none, and have slot -1 and
        else NaN.
        """
        classes, absent = (each.expand(len(self.logits), -1) for each in (classes, absent))
        told = {"drop": self.found.drop, "steady": self.found.steady, "logit": self.logits}
        columns = {name: values.gather(1, classes).double() for name, values in told.items()}
        slot = self.found.slot.gather(1, classes).int().masked_fill(absent, -1)
        return {"slot": slot} | {name: values.masked_fill(absent, torch.nan) for name, values in columns.items()}


@dataclass(frozen=True, slots=True)
class MCam:
    """w = sum over cells of dz_c/dA, times exp(tau) (Kim and Ro 2021, eq. 6-7).

    z is the answer of the memory's classifier, which the map explains; q is a mean over cells, so that the sum of its
    gradient over cells is dz_c/dq. tau: likeness of the feature in this image and in the slot that the class hangs on.
    """

    memory: Memory | None = None  # None: still to be fitted; then it can be planned, and not drawn
    draws: int = 16

    def on(self, device: torch.device) -> Self:
        return self if self.memory is None else replace(self, memory=copy.deepcopy(self.memory).to(device))

    def weights(self, evidence: Evidence) -> Dense:
        remembered, memory = self.remembered(evidence), self._fitted()
        count, features = len(evidence.activation), evidence.activation.shape[1]
        classes = evidence.classes.expand(count, -1)
        slots = remembered.found.slot.gather(1, classes)[..., None].expand(-1, -1, features)
        alike = remembered.likeness.gather(1, slots)
        with torch.no_grad():
            gradient = memory.query_gradient(pooled(evidence.activation), classes)
        return evidence.for_all_cells(gradient * alike.exp())

    def remembered(self, evidence: Evidence) -> Remembered:
        """Once for a batch, for all classes."""
        return evidence.probes.once((id(self.memory), self.draws), lambda: self._remember(evidence))

    def _remember(self, evidence: Evidence) -> Remembered:
        memory = self._fitted()
        with torch.no_grad():
            query = pooled(evidence.activation)
            noise = noise_cosines(evidence.probes.names, query.shape[1], memory.slots, self.draws)
            return Remembered(memory.likeness(evidence.activation), find_slots(memory, query, noise), memory(query))

    def _fitted(self) -> Memory:
        if self.memory is None:
            raise ModelError("m-cam: its memory is not fitted yet")
        return self.memory

    def forwards(self, features: int, head: str) -> int:
        return 0
