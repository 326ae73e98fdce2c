"""`python -m benchmarks.measures`: counting concepts, against a loop over channels; and what all default measures cost.

Concepts of 256 images and 512 channels at 224 pixels: for a 7x7 layer with q = 0.04 and a 28x28 layer with q = 0.01.
The loop upsamples a channel, thresholds it, labels it with scipy.ndimage.label and looks into the boxes. Each of both
has as many of torch's threads as make it fastest, one or all. The loop's float32 pixels may lie on the other side of a
threshold than ours, which are float64: how many counts differ is shown. In one process, in turns, on the same inputs; a
ratio is taken within a round, and the median over rounds is shown. Activations are real: batch norm and ReLU of
EfficientNet-Lite0 with its ImageNet weights, on seeded crops of scikit-image's photographs; boxes are drawn, one to
three an image. The loop can be timed on a share of the channels, and then its time is scaled, which the output says.
Then the same network and crops are explained by Grad-CAM, without measures and with the default ones, in turns: images
that go through the network are counted, and seconds taken. Boxes and labels are there, so that no default measure is
left out. What that costs holds for one class an image, for maps that share a forward, and for a linear head: of another
head, accuracy with features masked takes a pass of the head for each of up to 2 C + 2 masks besides.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from skimage import data
from torch import Tensor
from torch.nn.functional import interpolate

from examples.real.efficientnet_lite import EfficientNetLite
from storage.records import Box
from tasks.cams.names import MethodName
from tasks.classifier import Classifier
from tasks.explain import ExplainSettings, explain_shard
from tasks.measures.concepts import count
from tasks.measures.names import GROUPS
from tasks.measures.settings import MeasureSettings
from tasks.preprocess import Preprocess
from tasks.profile import ProfileSettings, Truth, profile_shard
from tasks.reductions.distribution import Distribution

_SIZE = (224, 224)
_IMAGES, _CHANNELS, _BATCH = 256, 512, 32
_PHOTOGRAPHS = ("astronaut", "brick", "cat", "coffee", "grass", "gravel", "rocket", "retina", "immunohistochemistry")
_LAYERS = {
    "7x7": (("_bn1",), 0.04),
    "28x28": (("_blocks.3._bn1", "_blocks.4._bn0", "_blocks.4._bn1"), 0.01),
}
_JUDGED = 32  # images that all default measures are taken of
_TRIAL = 4  # channels that decide on the loop's threads
_TOUCHING = np.ones((3, 3))


@dataclass(frozen=True, slots=True)
class Scene:
    """activation [B,F,h,w], thresholds [F], and the boxes [k,4] of each image."""

    activation: Tensor
    thresholds: Tensor
    rects: Sequence[Tensor]

    @classmethod
    def of(cls, crops: Tensor, rects: Sequence[Tensor], modules: Sequence[str], above: float) -> "Scene":
        net: Any = EfficientNetLite().eval().features.net
        found: dict[str, Tensor] = {}
        for name in modules:
            net.get_submodule(name).register_forward_hook(partial(_keep, found, name))
        batches = []
        with torch.no_grad():
            for batch in crops.split(_BATCH):
                net.extract_features(batch)
                batches.append(torch.cat([found[name] for name in modules], 1)[:, :_CHANNELS].relu())
        activation = torch.cat(batches)
        thresholds = torch.from_numpy(Distribution.of(activation, 5).above(above))
        return cls(activation, thresholds, rects)

    def first(self, channels: int) -> "Scene":
        return replace(self, activation=self.activation[:, :channels], thresholds=self.thresholds[:channels])

    def ours(self) -> Tensor:
        return count(self.activation, self.thresholds, self.rects, _SIZE)

    def loop(self) -> Tensor:
        counts = torch.zeros(self.activation.shape[:2], dtype=torch.int64)
        for image, boxes in enumerate(self.rects):
            for channel, threshold in enumerate(self.thresholds.tolist()):
                upsampled = interpolate(self.activation[image, channel][None, None], _SIZE, mode="bilinear")[0, 0]
                labels, _ = ndimage.label((upsampled > threshold).numpy(), _TOUCHING)
                met = [np.unique(labels[top:bottom, left:right]) for left, top, right, bottom in boxes.tolist()]
                counts[image, channel] = int(np.count_nonzero(np.unique(np.concatenate(met))))
        return counts


def _keep(found: dict[str, Tensor], name: str, _module: object, _inputs: object, out: Tensor) -> None:
    found[name] = out


def crops(random: np.random.Generator, count: int) -> Tensor:
    """Square crops of photographs as the classifier takes them [count,3,224,224]."""
    photographs = [np.atleast_3d(getattr(data, name)()) for name in _PHOTOGRAPHS]
    found = []
    for place in range(count):
        photograph = photographs[place % len(photographs)]
        height, width = photograph.shape[:2]
        side = int(random.integers(128, min(height, width) + 1))
        top, left = random.integers(0, height - side + 1), random.integers(0, width - side + 1)
        part = torch.from_numpy(photograph[top : top + side, left : left + side]).movedim(-1, 0).expand(3, -1, -1)
        found.append(interpolate(part[None].float(), _SIZE, mode="bilinear", antialias=True)[0])
    return (torch.stack(found) - 127) / 128


def boxes(random: np.random.Generator) -> Tensor:
    """One to three boxes, each side an eighth to a half of the image's."""
    sides = random.integers(_SIZE[0] // 8, _SIZE[0] // 2 + 1, (random.integers(1, 4), 2))
    corners = (random.random(sides.shape) * (np.array(_SIZE) - sides + 1)).astype(np.int64)
    return torch.from_numpy(np.concatenate([corners, corners + sides], 1))


def _timed(run: Callable[[], Tensor], threads: int) -> tuple[float, Tensor]:
    torch.set_num_threads(threads)
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def _best(run: Callable[[], Tensor]) -> int:
    """The number of threads, one or as many as there are cores, with the shorter of two runs in turns."""
    numbers = sorted({1, os.cpu_count() or 1})
    taken = [[_timed(run, number)[0] for number in numbers] for _ in range(2)]
    return numbers[int(np.min(taken, axis=0).argmin())]


def concepts(title: str, scene: Scene, channels: int, rounds: int) -> None:
    """Ours and the loop in turns; the loop on so many channels, its time scaled to all."""
    every = scene.activation.shape[1]
    part, scale = scene.first(channels), every / channels
    theirs, own = _best(scene.first(_TRIAL).loop), _best(scene.ours)
    rows = []
    for _ in range(rounds):
        (slow, expected), (fast, found) = _timed(part.loop, theirs), _timed(scene.ours, own)
        rows.append((slow * scale, fast, slow * scale / fast))
    slow, fast, ratio = (statistics.median(column) for column in zip(*rows, strict=True))
    differ, mean = int((found[:, :channels] != expected).sum()), float(found.sum(1).double().mean())
    print(f"{title:<20}{ratio:6.1f} x: loop {slow:.2f} s, {theirs} thread(s); ours {fast:.3f} s, {own} thread(s)")
    print(f"{'':<20}{mean:.1f} concepts an image; {differ} of {expected.numel()} counts differ", flush=True)
    if channels < every:
        print(f"{'':<20}ESTIMATED: the loop ran on {channels} of {every} channels, and its time is scaled to all")


def default_measures(inputs: Tensor, rects: Sequence[Tensor], rounds: int) -> None:
    """What pass 2 takes of the predicted class of each image, without measures and with all that are on by default."""
    module = EfficientNetLite().eval().requires_grad_(False)
    device, labels = torch.device("cpu"), tuple(map(str, range(1000)))
    preprocess = Preprocess(None, _SIZE, 3, (0.5,) * 3, (0.5,) * 3)
    classifier = Classifier(module, "features", labels, "one-label", preprocess, device)
    images = [crop.movedim(0, -1).numpy() for crop in inputs * 0.5 + 0.5]
    names = [str(place) for place in range(len(images))]
    with torch.no_grad():
        predicted = module(inputs).argmax(1).tolist()
    truth = Truth(
        np.ones(len(images), bool),
        np.eye(len(labels), dtype=bool)[predicted],
        [[Box(labels[c], *map(float, box)) for box in own.tolist()] for c, own in zip(predicted, rects, strict=True)],
    )
    profile = profile_shard(classifier, images, names, truth, ProfileSettings(("grad-cam",))).profile
    limits, masks = {"grad-cam": profile.limits("grad-cam")}, {"grad-cam": profile.mask("grad-cam", share=0.05)}
    thresholds, seen = profile.features.above(0.01), [0]
    module.register_forward_pre_hook(lambda _module, given: seen.append(len(given[0])))
    methods = (MethodName("grad-cam"), MethodName("grad-cam", scaled=True))

    def taken(groups: frozenset[str]) -> tuple[float, float]:
        settings = ExplainSettings(methods, measures=MeasureSettings(groups))
        seen.clear()
        start = time.perf_counter()
        explain_shard(classifier, images, names, truth, settings, limits=limits, masks=masks, thresholds=thresholds)
        return time.perf_counter() - start, sum(seen) / len(images)

    default = frozenset(group.name for group in GROUPS.values() if group.default)
    pairs = [(taken(frozenset()), taken(default)) for _ in range(rounds)]
    (_, without), (_, judged) = pairs[0]
    ratio = statistics.median(slow / fast for (fast, _), (slow, _) in pairs)
    print(f"default measures of {len(images)} images, grad-cam and s-grad-cam of the predicted class, a linear head")
    print(f"{'forwards an image':<20}{without:.2f} without measures, {judged:.2f} with: {judged - without:.2f} more")
    print(f"{'time':<20}{ratio:.2f} x that without measures")
    print(f"{'':<20}heads that are not linear are NOT measured: masks cost a pass of the head each", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.measures", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--channels", type=int, default=_CHANNELS, help="that the loop runs on in each round")
    options = parser.parse_args()
    random = np.random.default_rng(0)
    inputs, rects = crops(random, _IMAGES), [boxes(random) for _ in range(_IMAGES)]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {options.rounds} rounds")
    print(f"concepts of {_IMAGES} images and {_CHANNELS} channels at {_SIZE[0]} pixels")
    for name, (modules, above) in _LAYERS.items():
        scene = Scene.of(inputs, rects, modules, above)
        concepts(f"{name}, q = {above:g}", scene, options.channels, options.rounds)
    torch.set_num_threads(os.cpu_count() or 1)
    default_measures(inputs[:_JUDGED], rects[:_JUDGED], options.rounds)


if __name__ == "__main__":
    main()
