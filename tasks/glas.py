"""Gaussian light and shadow (GLAS) and its recursive form (RGLAS): a map from probabilities alone.

A Gaussian lights, then shades, a place of the image at each search point; the answers, each spread around its point,
make the map. All is separable, so that neither masks nor spreading hold more than one batch of inputs. Volumes are
looked at like images: where this says [H,W], theirs is [D,H,W].
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod, sqrt

import torch
from torch import Tensor
from torch.nn.functional import pad

from storage.errors import ModelError
from tasks.cams.scaling import individual, resized
from tasks.search_points import Field, Glas

__all__ = [
    "MODES",
    "Glas",
    "Looks",
    "Predict",
    "Recursion",
    "Recursive",
    "fuse",
    "look",
    "look_closer",
    "look_for",
    "rglas",
]

Predict = Callable[[Tensor], Tensor]
"""Normalised inputs [n,channels,H,W] to probabilities [n,C]. It must keep none of the inputs: they are overwritten."""

MODES = ("light", "shadow", "fusion")


@dataclass(frozen=True, slots=True)
class Looks:
    """What the classifier answered to one image, all classes at once. float32, on the classifier's device.

    whole [C]: P(y|x). light [k,k,C]: P(y | b + (x-b) G). shadow [k,k,C]: |P(y|x) - P(y | b + (x-b)(1-G))| + lambda.
    Of a volume's grid they are [k,k,k,C], of n places [n,C].
    """

    whole: Tensor
    light: Tensor
    shadow: Tensor
    seen: Field

    def scores(self, classes: Tensor, mode: str) -> Tensor:
        """f [T,k,k] (or [T,k,k,k], [T,n]) of the classes [T]: light, shadow, or their product (fusion)."""
        if mode not in MODES:
            raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
        light, shadow = (values[..., classes].movedim(-1, 0) for values in (self.light, self.shadow))
        return light * shadow if mode == "fusion" else {"light": light, "shadow": shadow}[mode]


def look(
    predict: Predict,
    image: Tensor,
    dark: Tensor,
    settings: Glas,
    *,
    step: int,
    spacing: tuple[float, ...] | None = None,
) -> Looks:
    """Light and shadow at every search point, whatever `coarse` says: 2 n + 1 inputs for n points, `step` a forward.

    image [channels,H,W] is normalised, and so is dark [channels], the level b that means no light. spacing: mm a pixel.
    Raises ValueError for arguments of other shapes, ModelError where predict does not give [n,C] for n inputs.
    """
    seen = Field(tuple(image.shape[1:]), spacing)
    everywhere = torch.arange(prod(settings.grid), device=image.device)
    whole, light, shadow = _look_at(predict, image, dark, settings, seen=seen, points=everywhere, step=step)
    return Looks(whole, light.unflatten(0, settings.grid), shadow.unflatten(0, settings.grid), seen)


def look_for(
    predict: Predict,
    image: Tensor,
    dark: Tensor,
    target: int,
    settings: Glas,
    *,
    step: int,
    spacing: tuple[float, ...] | None = None,
) -> Looks:
    """As `look`; with `coarse`, a look at the coarser grid, and then a closer one for the class `target`."""
    looks = look(predict, image, dark, settings.coarser, step=step, spacing=spacing)
    return looks if settings.coarse is None else look_closer(predict, image, dark, looks, target, settings, step=step)


def look_closer(
    predict: Predict, image: Tensor, dark: Tensor, coarse: Looks, target: int, settings: Glas, *, step: int
) -> Looks:
    """Looks at the points that matter to the class `target`; the others are estimated from a coarse look.

    The coarse look ranks its cells by f_l f_s of the target. The search points within the best `share` of the cells
    are looked at themselves; the values of all others are the coarse ones, linear between centres. 2 n + 1 inputs for
    n points looked at. The masks' sigmas are the same in both looks.
    """
    points = _closer(coarse, target, settings)
    whole, *looked = _look_at(predict, image, dark, settings, seen=coarse.seen, points=points, step=step)
    estimated = (_refined(values, settings.grid) for values in (coarse.light, coarse.shadow))
    light, shadow = (
        values.flatten(0, -2).index_copy(0, points, exact).view_as(values)
        for values, exact in zip(estimated, looked, strict=True)
    )
    return Looks(whole, light, shadow, coarse.seen)


def fuse(
    looks: Looks,
    classes: Tensor,
    size: tuple[int, ...],
    settings: Glas,
    *,
    mode: str = "fusion",
    alive: Tensor | None = None,
) -> Tensor:
    """S(x) = 1/|Omega| sum over points mu of exp(-|x-mu|^2 / sigma_spatial^2) f(mu) -> [T,H,W] (GLAS, eq. 3).

    classes [T]; size: (H, W) of the map, its cells' centres laid over the image whatever the input's size was. mode:
    f is `light`, `shadow`, or their product (`fusion`). alive, of the grid's shape: the points of Omega, all if None;
    without any point S is 0. Points near the border have neighbours on one side only, so a constant f gives a map that
    falls off towards the border.
    """
    scores = looks.scores(classes, mode)
    count: Tensor | int = scores[0].numel()
    if alive is not None:
        scores, count = scores * alive, alive.sum().clamp(min=1)
    scores = scores / count
    spreads = [
        settings.bells(axis, cells, settings.part(settings.spatial, looks.seen, axis), scores.device)
        for axis, cells in enumerate(size)
    ]
    if settings.places is not None:
        return _spread_places(scores, spreads)
    for spread in spreads:  # the axis that is spread goes to the end, so that after all of them they are in order
        scores = torch.tensordot(scores, spread, dims=([1], [0]))
    return scores


def _spread_places(scores: Tensor, spreads: list[Tensor]) -> Tensor:
    """Sum over places of scores [T,n] times the product of their spreads [n,side], an axis each -> [T,*sides]."""
    spread = scores
    for along in spreads[:-1]:
        spread = spread[..., None] * along.view(len(along), *[1] * (spread.ndim - 2), -1)
    last: Tensor = torch.tensordot(spread, spreads[-1], dims=([1], [0]))
    return last


@dataclass(frozen=True, slots=True)
class Recursive:
    """How often GLAS is done again. The defaults are the paper's.

    reach: t_1, search points where S is above it are done with. ratio: t_2, the end is where sqrt(mean(S) / P(y|I))
    comes up to it, I being the image darkened by S.
    """

    settings: Glas = field(default_factory=Glas)
    reach: float = 0.8
    ratio: float = 5.0
    iterations: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.reach <= 1:
            raise ValueError(f"reach: expected a level from 0 to 1, got {self.reach}")
        if not self.ratio > 0:
            raise ValueError(f"ratio: expected a number above 0, got {self.ratio}")
        if self.iterations < 1:
            raise ValueError(f"iterations: expected at least 1, got {self.iterations}")

    @property
    def forwards(self) -> int:
        """At most: each iteration looks, and forwards the darkened image."""
        return self.iterations * (self.settings.forwards + 1)


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
    recursive: Recursive,
    *,
    step: int,
    spacing: tuple[float, ...] | None = None,
) -> Recursion:
    """Find a class's evidence, darken it, and look again (GLAS, algorithm 1, with the S of each step min-maxed)."""
    settings = recursive.settings
    size = tuple(image.shape[1:])
    classes = torch.tensor([target], device=image.device)
    cells = settings.cells_of_points(size, image.device)
    alive = torch.ones(settings.grid, dtype=torch.bool, device=image.device)
    steps: list[Tensor] = []
    counts: list[int] = []
    stopped = "iterations"
    for _ in range(recursive.iterations):
        looks = look_for(predict, image, dark, target, settings, step=step, spacing=spacing)
        saliency = individual(fuse(looks, classes, size, settings, alive=alive), axes=len(size))[0]
        alive = alive & (saliency[cells] <= recursive.reach)
        steps.append(saliency)
        counts.append(int(alive.sum()))
        image = torch.lerp(image, _level(dark, image), saliency.to(image))
        with torch.no_grad():
            left = float(predict(image[None])[0, target])
        if float(saliency.mean()) >= recursive.ratio**2 * left:  # not divided by P(y|I), which may be 0
            stopped = "ratio"
            break
        if not counts[-1]:
            stopped = "no-points"
            break
    found = torch.stack(steps)
    return Recursion(individual(found.sum(0), axes=len(size)), found, tuple(counts), stopped)


