"""The example pictures: of each shown class the most, the middle and the least confident image with its maps."""

from dataclasses import dataclass

import numpy as np
import torch

from tasks.cams.scaling import LOW_LEVEL, CommonScale, individual, resized
from workflows.report.painting import HIGHEST, Array, data_uri, paint, place
from workflows.report.results import Exemplars, Results
from workflows.report.wording import limit_names, number, percent

KINDS = {"most": "Most confident", "middle": "Middle", "least": "Least confident"}
_VERDICTS = {1: "labelled so", 0: "labelled otherwise", -1: ""}
_FIRST = torch.zeros(1, dtype=torch.long)


@dataclass(frozen=True, slots=True)
class Picture:
    uri: str
    alt: str


@dataclass(frozen=True, slots=True)
class Example:
    """One image beside its two maps. above: the share of the map whose level exceeds the high limit."""

    kind: str
    id: str  # its beginning, enough to find it in cases.parquet
    probability: str
    verdict: str
    image: Picture
    common: Picture
    own: Picture
    above: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on the colour scale: percent from the left, what it is called, its level in the method's units."""

    place: float
    name: str
    level: str


@dataclass(frozen=True, slots=True)
class Gallery:
    """The examples of one class. labelled: None where the archive has no labels; zero: where level 0 lies."""

    name: str
    answered: int
    labelled: int | None
    examples: tuple[Example, ...]
    ticks: tuple[Tick, Tick]
    zero: float


def galleries(results: Results) -> tuple[Gallery, ...]:
    """One a class, most often answered first; none where the configuration keeps pictures out."""
    exemplars = results.exemplars
    if exemplars is None or not results.record.pictures:
        return ()
    chosen = dict.fromkeys(int(c) for c in exemplars.classes)
    return tuple(_gallery(results, exemplars, c) for c in sorted(chosen, key=lambda c: -results.answered[c]))


def _gallery(results: Results, exemplars: Exemplars, c: int) -> Gallery:
    name = results.record.model.classes[c]
    members = [int(k) for k in np.flatnonzero(exemplars.classes == c)]
    limits = exemplars.limits[members[0]]
    scale = CommonScale.between(limits[None], (name,), layer=results.record.model.layer, kind="linear")
    marks = scale.apply(torch.tensor([[[[*limits, 0.0]]]]), _FIRST).flatten().tolist()
    low, high = limit_names(results.record)
    members.sort(key=lambda k: list(KINDS).index(exemplars.kinds[k]))
    return Gallery(
        name=name,
        answered=int(results.answered[c]),
        labelled=int(results.labelled[c]) if results.record.labelled else None,
        examples=tuple(_example(exemplars, k, name, scale) for k in members),
        ticks=(Tick(place(marks[0]), low, number(limits[0])), Tick(place(marks[1]), high, number(limits[1]))),
        zero=place(marks[2]),
    )


def _example(exemplars: Exemplars, k: int, name: str, scale: CommonScale) -> Example:
    picture = exemplars.pictures[k]
    saliency = resized(torch.from_numpy(exemplars.cams[k])[None, None].double(), picture.shape[:2])
    above = f"{100 * float(exemplars.above[k]):.0f} %"
    # the same colours, from none to the brightest
    own = LOW_LEVEL + (HIGHEST - LOW_LEVEL) * individual(saliency, axes=2)
    subject = f"{KINDS[exemplars.kinds[k]].lower()} image of class {name}"
    return Example(
        kind=KINDS[exemplars.kinds[k]],
        id=exemplars.ids[k][:12],
        probability=percent(float(exemplars.probabilities[k])),
        verdict=_VERDICTS[int(exemplars.labels[k])],
        image=Picture(data_uri(picture), f"The {subject}, as the classifier sees it"),
        common=_map(picture, scale.apply(saliency, _FIRST), f"The {subject}, common scale: {above} of it is high"),
        own=_map(picture, own, f"The {subject}, its map scaled by itself"),
        above=above,
    )


def _map(picture: Array, level: torch.Tensor, alt: str) -> Picture:
    return Picture(data_uri(paint(picture, level[0, 0].numpy())), alt)
