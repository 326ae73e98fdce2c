"""Fitting a memory to a classifier's features: the order of the images, the steps, the figures of an epoch, the end.

Everything is decided by the recipe and the images: workers that share a batch only add up what each finds for its part.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, inf, isfinite
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage.errors import ModelError
from tasks.memory import Losses, Memory, pooled

Together = Callable[[Tensor], Tensor]
"""The sum of a tensor over all workers, given to each."""


def alone(part: Tensor) -> Tensor:
    """Of one worker, its own part is the sum."""
    return part


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a memory is fitted. rate: of Adam; patience: epochs without a smaller held-out loss before the end;
    held_out: share of the patients whose images are not learned from; mixed: shards whose images are shuffled
    together."""

    slots: int = 112
    radius: float = 16.0
    epochs: int = 50
    batch: int = 64
    rate: float = 1e-3
    patience: int = 10
    held_out: float = 0.1
    mixed: int = 4
    seed: int = 0


def held_out(groups: Sequence[str], positive: NDArray[np.bool_], recipe: Recipe) -> NDArray[np.bool_]:
    """Which images only judge the fit [N]: all of a group (a patient) or none.

    positive [N,C]: their labels; a group that alone has a class is not held out. Drawn by the order in which groups
    appear, so that what they are called has no say. Raises ModelError where none can be spared.
    """
    number = {name: index for index, name in enumerate(dict.fromkeys(groups))}
    members = np.array([number[group] for group in groups])
    counts = np.zeros((len(number), positive.shape[1]), np.int64)
    np.add.at(counts, members, positive)
    left, wanted = counts.sum(0), min(ceil(recipe.held_out * len(number)), len(number) - 1)
    out: list[int] = []
    for group in np.random.Generator(np.random.PCG64([recipe.seed, len(number)])).permutation(len(number)):
        if len(out) < wanted and not ((counts[group] > 0) & (counts[group] == left)).any():
            out.append(group)
            left = left - counts[group]
    if not out:
        raise ModelError(
            "a memory is judged by patients whose images it has not learned from, and none of these can be spared: "
            f"each of the {len(number)} is the only one, or the only one with one of the classes."
        )
    return np.isin(members, out)


