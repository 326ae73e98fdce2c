"""Further forwards of a batch's images, perturbed: each is done once, for all classes and all methods that ask.

Noise is drawn on the CPU from a seed of image, purpose, draw and feature, so it depends on nothing else: not on the
device, the batch, or what was drawn before.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from tasks.cams.scaling import resized
from tasks.capture import Capture, Forward
from tasks.classifier import Classifier
from tasks.glas import Glas, Looks, Recursion, Recursive, look, look_closer, rglas

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Masking:
    """How a feature's mask varies. steps: in equal parts from 0 to the whole mask; draws: with noise of std."""

    steps: int = 1
    draws: int = 0
    std: float = 0.0

    @property
    def forwards(self) -> int:
        """For each feature of an image."""
        return self.draws or self.steps


class Probes:
    """What can be asked about the images of one batch [B,channels,H,W] after their forward.

    names: one for each image, from which its noise follows; spacings: mm a pixel of each input, where it is known;
    step: images a forward at most.
    """

    def __init__(
        self,
        classifier: Classifier,
        capture: Capture,
        pixels: Tensor,
        forward: Forward,
        names: Sequence[str],
        *,
        step: int,
        spacings: Sequence[tuple[float, ...] | None] | None = None,
    ) -> None:
        self._classifier = classifier
        self._capture = capture
        self.pixels = pixels
        self.forward = forward
        self.names = names
        self.spacings = [None] * len(names) if spacings is None else spacings
        self.step = step
        self._known: dict[object, object] = {}

    @property
    def dark(self) -> Tensor:
        """[channels]: the dark level, 0 before normalisation, as normalised inputs have it."""
        return self._classifier.preprocess.dark.to(self.pixels)

    @property
    def probabilities(self) -> Tensor:
        """p [B,C] of the batch as it is."""
        return self._classifier.probabilities(self.forward.logits)

    def predict(self, inputs: Tensor) -> Tensor:
        """Normalised inputs [n,channels,H,W] to probabilities [n,C]."""
        return self._classifier.probabilities(self._capture.logits(inputs))

    def behind(self, images: int | Tensor, masks: Tensor) -> Tensor:
        """b + (x - b) m of an image, or of images [n], behind masks [n,1,*size] -> [n,channels,*size]."""
        dark = self.dark.view(-1, *[1] * (self.pixels.ndim - 2))
        return torch.lerp(dark, self.pixels[images], masks)

    def differentiable(self, inputs: Tensor) -> Tensor:
        """As predict, with a graph from the inputs to the probabilities."""
        return self._classifier.probabilities(self._capture.differentiable(inputs))

    def gradients(self, classes: Tensor) -> Iterator[Tensor]:
        """dz_c/dx [B,channels,*size] of classes [B,T], a column at a time: one forward, and a backward pass each."""
        inputs = self.pixels.detach().requires_grad_()
        logits = self._capture.differentiable(inputs)
        for column in classes.T:
            chosen = one_hot(column, logits.shape[1]).to(logits)
            yield torch.autograd.grad(logits, inputs, chosen, retain_graph=True)[0]

    def looks(self, settings: Glas) -> tuple[Looks, ...]:
        """What light and shadow tell of each image; with `coarse`, at the coarser search points."""
        coarser = settings.coarser
        return self.once(coarser, lambda: tuple(self._look(index, coarser) for index in range(len(self.pixels))))

    def closer_looks(self, settings: Glas, index: int, target: int) -> Looks:
        """A closer look at an image for one class, after the coarse one."""
        image, coarse = self.pixels[index], self.looks(settings)[index]
        return self.once(
            (settings, index, target),
            lambda: look_closer(self.predict, image, self.dark, coarse, target, settings, step=self.step),
        )

    def search(self, settings: Recursive, index: int, target: int) -> Recursion:
        """Recursive GLAS of an image and a class, its maps at input size."""
        image, spacing = self.pixels[index], self.spacings[index]
        return rglas(self.predict, image, self.dark, target, settings, step=self.step, spacing=spacing)

    def ablated(self) -> Tensor:
        """z [B,F,C], each feature set to 0 by itself."""
        features = self._features()
        return self.once("ablated", lambda: self.keeping(features[:, None] != features, range(len(self.pixels))))

    def keeping(self, keep: Tensor, images: Sequence[int]) -> Tensor:
        """z [b,n,C] of some images, with only the features of each row of keep [n,F] bool, the others set to 0 at the
        target layer.

        A pass of the head for each image and row, and one of the trunk for `step` rows of an image.
        """
        parts = keep.split(self.step)
        return torch.stack(
            [
                torch.cat(
                    [
                        self._capture.logits_keeping(self.pixels[index : index + 1], self.forward, index, part)
                        for part in parts
                    ]
                )
                for index in images
            ]
        )

    def masked(self, masking: Masking) -> Tensor:
        """z [B,F,C] of the input times each feature's mask, the mean over the masking's variations.

        A mask is the feature at input size (linear along each axis), from 0 at its minimum to 1 at its maximum; a flat
        one is 0.
        """
        return self.once(masking, lambda: self._mask(masking))

    def noisy(self, draws: int, std: float) -> tuple[Forward, ...]:
        """Forwards of the batch with Gaussian noise of std on the normalised input."""
        return self.once((draws, std), lambda: tuple(self._with_noise(draw, std) for draw in range(draws)))

    def shaken(self, images: list[int], draws: int, std: float) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw after draw, Gaussian noise I [n,channels,*size] of std for some images, and z - z(x - I) [n,C].

        The noise is drawn anew each time; the forward is done once.
        """
        for draw in range(draws):
            noise = std * self._drawn(torch.randn, f"shaken|{draw}", images)
            yield noise, self.once(("shaken", tuple(images), draw, std), partial(self._change, images, noise))

    def nudged(self, images: list[int], draws: int, radius: float) -> Iterator["Probes"]:
        """Draw after draw, the same of some images with uniform noise of at most radius on the normalised input.

        Their names stay, so that what a method draws at random does not change with the input.
        """
        for draw in range(draws):
            noise = self._drawn(torch.rand, f"nudged|{draw}", images)
            pixels = self.pixels[images] + radius * (2 * noise - 1)
            yield Probes(
                self._classifier,
                self._capture,
                pixels,
                self._capture(pixels),
                [self.names[index] for index in images],
                step=self.step,
                spacings=[self.spacings[index] for index in images],
            )

    def recent(self, what: object, key: object, compute: Callable[[], Result]) -> Result:
        """What is computed once for a key, and kept until the same is asked for another key: too large to keep all."""
        if what not in self._known or self._known[what][0] != key:  # type: ignore[index]
            self._known.pop(what, None)
            self._known[what] = (key, compute())
        return self._known[what][1]  # type: ignore[index,no-any-return]

    def once(self, key: object, compute: Callable[[], Result]) -> Result:
        """What is computed once for the batch, whatever the number of class columns and methods."""
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]  # type: ignore[return-value]  # the key says which

    def _look(self, index: int, settings: Glas) -> Looks:
        image, spacing = self.pixels[index], self.spacings[index]
        return look(self.predict, image, self.dark, settings, step=self.step, spacing=spacing)

    def _mask(self, masking: Masking) -> Tensor:
        parts = self._features().split(self.step)
        return torch.stack(
            [
                torch.cat([self._mean_logits(masking, index, part) for part in parts])
                for index in range(len(self.pixels))
            ]
        )

    def _mean_logits(self, masking: Masking, index: int, features: Tensor) -> Tensor:
        image, masks = self.pixels[index], self._masks(index, features)
        total = torch.zeros(())
        for varied in self._variations(masking, masks, index, features):
            total = total.to(image) + self._capture.logits(image * varied)
        return total / masking.forwards

    def _masks(self, index: int, features: Tensor) -> Tensor:
        """[n,1,H,W] in [0, 1]."""
        masks = resized(self.forward.activation[index, features][:, None], tuple(self.pixels.shape[2:]))
        cells = tuple(range(2, masks.ndim))
        low = masks.amin(cells, keepdim=True)
        span = masks.amax(cells, keepdim=True) - low
        return (masks - low) / torch.where(span > 0, span, torch.ones_like(span))

    def _variations(self, masking: Masking, masks: Tensor, index: int, features: Tensor) -> Iterator[Tensor]:
        for draw in range(masking.draws):
            noise = [self._noise(f"mask|{draw}|{feature}", index, masks.shape[1:]) for feature in features.tolist()]
            yield masks + masking.std * torch.stack(noise).to(masks)
        if not masking.draws:
            for step in range(1, masking.steps + 1):
                yield masks * (step / masking.steps)

    def _with_noise(self, draw: int, std: float) -> Forward:
        noise = self._drawn(torch.randn, f"input|{draw}", range(len(self.pixels)))
        return self._capture(self.pixels + std * noise)

    def _change(self, images: list[int], noise: Tensor) -> Tensor:
        """z - z(x - I) [n,C]"""
        return self.forward.logits[images] - self._capture.logits(self.pixels[images] - noise)

    def _drawn(self, draw: Callable[..., Tensor], purpose: str, images: Sequence[int]) -> Tensor:
        """torch.rand or torch.randn for each value of some images [n,channels,*size]."""
        shape = self.pixels.shape[1:]
        return torch.stack([draw(shape, generator=self.generator(purpose, index)) for index in images]).to(self.pixels)

    def generator(self, purpose: str, index: int) -> torch.Generator:
        """Random numbers, on the CPU, that follow from the image's name and the purpose alone."""
        digest = hashlib.sha256(f"{self.names[index]}|{purpose}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))

    def _noise(self, purpose: str, index: int, shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=self.generator(purpose, index))

    def _features(self) -> Tensor:
        return torch.arange(self.forward.activation.shape[1], device=self.forward.activation.device)
