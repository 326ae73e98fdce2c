"""Gaussian light and shadow (GLAS) and its recursive form (RGLAS): a map from probabilities alone.

A Gaussian lights, then shades, a place of the image at each point of a grid; the answers, each spread around its
point, make the map. All is separable, so that neither masks nor spreading hold more than one batch of inputs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, isfinite, sqrt

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from storage.errors import ModelError
from tasks.cams.scaling import individual

Predict = Callable[[Tensor], Tensor]
"""Normalised inputs [n,channels,H,W] to probabilities [n,C]. It must keep none of the inputs: they are overwritten."""

CELLS = 15  # a side has this many cells, whatever the number of search points
UNITS = ("cell", "pixel", "fraction")
MODES = ("light", "shadow", "fusion")


@dataclass(frozen=True, slots=True)
class Glas:
    """What is looked at, and how widely. The defaults are the paper's.

    points: k, search points a side. light, shadow, spatial: sigma_l, sigma_s and sigma_spatial in `unit`: cells (a
    15th of the side, each side its own), pixels of the input, or fractions of the side. offset: lambda. coarse: points
    a side of the grid that `look_for` starts from, and share: the part of that grid's cells that it looks into.
    """

    points: int = 15
    light: float = 5.0
    shadow: float = 3.0
    spatial: float = 6.0
    unit: str = "cell"
    # The paper prints 10^5, which would leave nothing of the shadow.
    offset: float = 1e-5
    coarse: int | None = None
    share: float = 0.25

    def __post_init__(self) -> None:
        if self.points < 1:
            raise ValueError(f"points: expected at least 1 search point a side, got {self.points}")
        for name in ("light", "shadow", "spatial"):
            sigma = getattr(self, name)
            if not (isfinite(sigma) and sigma > 0):
                raise ValueError(f"{name}: expected a sigma above 0, got {sigma}")
        if self.unit not in UNITS:
            raise ValueError(f"unit: expected one of {', '.join(UNITS)}, got {self.unit!r}")
        if not (isfinite(self.offset) and self.offset >= 0):
            raise ValueError(f"offset: expected 0 or a small number above it, got {self.offset}")
        if self.coarse is not None and not (2 <= self.coarse < self.points and self.points % self.coarse == 0):
            raise ValueError(
                f"coarse: expected a divisor of points ({self.points}) from 2 to below it, got {self.coarse}"
            )
        if not 0 < self.share <= 1:
            raise ValueError(f"share: expected a part of the coarse cells above 0, up to 1, got {self.share}")

    @property
    def forwards(self) -> int:
        """Inputs forwarded for an image: 2 k^2 + 1 by `look`; from a coarse grid, those of both looks of `look_for`."""
        if self.coarse is None:
            return 2 * self.points**2 + 1
        return 2 * self.coarse**2 + 1 + 2 * self.closer_cells * (self.points // self.coarse) ** 2 + 1

    @property
    def closer_cells(self) -> int:
        """Cells of the coarse grid that are looked into; 0 without one."""
        return ceil(self.share * self.coarse**2) if self.coarse else 0

    def part(self, sigma: float, side: int) -> float:
        """A sigma in `unit` as a part of an input's side of `side` pixels."""
        return {"cell": sigma / CELLS, "pixel": sigma / side, "fraction": sigma}[self.unit]


@dataclass(frozen=True, slots=True)
class Looks:
    """What the classifier answered to one image, all classes at once. float32, on the classifier's device.

    whole [C]: P(y|x). light [k,k,C]: P(y | b + (x-b) G). shadow [k,k,C]: |P(y|x) - P(y | b + (x-b)(1-G))| + lambda.
    size: (H, W) of the input.
    """

    whole: Tensor
    light: Tensor
    shadow: Tensor
    size: tuple[int, int]

    def scores(self, classes: Tensor, mode: str) -> Tensor:
        """f [T,k,k] of the classes [T]: light, shadow, or their product (fusion)."""
        if mode not in MODES:
            raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
        light, shadow = (values[..., classes].permute(2, 0, 1) for values in (self.light, self.shadow))
        return light * shadow if mode == "fusion" else {"light": light, "shadow": shadow}[mode]


def look(predict: Predict, image: Tensor, dark: Tensor, settings: Glas, *, step: int) -> Looks:
    """Light and shadow at every search point, whatever `coarse` says: 2 k^2 + 1 inputs, `step` of them a forward.

    image [channels,H,W] is normalised, and so is dark [channels], the level b that means no light. Raises ValueError
    for arguments of other shapes, ModelError where predict does not give [n,C] for n inputs.
    """
    side = settings.points
    everywhere = torch.arange(side**2, device=image.device)
    whole, light, shadow = _look_at(predict, image, dark, settings, points=everywhere, step=step)
    return Looks(whole, light.unflatten(0, (side, side)), shadow.unflatten(0, (side, side)), _size(image))