def epoch_batches(shards: Sequence[int], *, batch: int, mixed: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """Positions of the images of an epoch, in full batches and what is left.

    shards: the shard of each image [N], ascending. Shards are shuffled, and the images of every `mixed` of them
    together: an archive that is sorted by class or site gives mixed batches, and is still read shard by shard.
    """
    order = _epoch_order(shards, mixed, seed, epoch)
    return [order[i : i + batch] for i in range(0, len(order), batch)]


def even_batches(shards: Sequence[int], *, batch: int, mixed: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """As `epoch_batches`, in as few batches of nearly equal size: none is so small that its step is mostly chance."""
    return even_parts(_epoch_order(shards, mixed, seed, epoch), batch)


def even_parts(positions: NDArray[np.int64], most: int) -> list[NDArray[np.int64]]:
    """As few parts as have at most so many positions each, of sizes that differ by one at most, in order."""
    return np.array_split(positions, ceil(len(positions) / most)) if len(positions) else []


def _epoch_order(shards: Sequence[int], mixed: int, seed: int, epoch: int) -> NDArray[np.int64]:
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    held = np.asarray(shards, np.int64)
    starts = np.unique(held, return_index=True)[1]
    places = np.split(np.arange(len(held)), starts[1:])
    shuffled = random.permutation(len(places))
    runs = [shuffled[i : i + mixed] for i in range(0, len(shuffled), mixed)]
    return np.concatenate([random.permutation(np.concatenate([places[index] for index in run])) for run in runs])


_SUMS = ("images", "loss.classifier", "loss.sparse", "loss.address", "address.peak", "address.slots", "agreement")


@dataclass(frozen=True, slots=True)
class Figures:
    """What a memory makes of some images, as sums over them: a reduction.

    sums float64 [7], of _SUMS; decisions: of those that could agree, images or images times classes; used [N]: of
    addresses.
    """

    sums: Tensor
    decisions: int
    used: Tensor

    @classmethod
    def empty(cls, slots: int, device: torch.device | str = "cpu") -> Self:
        sums, used = (torch.zeros(size, dtype=torch.float64, device=device) for size in (len(_SUMS), slots))
        return cls(sums, 0, used)

    @classmethod
    def of(cls, memory: Memory, activation: Tensor, labels: Tensor, logits: Tensor, task: str) -> Self:
        """Of activations A, labels [B,C] and the original head's logits [B,C]."""
        with torch.no_grad():
            losses, query = memory.losses(activation, labels), pooled(activation)
            address = memory.address(query).double()
            same = decisions(memory(query), task) == decisions(logits, task)
        count, each = len(activation), (losses.classifier, losses.sparse, losses.address)
        of_address = address.amax(1).sum(), torch.special.entr(address).sum(1).exp().sum()
        sums = [address.new_tensor(count), *(loss.double() * count for loss in each), *of_address, same.sum().double()]
        return cls(torch.stack(sums), same.numel(), address.sum(0))

    def merge(self, other: Self) -> Self:
        return type(self)(self.sums + other.sums, self.decisions + other.decisions, self.used + other.used)

    def together(self, together: Together) -> Self:
        """The sums over all workers."""
        whole = together(torch.cat([self.sums, self.sums.new_tensor([self.decisions]), self.used]))
        return type(self)(whole[: len(_SUMS)], int(whole[len(_SUMS)]), whole[len(_SUMS) + 1 :])

    def means(self) -> dict[str, float]:
        """The losses and their sum `loss`; `address.peak`, the largest share of an address; `address.slots`, how many
        slots an address spreads over, and `slots.used`, how many all of them together do (exp of an entropy);
        `agreement`, how often the memory's classifier decides as the original head does. NaN of no image."""
        images = float(self.sums[0]) or torch.nan
        told = {name: float(value) / images for name, value in zip(_SUMS[1:], self.sums[1:], strict=True)}
        told["agreement"] *= images / (self.decisions or torch.nan)
        told["loss"] = sum(told[name] for name in _SUMS if name.startswith("loss."))
        told["slots.used"] = float(torch.special.entr(self.used / images).sum().exp())
        return told


def decisions(logits: Tensor, task: str) -> Tensor:
    """What a classifier decides: the class of the largest logit [B], or in a multi-label task [B,C] bool."""
    return logits > 0 if task == "multi-label" else logits.argmax(1)


class Fitting:
    """A memory while it is fitted: it, Adam's moments, the best one so far, and the figures of every epoch.

    history: a row for each epoch done. Same recipe, same batches: same memory, also across `to_state` and `resumed`.
    """

    def __init__(self, recipe: Recipe, shape: tuple[int, ...], classes: int, device: torch.device | str) -> None:
        """shape: of an image's activation, (F, h, w) or (F, d, h, w)."""
        self.recipe = recipe
        features, *cells = shape
        seeded = Memory.seeded(recipe.seed, features, tuple(cells), classes, slots=recipe.slots, radius=recipe.radius)
        self.memory = seeded.to(device)
        self.history: list[dict[str, float]] = []
        self._optimiser = torch.optim.Adam(self.memory.parameters(), lr=recipe.rate)
        self._best = on_cpu(self.memory.state_dict())

    def step(self, activation: Tensor, labels: Tensor, *, images: int, together: Together = alone) -> Losses:
        """One step on a batch of `images`, of which this worker has some, or none. Returns the batch's losses."""
        parameters = list(self.memory.parameters())
        told = activation.new_zeros(3)
        for parameter in parameters:
            parameter.grad = None
        if len(activation):
            share = len(activation) / images
            losses = self.memory.losses(activation, labels)
            (losses.total * share).backward()
            told = torch.stack([losses.classifier, losses.sparse, losses.address]).detach() * share
        if together is not alone:
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            whole = together(torch.cat([told, *(gradient.flatten() for gradient in gradients)]))
            told, rest = whole[:3], whole[3:].split([parameter.numel() for parameter in parameters])
            for parameter, gradient in zip(parameters, rest, strict=True):
                parameter.grad = gradient.view_as(parameter)
        self._optimiser.step()
        return Losses(*told.unbind())

    def end_epoch(self, learned: float, judged: Figures) -> None:
        """Keep the epoch's figures, and the memory if no earlier one had a smaller loss on what was held out.

        learned: mean loss of the steps, each at the memory it began with; judged: of the held-out images. Raises
        ModelError where a loss is no number.
        """
        told = {"train.loss": learned} | {f"held-out.{name}": value for name, value in judged.means().items()}
        if not (isfinite(learned) and isfinite(told["held-out.loss"])):
            raise ModelError(
                f"the memory's loss is not a number any more after epoch {len(self.history) + 1}: the fit diverged. "
                f"A smaller explain.memory.rate than {self.recipe.rate:g} may hold it."
            )
        if told["held-out.loss"] < self._least:
            self._best = on_cpu(self.memory.state_dict())
        self.history.append(told)

    @property
    def _least(self) -> float:
        return min((row["held-out.loss"] for row in self.history), default=inf)

    @property
    def best_epoch(self) -> int:
        """The epoch, from 0, whose memory is kept: of the least held-out loss, of equals the first."""
        return int(np.argmin([row["held-out.loss"] for row in self.history]))

    @property
    def done(self) -> bool:
        """Whether all epochs are done, or as many as `patience` without a smaller loss."""
        epochs = len(self.history)
        return epochs >= self.recipe.epochs or (epochs > 0 and epochs - 1 - self.best_epoch >= self.recipe.patience)

    def best(self) -> Memory:
        """The memory of the least held-out loss, on the CPU."""
        features, classes = self.memory.keys.shape[1], self.memory.classes
        cells = tuple(self.memory.spatial.shape[2:])
        found = Memory(features, cells, classes, slots=self.memory.slots, radius=self.memory.radius)
        found.load_state_dict(self._best)
        return found.requires_grad_(False)

    def to_state(self) -> dict[str, Any]:
        """Tensors, on the CPU, and plain numbers, from which `resumed` goes on to the bit on any device."""
        return {
            "memory": on_cpu(self.memory.state_dict()),
            "optimiser": on_cpu(self._optimiser.state_dict()),
            "best": self._best,
            "history": list(self.history),
        }

    @classmethod
    def resumed(
        cls, recipe: Recipe, shape: tuple[int, ...], classes: int, device: torch.device | str, state: dict[str, Any]
    ) -> Self:
        fitting = cls(recipe, shape, classes, device)
        fitting.memory.load_state_dict(state["memory"])
        fitting._optimiser.load_state_dict(state["optimiser"])
        fitting._best = state["best"]
        fitting.history = list(state["history"])
        return fitting


def on_cpu(state: Any) -> Any:
    """A copy of nested dicts and lists whose tensors lie on the CPU."""
    if isinstance(state, Tensor):
        return state.detach().cpu().clone()
    if isinstance(state, dict):
        return {key: on_cpu(value) for key, value in state.items()}
    return [on_cpu(value) for value in state] if isinstance(state, list) else state
