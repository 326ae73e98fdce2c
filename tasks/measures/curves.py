"""Insertion and deletion: the class's probability as pixels come or go, the map's highest first (Petsiuk et al., 2018,
section 4.1). Deletion ends at the dark level; insertion begins with the blurred input."""

from collections.abc import Iterator

import torch
from torch import Tensor

from tasks.probes import Probes

BLUR = 5 / 224
"""Standard deviation of the blur, as a part of each side: RISE's 5 pixels of 224. RISE cuts its kernel off at one
deviation from the middle, here at _REACH."""
_REACH = 4


def insertion_and_deletion(
    probes: Probes, maps: Tensor, images: Tensor, classes: Tensor, *, steps: int
) -> tuple[Tensor, Tensor]:
    """Areas under the two curves, each [n] float64 in [0, 1], for maps [n,*size] of images [n] of the batch and classes
    [n]. steps: at least 2.

    2 (steps - 1) forwards a map. The ends are shared by all maps: the input is known, the blurred one is one forward an
    image, the dark one is one a batch.
    """
    ranks, pixels = order(maps), probes.pixels[images]
    some, place = images.unique(return_inverse=True)
    soft, softened = probes.once(("blurred", tuple(some.tolist())), lambda: _softened(probes, some))
    black = probes.dark.view(-1, *[1] * (pixels.ndim - 2)).expand_as(pixels)
    blackened = probes.once("dark", lambda: probes.predict(black[:1])).expand(len(maps), -1)
    whole, first, last = (
        answers.gather(1, classes[:, None]).T for answers in (probes.probabilities[images], softened[place], blackened)
    )
    inserted = _answers(probes, replaced(soft[place], pixels, ranks, steps=steps, chunk=probes.step), classes)
    deleted = _answers(probes, replaced(pixels, black, ranks, steps=steps, chunk=probes.step), classes)
    return area(torch.cat([first, inserted, whole])), area(torch.cat([whole, deleted, last]))


def order(maps: Tensor) -> Tensor:
    """Rank of each cell of maps [n,*size] -> int64 [n,cells], 0 for the highest; equal ones in reading order."""
    places = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    return torch.empty_like(places).scatter_(
        1, places, torch.arange(places.shape[1], device=places.device).expand_as(places)
    )


def replaced(start: Tensor, end: Tensor, ranks: Tensor, *, steps: int, chunk: int) -> Iterator[Tensor]:
    """Inputs on the way from start to end [n,channels,*size], at most `chunk` together.

    After step i of `steps`, i/steps of the cells, rounded down, have the values of end: those of the lowest ranks
    [n,cells]. Yields steps 1 to steps - 1, in each the n inputs in order; the ends themselves are left out.
    """
    count, cells = ranks.shape
    total = (steps - 1) * count
    for begin in range(0, total, chunk):
        flat = torch.arange(begin, min(begin + chunk, total), device=ranks.device)
        case, gone = flat % count, (flat // count + 1) * cells // steps
        taken = (ranks[case] < gone[:, None]).view(-1, 1, *start.shape[2:])
        yield torch.where(taken, end[case], start[case])


def area(scores: Tensor) -> Tensor:
    """Under curves [steps + 1,n] over equal parts of [0, 1], by trapezoids -> [n] float64."""
    found: Tensor = torch.trapezoid(scores.double(), dx=1 / (len(scores) - 1), dim=0)
    return found


def blurred(pixels: Tensor, share: float = BLUR) -> Tensor:
    """[n,channels,*size] after a Gaussian of `share` of each side; outside, the values at the edge go on."""
    for side in pixels.shape[2:]:  # the axis that is done goes to the end, so that after all they are in order
        pixels = torch.tensordot(pixels, _gaussian(side, share * side).to(pixels), dims=([2], [1]))
    return pixels


def _gaussian(side: int, deviation: float) -> Tensor:
    """[side,side]: each place's weights of all places along an axis."""
    offsets = torch.arange(2 * (reach := int(_REACH * deviation + 0.5)) + 1) - reach
    weights = torch.exp(-0.5 * (offsets.double() / deviation) ** 2)
    places = (torch.arange(side)[:, None] + offsets).clamp(0, side - 1)
    return weights.new_zeros(side, side).scatter_add_(1, places, (weights / weights.sum()).expand_as(places))


def _softened(probes: Probes, images: Tensor) -> tuple[Tensor, Tensor]:
    """Some images blurred [n,channels,*size], and what is said of them [n,C]."""
    soft = blurred(probes.pixels[images])
    return soft, probes.predict(soft)


def _answers(probes: Probes, inputs: Iterator[Tensor], classes: Tensor) -> Tensor:
    """Probabilities [steps - 1,n] of classes [n]."""
    answers: Tensor = torch.cat([probes.predict(some) for some in inputs]).unflatten(0, (-1, len(classes)))
    return answers.gather(2, classes.expand(len(answers), -1)[..., None])[..., 0]