@dataclass(frozen=True, slots=True)
class _Masks:
    """Gaussians side by side, [n,side] of each axis; the first `lights` light, the others shade."""

    sides: tuple[Tensor, ...]
    lights: int

    def multiplied(self, here: slice, out: Tensor) -> None:
        """Some of the masks as they lie on the input [n,1,H,W]."""
        *first, last = (side[here] for side in self.sides)
        outer = first[0][:, None]
        for side in first[1:]:
            outer = outer[..., None] * side.view(len(side), *[1] * (outer.ndim - 1), -1)
        torch.mul(outer[..., None], last.view(len(last), *[1] * (outer.ndim - 1), -1), out=out)


def _look_at(
    predict: Predict, image: Tensor, dark: Tensor, settings: Glas, *, seen: Field, points: Tensor, step: int
) -> tuple[Tensor, Tensor, Tensor]:
    """P(y|x) [C], and light and shadow [n,C] at the points [n], counted through the grid row by row."""
    if image.ndim != 1 + settings.axes or dark.shape != image.shape[:1]:
        raise ValueError(
            f"expected an image [channels and {settings.axes} sides] and a dark level [channels], "
            f"got {list(image.shape)} and {list(dark.shape)}"
        )
    if step < 1:
        raise ValueError(f"step: expected at least 1 input a forward, got {step}")
    answers = _probabilities(predict, image, _level(dark, image), _masks(settings, seen, points, image), step)
    light, shaded, whole = answers.split([len(points), len(points), 1])
    return whole[0], light, (whole - shaded).abs() + settings.offset


