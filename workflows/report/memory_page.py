"""The memory behind M-CAM in words and pictures: how it was fitted, whom it agrees with, what its slots keep."""

from dataclasses import dataclass

import numpy as np

from tasks.cams.scaling import LOW_LEVEL
from tasks.reductions.memory_use import MemoryUse
from workflows.report.gallery import Picture
from workflows.report.memory import Memory
from workflows.report.painting import HIGHEST, LOWEST, Array, colour_map, data_uri, ground
from workflows.report.wording import number, percent

_TOP = 4
_SHOWN_SHARED = 12
_SHOWN_NAMES = 6
_CURVE = (600, 160)  # width and height of the learning curve, in units of its view box
_TRAIN, _HELD = "train.loss", "held-out.loss"
_FIGURES = {
    _TRAIN: "Loss, learned from",
    _HELD: "Loss, held out",
    "held-out.loss.classifier": "of it answers",
    "held-out.loss.sparse": "of it values",
    "held-out.loss.address": "of it addresses",
    "held-out.address.slots": "Slots an address spreads over",
    "held-out.slots.used": "Slots used by all",
    "held-out.agreement": "Agreement",
}


@dataclass(frozen=True, slots=True)
class SlotRow:
    """One class. light, dark: its votes over the slots as a strip; top: its most used slots and their shares."""

    name: str
    predicted: int
    agreement: str
    recall: str
    steadiness: str
    used: str
    positive: str
    light: Picture
    dark: Picture
    top: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """What one slot keeps, as a class reads it. plane: which slice of a volume is shown, in words."""

    slot: int
    share: str
    plane: str
    picture: Picture


@dataclass(frozen=True, slots=True)
class Curve:
    """Both losses over the epochs, as points of lines; best: where the kept memory is; ends of the axis in words."""

    width: int
    height: int
    learned: str
    held_out: str
    best: tuple[str, str]
    low: str
    high: str


@dataclass(frozen=True, slots=True)
class MemoryPage:
    """agreement, recall: over all classes, of `decisions` and `predicted`.

    voted: slots in a strip; bound: the share that has full colour there.
    """

    slots: int
    voted: int
    learned: int
    held_out: int
    agreement: str
    decisions: int
    recall: str
    predicted: int
    steadiness: str
    rows: tuple[SlotRow, ...]
    bound: str
    shared: tuple[tuple[int, tuple[tuple[str, str], ...], int], ...]  # slot, classes with shares, how many more
    kept: tuple[tuple[str, tuple[Kept, ...]], ...]
    planes: bool
    curve: Curve | None
    figures: tuple[str, ...]
    history: tuple[tuple[str, ...], ...]
    epochs: int
    best_epoch: int  # from 1


def memory_page(memory: Memory | None, classes: tuple[str, ...], shown: list[int]) -> MemoryPage | None:
    """The section of the shown classes, in words and pictures."""
    if memory is None:
        return None
    use, whole = memory.use, memory.use.of_all_classes()
    shares = use.shares()
    rows, bound = _rows(use, shares, classes, shown)
    names = [name for name in _FIGURES if name in memory.history]
    columns = [memory.history[name] for name in names]
    return MemoryPage(
        slots=len(use.votes),
        voted=int((use.votes[:, shown].sum(1) > 0).sum()),
        learned=memory.learned,
        held_out=memory.held_out,
        agreement=percent(float(whole.agreement()[0])),
        decisions=int(whole.decisions[0]),
        recall=percent(float(whole.recall()[0])),
        predicted=int(whole.predicted[0]),
        steadiness=percent(float(whole.steadiness()[0])),
        rows=rows,
        bound=bound,
        shared=_shared(use, shares, classes),
        kept=tuple((classes[c], _kept(memory, shares, classes[c], c)) for c in shown if (memory.slots[c] >= 0).any()),
        planes=memory.maps.ndim == 5,
        curve=_curve(memory),
        figures=tuple(_FIGURES[name] for name in names),
        history=tuple(
            tuple(_figure(name, float(values[epoch])) for name, values in zip(names, columns, strict=True))
            for epoch in range(len(columns[0]) if columns else 0)
        ),
        epochs=memory.epochs,
        best_epoch=memory.best_epoch + 1,
    )


def _figure(name: str, value: float) -> str:
    return percent(value) if name.endswith("agreement") else number(value)