def look_for(predict: Predict, image: Tensor, dark: Tensor, target: int, settings: Glas, *, step: int) -> Looks:
    """As `look`; with `coarse`, at the points that matter to the class `target`, and the others estimated.

    A look at the coarse grid ranks its cells by f_l f_s of the target. The search points within the best `share` of
    the cells are looked at themselves; the values of all others are the coarse ones, bilinear between centres.
    `settings.forwards` inputs: 2 c^2 + 1, and 2 n + 1 for n points looked at. The masks' sigmas are the same in both.
    """
    if settings.coarse is None:
        return look(predict, image, dark, settings, step=step)
    coarse = look(predict, image, dark, replace(settings, points=settings.coarse, coarse=None), step=step)
    points = _closer(coarse, target, settings)
    whole, *looked = _look_at(predict, image, dark, settings, points=points, step=step)
    estimated = (_refined(values, settings.points) for values in (coarse.light, coarse.shadow))
    light, shadow = (
        values.flatten(0, 1).index_copy(0, points, exact).view_as(values)
        for values, exact in zip(estimated, looked, strict=True)
    )
    return Looks(whole, light, shadow, coarse.size)


def fuse(
    looks: Looks,
    classes: Tensor,
    size: tuple[int, int],
    settings: Glas,
    *,
    mode: str = "fusion",
    alive: Tensor | None = None,
) -> Tensor:
    """S(x) = 1/|Omega| sum over points mu of exp(-|x-mu|^2 / sigma_spatial^2) f(mu) -> [T,H,W] (GLAS, eq. 3).

    classes [T]; size: (H, W) of the map, its cells' centres laid over the image whatever the input's size was. mode:
    f is `light`, `shadow`, or their product (`fusion`). alive [k,k]: the points of Omega, all if None; without any
    point S is 0. Points near the border have neighbours on one side only, so a constant f gives a map that falls off
    towards the border.
    """
    scores = looks.scores(classes, mode)
    points = len(looks.light)
    count: Tensor | int = points**2
    if alive is not None:
        scores, count = scores * alive, alive.sum().clamp(min=1)
    spread_y, spread_x = (
        _bells(points, cells, settings.part(settings.spatial, side), scores.device)
        for cells, side in zip(size, looks.size, strict=True)
    )
    return spread_y.T @ (scores / count) @ spread_x


@dataclass(frozen=True, slots=True)
class Recursion:
    """Evidence found one after another. saliency [H,W] and steps [R,H,W], a map an iteration, are in [0, 1].

    alive: search points left after each iteration. stopped: by `ratio`, `no-points` or `iterations`.
    """

    saliency: Tensor
    steps: Tensor
    alive: tuple[int, ...]
    stopped: str