def _masks(settings: Glas, seen: Field, points: Tensor, image: Tensor) -> _Masks:
    """All lights, then all shadows, then one shadow of nothing, the whole image: so only the last batch is short."""
    sides = []
    for axis, length in enumerate(seen.size):
        widths = [sqrt(2) * settings.part(sigma, seen, axis) for sigma in (settings.light, settings.shadow)]
        bells = [settings.bells(axis, length, width, image.device)[settings.along(points, axis)] for width in widths]
        sides.append(pad(torch.cat(bells), (0, 0, 0, 1)).to(image))
    return _Masks(tuple(sides), len(points))


def _probabilities(predict: Predict, image: Tensor, level: Tensor, masks: _Masks, step: int) -> Tensor:
    """[n,C] of the image behind each mask. One buffer holds the inputs of a forward, and then of the next."""
    total = len(masks.sides[0])
    step = min(step, total)
    inputs, gaussians = image.new_empty((step, *image.shape)), image.new_empty((step, 1, *image.shape[1:]))
    seen = []
    with torch.no_grad():
        for start in range(0, total, step):
            here = slice(start, min(start + step, total))
            count = here.stop - start
            lights = min(max(masks.lights - start, 0), count)
            masks.multiplied(here, out=gaussians[:count])
            torch.lerp(level, image, gaussians[:lights], out=inputs[:lights])
            torch.lerp(image, level, gaussians[lights:count], out=inputs[lights:count])
            answer = predict(inputs[:count])
            if answer.ndim != 2 or len(answer) != count:
                raise ModelError(f"expected probabilities [{count}, classes], got {list(answer.shape)}")
            # A copy, because an answer may be a view of the inputs.
            seen.append(answer.to(torch.float32, copy=True))
    return torch.cat(seen)


def _closer(coarse: Looks, target: int, settings: Glas) -> Tensor:
    """Search points [n], counted through the grid, within the coarse cells that score best for the target."""
    scores = coarse.scores(torch.tensor([target], device=coarse.whole.device), "fusion")[0]
    best = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    best[scores.flatten().topk(settings.closer_cells).indices] = True
    inside = best.view_as(scores)
    for axis in range(settings.axes):
        inside = inside.repeat_interleave(settings.points // len(scores), axis)
    return inside.flatten().nonzero()[:, 0]


def _refined(values: Tensor, grid: tuple[int, ...]) -> Tensor:
    """[c,c,C] at the centres of a finer grid, [k,k,C]."""
    return resized(values.movedim(-1, 0)[None], grid)[0].movedim(0, -1).contiguous()


def _level(dark: Tensor, image: Tensor) -> Tensor:
    return dark.to(image).view(-1, *[1] * (image.ndim - 1))