def _rows(use: MemoryUse, shares: Array, classes: tuple[str, ...], shown: list[int]) -> tuple[tuple[SlotRow, ...], str]:
    """The shown classes, and the share that has full colour. Slots stand in one order, by the class they serve most."""
    votes = shares[:, shown]
    voted = votes[votes.sum(1) > 0]
    ordered = voted[np.lexsort((-voted.max(1), voted.argmax(1)))] if len(voted) else np.zeros((1, len(shown)))
    bound = float(ordered.max()) or 1.0
    agreement, recall, steadiness = use.agreement(), use.recall(), use.steadiness()
    positive, used, top = use.positivity(), use.slots_used(), use.most_used(_TOP)
    rows = tuple(
        SlotRow(
            classes[c],
            int(use.predicted[c]),
            agreement=_or_dash(agreement[c]),
            recall=_or_dash(recall[c]),
            steadiness=_or_dash(steadiness[c]),
            used=number(float(used[c])) if use.predicted[c] else "\N{EN DASH}",
            positive=_or_dash(positive[c]),
            light=_strip(ordered[:, column] / bound, "Blues", classes[c]),
            dark=_strip(ordered[:, column] / bound, "Blues_r", classes[c]),
            top=tuple((int(slot), percent(float(shares[slot, c]))) for slot in top[c] if slot >= 0),
        )
        for column, c in enumerate(shown)
    )
    return rows, percent(bound)


def _or_dash(share: float) -> str:
    return percent(share) if np.isfinite(share) else "\N{EN DASH}"


def _strip(values: Array, colours: str, name: str) -> Picture:
    return Picture(data_uri(colour_map(colours, values)[None], lossless=True), f"Slots that class {name} hangs on")


def _shared(
    use: MemoryUse, shares: Array, classes: tuple[str, ...]
) -> tuple[tuple[int, tuple[tuple[str, str], ...], int], ...]:
    """Slots that two classes or more hang on most often, first those of most classes."""
    first = use.most_used(1)[:, 0]
    found = []
    for slot in np.unique(first[first >= 0]):
        members = sorted(np.flatnonzero(first == slot), key=lambda c: -shares[slot, c])
        if len(members) > 1:
            told = tuple((classes[c], percent(float(shares[slot, c]))) for c in members[:_SHOWN_NAMES])
            found.append((int(slot), told, len(members) - len(told)))
    return tuple(sorted(found, key=lambda item: -len(item[1]) - item[2])[:_SHOWN_SHARED])


def _kept(memory: Memory, shares: Array, name: str, c: int) -> tuple[Kept, ...]:
    """One colour scale for the slots of a class: 0 has none, the value farthest from 0 the brightest."""
    slots = [int(slot) for slot in memory.slots[c] if slot >= 0]
    maps = memory.maps[c, : len(slots)]
    bound = float(np.abs(maps).max()) or 1.0
    kept = []
    for slot, values in zip(slots, maps, strict=True):
        plane = ""
        if values.ndim == 3:
            place = int(values.max((1, 2)).argmax())
            plane, values = f"slice {place + 1} of {len(values)}", values[place]
        painted = ground(_level(values / bound))
        alt = f"What slot {slot} of the memory keeps, as class {name} reads it; not an image of a patient"
        picture = Picture(data_uri(painted, lossless=True), alt)
        kept.append(Kept(slot, percent(float(shares[slot, c])), plane, picture))
    return tuple(kept)


def _level(values: Array) -> Array:
    """Values -1 to 1 as levels: 0 has no colour, and either end the most of its own."""
    return LOW_LEVEL + np.where(values < 0, LOW_LEVEL - LOWEST, HIGHEST - LOW_LEVEL) * values


def _curve(memory: Memory) -> Curve | None:
    lines = [memory.history.get(name, np.zeros(0)) for name in (_TRAIN, _HELD)]
    known = np.concatenate(lines)
    known = known[np.isfinite(known)]
    if not len(known):
        return None
    low, high = float(known.min()), float(known.max())
    width, height = _CURVE

    def points(line: Array) -> list[tuple[str, str]]:
        steps = np.arange(len(line)) * width / max(1, len(line) - 1)
        heights = height * (high - line) / ((high - low) or 1.0)
        return [(f"{x:.1f}", f"{y:.1f}") for x, y in zip(steps, heights, strict=True) if np.isfinite(y)]

    learned, held_out = (" ".join(",".join(point) for point in points(line)) for line in lines)
    best = points(lines[1])[memory.best_epoch]
    return Curve(width, height, learned, held_out, best, number(low), number(high))
