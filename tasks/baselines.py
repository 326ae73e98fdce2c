"""Baselines for maps side by side: methods that look at the input alone, not at features.

What is hidden, dimmed or deleted goes to the dark level b, as in GLAS, and the answer is the class's probability; the
plain gradient alone is that of the logit. Cells are equal parts of each side of the input.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, exp, sqrt

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tasks.cams.evidence import Evidence
from tasks.cams.scaling import resized
from tasks.probes import Probes

_KEPT = 1 << 25  # values of gradients that are kept for another size of the same maps


@dataclass(frozen=True, slots=True)
class InputGradient:
    """max over channels of |dz_c/dx|, x being the normalised input (Simonyan et al., section 3.1). Never negative."""

    def saliency(self, evidence: Evidence, size: tuple[int, ...]) -> Tensor:
        probes = evidence.probes
        classes = evidence.classes.expand(len(probes.pixels), -1)
        if classes.numel() * probes.pixels[0, 0].numel() > _KEPT:
            return torch.cat([_averaged(column, size) for column in self._steepest(probes, classes)], 1)
        found = probes.recent(self, classes.tolist(), lambda: torch.cat(list(self._steepest(probes, classes)), 1))
        return _averaged(found, size)

    def _steepest(self, probes: Probes, classes: Tensor) -> Iterator[Tensor]:
        """[B,1,*input size] of each column of classes."""
        return (gradient.abs().amax(1, keepdim=True) for gradient in probes.gradients(classes))

    def forwards(self, features: int, head: str) -> int:
        """At most, for each class: a forward that all share, and a backward pass, which costs about as much."""
        return 2

    @property
    def by_class(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class OcclusionMap:
    """Drop of the probability where a square is dark, the mean over the squares that hide a cell (Zeiler & Fergus).

    captum moves the square: `cells` a side, the square `window` of them wide, moved by `stride`.
    axes: of the input, by which its forwards are counted.
    """

    cells: int = 15
    window: int = 3
    stride: int = 1
    axes: int = 2

    def saliency(self, evidence: Evidence, size: tuple[int, ...]) -> Tensor:
        probes = evidence.probes
        drops = probes.once(self, lambda: [self._drops(probes, index) for index in range(len(probes.pixels))])
        classes = evidence.classes.expand(len(drops), -1)
        return _averaged(torch.stack([one[those] for one, those in zip(drops, classes, strict=True)]), size)

    def _drops(self, probes: Probes, index: int) -> Tensor:
        """[C,*cells], all classes from the same forwards."""
        from captum.attr import Occlusion

        axes = probes.pixels.ndim - 2

        def predict(shown: Tensor) -> Tensor:
            return probes.predict(probes.behind(index, _in_blocks(shown[:, None], probes)))

        # captum moves its window over the grid of cells, so that its masks of [n,C,*cells] stay small.
        drops: Tensor = Occlusion(predict).attribute(
            probes.pixels.new_ones(1, *[self.cells] * axes),
            sliding_window_shapes=(self.window,) * axes,
            strides=(self.stride,) * axes,
            perturbations_per_eval=probes.step,
        )
        return drops

    def forwards(self, features: int, head: str) -> int:
        """Of an image; once for all classes."""
        places: int = (ceil((self.cells - self.window) / self.stride) + 1) ** self.axes
        return places + 1

    @property
    def by_class(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class RiseMap:
    """Random masks, each weighed by the probability of what it shows (Petsiuk et al., eq. 6).

    masks: N. cells: h and w, a side of a mask before it is upsampled. share: p, the part of cells that show the image.
    """

    masks: int = 2000
    cells: int = 7
    share: float = 0.5

    def saliency(self, evidence: Evidence, size: tuple[int, ...]) -> Tensor:
        probes = evidence.probes
        answers = probes.once(self, lambda: [self._answers(probes, index) for index in range(len(probes.pixels))])
        classes = evidence.classes.expand(len(answers), -1)
        return torch.stack(
            [self._weighed(probes, index, answers[index][:, those], size) for index, those in enumerate(classes)]
        )

    def _answers(self, probes: Probes, index: int) -> Tensor:
        """[N,C]"""
        return torch.cat([probes.predict(probes.behind(index, masks)) for masks in self.drawn(probes, index)])

    def _weighed(self, probes: Probes, index: int, weights: Tensor, size: tuple[int, ...]) -> Tensor:
        """[T,*size] of weights [N,T]. The masks are drawn once more: N of them at input size are too many to keep."""
        total = weights.new_zeros(weights.shape[1], *size)
        for masks, those in zip(self.drawn(probes, index), weights.split(probes.step), strict=True):
            total += torch.einsum("nt,n...->t...", those, _averaged(masks, size)[:, 0])
        return total / (self.share * self.masks)

    def drawn(self, probes: Probes, index: int) -> Iterator[Tensor]:
        """The masks of an image, [n,1,*size] in [0, 1], `probes.step` at a time; always the same ones.

        A grid of cells that show or hide, upsampled so that one more cell fits, and cut to size at a random place.
        """
        size = probes.pixels.shape[2:]
        cell = [ceil(side / self.cells) for side in size]
        generator = probes.generator("rise", index)
        grids = torch.rand(self.masks, 1, *[self.cells] * len(size), generator=generator) < self.share
        places = torch.stack([torch.randint(side, (self.masks,), generator=generator) for side in cell], 1)
        for some, here in zip(grids.split(probes.step), places.split(probes.step), strict=True):
            whole = resized(some.to(probes.pixels), tuple((self.cells + 1) * side for side in cell))
            yield torch.stack(
                [
                    mask[(slice(None), *(slice(start, start + side) for start, side in zip(place, size, strict=True)))]
                    for mask, place in zip(whole, here.tolist(), strict=True)
                ]
            )

    def forwards(self, features: int, head: str) -> int:
        """Of an image; once for all classes."""
        return self.masks

    @property
    def by_class(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class LimeMap:
    """Coefficients of a linear model of the probability in the cells that are shown (Ribeiro et al., section 3).

    Half of the cells are hidden in a sample, at random. The linear model is captum's: ridge regression of strength
    `ridge`, a sample weighing exp(-d^2 / 2 width^2), d being 1 - cos between the cells shown and all cells.
    """

    samples: int = 1000
    cells: int = 7
    width: float = 0.25
    ridge: float = 1.0

    def saliency(self, evidence: Evidence, size: tuple[int, ...]) -> Tensor:
        probes = evidence.probes
        count, axes = len(probes.pixels), probes.pixels.ndim - 2
        classes, absent = (each.expand(count, -1).tolist() for each in (evidence.classes, evidence.absent))
        found = probes.recent((self, "fits"), (classes, absent), lambda: self._fitted(probes, classes, absent))
        return _averaged(found.unflatten(2, [self.cells] * axes), size)

    def _fitted(self, probes: Probes, classes: list[list[int]], absent: list[list[bool]]) -> Tensor:
        """Coefficients [B,T,cells] of classes [B,T]."""
        count, axes = len(probes.pixels), probes.pixels.ndim - 2
        answered = probes.once(self, lambda: [self._answers(probes, index) for index in range(count)])
        found = probes.pixels.new_zeros(count, len(classes[0]), self.cells**axes)
        for row, (shown, answers) in enumerate(answered):
            for column, target in enumerate(classes[row]):
                if not absent[row][column]:
                    found[row, column] = self._coefficients(shown, answers[:, target]).to(found)
        return found

    def _answers(self, probes: Probes, index: int) -> tuple[Tensor, Tensor]:
        """Which cells each sample shows, [n,cells] of 0 and 1, and the probabilities [n,C]; on the CPU, as the fit."""
        axes = probes.pixels.ndim - 2
        shown = (torch.rand(self.samples, self.cells**axes, generator=probes.generator("lime", index)) < 0.5).float()
        grids = shown.to(probes.pixels).view(-1, 1, *[self.cells] * axes).split(probes.step)
        answers = [probes.predict(probes.behind(index, _in_blocks(grid, probes))) for grid in grids]
        return shown, torch.cat(answers).float().cpu()

    def _coefficients(self, shown: Tensor, answers: Tensor) -> Tensor:
        """[cells] of one class's answers [n]: captum fits one class at a time, and asks for no forward here."""
        from captum._utils.models.linear_model import SkLearnRidge
        from captum.attr import LimeBase

        rows = iter(shown.split(1))
        base = LimeBase(
            lambda samples: answers,
            SkLearnRidge(alpha=self.ridge),
            lambda whole, sample, cells, **_: exp(-((1 - sqrt(cells.mean())) ** 2) / (2 * self.width**2)),
            perturb_func=lambda whole, **_: next(rows),
            perturb_interpretable_space=True,
            from_interp_rep_transform=lambda cells, whole, **_: cells,
            to_interp_rep_transform=None,
        )
        whole = torch.ones_like(shown[:1])
        found: Tensor = base.attribute(whole, n_samples=len(shown), perturbations_per_eval=len(shown))
        return found[0]

    def forwards(self, features: int, head: str) -> int:
        """Of an image; once for all classes."""
        return self.samples

    @property
    def by_class(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class MeaningfulPerturbation:
    """What it takes to delete a class: 1 - m in [0, 1], found by Adam (Fong & Vedaldi, eq. 3, 'deletion game').

    m [*cells] minimises p_c(b + (x - b) m) + l1 sum(1 - m) + tv sum |dm|^beta, m upsampled to the input, from m = 0.5.
    l1: lambda_1; tv: lambda_2; steps: N; rate: gamma.
    """

    cells: int = 28
    steps: int = 300
    rate: float = 0.1
    l1: float = 1e-4
    tv: float = 1e-2
    beta: float = 3.0

    def saliency(self, evidence: Evidence, size: tuple[int, ...]) -> Tensor:
        probes = evidence.probes
        classes, absent = (each.expand(len(probes.pixels), -1) for each in (evidence.classes, evidence.absent))
        # Once for the same classes, whatever the sizes asked for.
        asked = tuple(map(tuple, classes.masked_fill(absent, -1).tolist()))
        deleted = probes.once((self, asked), lambda: self._deleted(probes, classes, absent))
        return _averaged(deleted, size) if min(deleted.shape[2:]) > max(size) else resized(deleted, size)

    def _deleted(self, probes: Probes, classes: Tensor, absent: Tensor) -> Tensor:
        """1 - m [B,T,*cells]"""
        deleted = probes.pixels.new_zeros(*classes.shape, *[self.cells] * (probes.pixels.ndim - 2))
        pairs = (~absent).nonzero()
        for start in range(0, len(pairs), probes.step):
            images, columns = pairs[start : start + probes.step].T
            deleted[images, columns] = 1 - self._kept(probes, images, classes[images, columns])[:, 0]
        return deleted

    def _kept(self, probes: Probes, images: Tensor, targets: Tensor) -> Tensor:
        """m [n,1,*cells], each row for itself."""
        size = tuple(probes.pixels.shape[2:])
        kept = probes.pixels.new_full((len(images), 1, *[self.cells] * len(size)), 0.5).requires_grad_()
        finer = [_finer(self.cells, side, kept.device) for side in size]
        adam = torch.optim.Adam([kept], lr=self.rate)
        for _ in range(self.steps):
            with torch.enable_grad():
                whole = kept
                for along in finer:  # the axis that is done goes to the end, so that after all they are in order
                    whole = torch.tensordot(whole, along, dims=([2], [0]))
                answers = probes.differentiable(probes.behind(images, whole))
                loss = answers.gather(1, targets[:, None]).sum() + self._penalty(kept)
            (kept.grad,) = torch.autograd.grad(loss, kept)
            adam.step()
            with torch.no_grad():
                kept.clamp_(0, 1)
        return kept.detach()

    def _penalty(self, kept: Tensor) -> Tensor:
        rough = sum(kept.diff(dim=axis).abs().pow(self.beta).sum() for axis in range(2, kept.ndim))
        return self.l1 * (1 - kept).sum() + self.tv * rough

    def forwards(self, features: int, head: str) -> int:
        """For each class: a step is a forward and a backward pass, which costs about as much with frozen weights."""
        return 2 * self.steps

    @property
    def by_class(self) -> bool:
        return True


def _finer(cells: int, side: int, device: torch.device) -> Tensor:
    """[cells,side]: linear interpolation along an axis. As a product its gradient is the same to the bit on a GPU."""
    return interpolate(torch.eye(cells, device=device)[None], side, mode="linear", align_corners=False)[0]


def _in_blocks(cells: Tensor, probes: Probes) -> Tensor:
    """[n,1,*cells] at the size of the input, each cell a block with sharp edges."""
    return interpolate(cells, tuple(probes.pixels.shape[2:]), mode="nearest")


def _averaged(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """[n,T,...] maps at another size, a cell the mean of what it covers: bilinear would pass over what is finer."""
    return interpolate(maps, size, mode="area")