def rglas(
    predict: Predict,
    image: Tensor,
    dark: Tensor,
    target: int,
    settings: Glas,
    *,
    step: int,
    reach: float = 0.8,
    ratio: float = 5.0,
    iterations: int = 10,
) -> Recursion:
    """Find a class's evidence, darken it, and look again (GLAS, algorithm 1, with the S of each step min-maxed).

    reach: t_1, search points where S is above it are done with. ratio: t_2, the end is where sqrt(mean(S) / P(y|I))
    comes up to it, I being the image darkened by S. An iteration forwards `settings.forwards` inputs and that image.
    """
    if not 0 <= reach <= 1:
        raise ValueError(f"reach: expected a level from 0 to 1, got {reach}")
    if not ratio > 0:
        raise ValueError(f"ratio: expected a number above 0, got {ratio}")
    if iterations < 1:
        raise ValueError(f"iterations: expected at least 1, got {iterations}")
    size, side = _size(image), settings.points
    classes = torch.tensor([target], device=image.device)
    rows, columns = (torch.arange(1, 2 * side, 2, device=image.device) * length // (2 * side) for length in size)
    alive = torch.ones(side, side, dtype=torch.bool, device=image.device)
    steps: list[Tensor] = []
    counts: list[int] = []
    stopped = "iterations"
    for _ in range(iterations):
        looks = look_for(predict, image, dark, target, settings, step=step)
        saliency = individual(fuse(looks, classes, size, settings, alive=alive)[0])
        alive = alive & (saliency[rows][:, columns] <= reach)
        steps.append(saliency)
        counts.append(int(alive.sum()))
        image = torch.lerp(image, _level(dark, image), saliency.to(image))
        with torch.no_grad():
            left = float(predict(image[None])[0, target])
        if float(saliency.mean()) >= ratio**2 * left:  # not divided by P(y|I), which may be 0
            stopped = "ratio"
            break
        if not counts[-1]:
            stopped = "no-points"
            break
    return Recursion(individual(torch.stack(steps).sum(0)), torch.stack(steps), tuple(counts), stopped)


@dataclass(frozen=True, slots=True)
class _Masks:
    """Gaussians row by column, rows [n,H] and columns [n,W]; the first `lights` light, the others shade."""

    rows: Tensor
    columns: Tensor
    lights: int


def _look_at(
    predict: Predict, image: Tensor, dark: Tensor, settings: Glas, *, points: Tensor, step: int
) -> tuple[Tensor, Tensor, Tensor]:
    """P(y|x) [C], and light and shadow [n,C] at the points [n], row * k + column."""
    if image.ndim != 3 or dark.shape != image.shape[:1]:
        raise ValueError(
            "expected an image [channels, height, width] and a dark level [channels], "
            f"got {list(image.shape)} and {list(dark.shape)}"
        )
    if step < 1:
        raise ValueError(f"step: expected at least 1 input a forward, got {step}")
    seen = _probabilities(predict, image, _level(dark, image), _masks(settings, points, image), step)
    light, shaded, whole = seen.split([len(points), len(points), 1])
    return whole[0], light, (whole - shaded).abs() + settings.offset


def _masks(settings: Glas, points: Tensor, image: Tensor) -> _Masks:
    """All lights, then all shadows, then one shadow of nothing, the whole image: so only the last batch is short."""
    side = settings.points
    rows, columns = (
        torch.cat(
            [
                _bells(side, length, sqrt(2) * settings.part(sigma, length), image.device)[index]
                for sigma in (settings.light, settings.shadow)
            ]
        )
        for index, length in zip((points // side, points % side), _size(image), strict=True)
    )
    return _Masks(pad(rows, (0, 0, 0, 1)).to(image), pad(columns, (0, 0, 0, 1)).to(image), len(points))


def _probabilities(predict: Predict, image: Tensor, level: Tensor, masks: _Masks, step: int) -> Tensor:
    """[n,C] of the image behind each mask. One buffer holds the inputs of a forward, and then of the next."""
    total = len(masks.rows)
    step = min(step, total)
    inputs, gaussians = image.new_empty((step, *image.shape)), image.new_empty((step, 1, *image.shape[1:]))
    seen = []
    with torch.no_grad():
        for start in range(0, total, step):
            here = slice(start, min(start + step, total))
            count = here.stop - start
            lights = min(max(masks.lights - start, 0), count)
            torch.mul(masks.rows[here, None, :, None], masks.columns[here, None, None], out=gaussians[:count])
            torch.lerp(level, image, gaussians[:lights], out=inputs[:lights])
            torch.lerp(image, level, gaussians[lights:count], out=inputs[lights:count])
            answer = predict(inputs[:count])
            if answer.ndim != 2 or len(answer) != count:
                raise ModelError(f"expected probabilities [{count}, classes], got {list(answer.shape)}")
            # A copy, because an answer may be a view of the inputs.
            seen.append(answer.to(torch.float32, copy=True))
    return torch.cat(seen)


def _bells(points: int, cells: int, width: float, device: torch.device) -> Tensor:
    """exp(-(d / width)^2) [points,cells], d between centres of `points` and of `cells` equal parts of a side of 1."""
    centres = torch.arange(1, 2 * points, 2, device=device)[:, None]
    # In integers, so that narrow bells are exact on large images.
    offset = torch.arange(1, 2 * cells, 2, device=device) * points - centres * cells
    return (offset / (2 * points * cells * width)).square().neg().exp()


def _closer(coarse: Looks, target: int, settings: Glas) -> Tensor:
    """Search points [n], row * k + column, within the coarse cells that score best for the target."""
    scores = coarse.scores(torch.tensor([target], device=coarse.whole.device), "fusion")[0]
    best = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    best[scores.flatten().topk(settings.closer_cells).indices] = True
    within = settings.points // len(scores)
    inside = best.view_as(scores).repeat_interleave(within, 0).repeat_interleave(within, 1)
    return inside.flatten().nonzero()[:, 0]


def _refined(values: Tensor, points: int) -> Tensor:
    """[c,c,C] at the centres of a grid of points a side, [k,k,C]."""
    finer = interpolate(values.permute(2, 0, 1)[None], (points, points), mode="bilinear", align_corners=False)
    return finer[0].permute(1, 2, 0).contiguous()


def _level(dark: Tensor, image: Tensor) -> Tensor:
    return dark.to(image)[:, None, None]


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]
