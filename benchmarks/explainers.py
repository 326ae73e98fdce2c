"""`python -m benchmarks.explainers`: what the other methods cost, as ratios to bare forwards and to other libraries.

In one process, in turns, on the same inputs; a ratio is taken within a round, and the median over rounds is shown.
(a) The nine gradient CAMs of 14 classes in one maps pass against a bare forward of the same images. (b) GLAS of one
image against 2k^2+1 bare forwards at the best batch size and layout, against captum's occlusion and against RISE (its
authors' procedure, written out below, because no kept library has it) at the same number of forwards. GLAS serves all
classes at once; captum's occlusion serves one. (c) Score-CAM of one image: ours serves all classes, pytorch-grad-cam's
and torchcam's one. Inputs are seeded noise and weights are random: neither changes the work.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
import torchvision
from torch import Tensor
from torch.nn.functional import interpolate

from tasks.cams.evidence import Evidence
from tasks.cams.heads import Head
from tasks.cams.names import MethodName
from tasks.cams.rules import ScoreCam
from tasks.capture import capturing
from tasks.classifier import Classifier
from tasks.explain import ExplainSettings, explain_shard
from tasks.glas import Glas, fuse, look
from tasks.preprocess import Preprocess
from tasks.probes import Probes
from tasks.profile import Truth

Choice = TypeVar("Choice")

NINE = (
    "cam", "grad-cam", "pixel-grad-cam", "xgrad-cam", "grad-cam++", "smooth-grad-cam++", "layer-cam", "eigen-cam",
    "eigen-grad-cam",
)  # fmt: skip
_CLASSES = 14
_STEPS = (4, 8, 16, 32, 64)
_TRIALS = 2
_LAYOUTS = (torch.contiguous_format, torch.channels_last)


@dataclass(frozen=True, slots=True)
class Scene:
    """A classifier with its last block as target layer, and normalised inputs [n,3,224,224]."""

    classifier: Classifier
    inputs: Tensor

    @classmethod
    def of(cls, model: str, device: torch.device, images: int) -> "Scene":
        torch.manual_seed(0)
        module = getattr(torchvision.models, model)(num_classes=_CLASSES).eval().requires_grad_(False).to(device)
        preprocess = Preprocess(None, 224, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        classes = tuple(f"class {index}" for index in range(_CLASSES))
        classifier = Classifier(module, "layer4", classes, "one-label", preprocess, device)
        return cls(classifier, torch.randn(images, 3, 224, 224).to(device))


Contest = Mapping[str, Callable[[], object]]


def nine_cams(scene: Scene) -> Contest:
    count = len(scene.inputs)
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (224, 224, 3), np.uint8) for _ in range(count)]
    names = [str(number) for number in range(count)]
    truth = Truth(np.zeros(count, bool), np.zeros((count, _CLASSES), bool))
    settings = ExplainSettings(tuple(map(MethodName, NINE)), "all", _CLASSES, batch=count)
    one = ExplainSettings((MethodName("grad-cam"),), "all", _CLASSES, batch=count)

    def forward(layout: torch.memory_format) -> None:
        with torch.no_grad():
            batch = scene.classifier.preprocess(images, scene.classifier.device)
            scene.classifier.module(batch.contiguous(memory_format=layout))

    return {
        "forward": lambda: forward(torch.contiguous_format),
        "forward, channels last": lambda: forward(torch.channels_last),
        "grad-cam": lambda: explain_shard(scene.classifier, images, names, truth, one, limits={}, masks={}),
        "nine gradient CAMs": lambda: explain_shard(
            scene.classifier, images, names, truth, settings, limits={}, masks={}
        ),
    }


@dataclass(frozen=True, slots=True)
class BlackBoxes:
    """GLAS and its rivals on one image, `points` search points a side deciding the number of forwards."""

    scene: Scene
    points: int

    @property
    def forwards(self) -> int:
        return Glas(self.points).forwards

    def bare(self, step: int, layout: torch.memory_format) -> None:
        batch = self.scene.inputs[:1].expand(step, -1, -1, -1).contiguous(memory_format=layout)
        with torch.no_grad():
            for start in range(0, self.forwards, step):
                self.scene.classifier.module(batch[: min(step, self.forwards - start)])

    def glas(self, step: int) -> Tensor:
        classifier, image = self.scene.classifier, self.scene.inputs[0]
        settings, dark = Glas(self.points), classifier.preprocess.dark.to(image)
        with capturing(classifier) as capture:
            looks = look(lambda x: classifier.probabilities(capture.logits(x)), image, dark, settings, step=step)
        return fuse(looks, torch.arange(_CLASSES, device=image.device), (224, 224), settings)

    def occlusion(self, step: int) -> Tensor:
        from captum.attr import Occlusion

        side = round((self.forwards - 1) ** 0.5)  # windows a side; captum forwards the whole image once more
        stride = -(-(224 - 32) // (side - 1))
        with torch.no_grad():
            found: Tensor = Occlusion(self.scene.classifier.module).attribute(
                self.scene.inputs[:1],
                sliding_window_shapes=(3, 32, 32),
                strides=(3, stride, stride),
                target=0,
                perturbations_per_eval=step,
            )
        return found

    def rise(self, step: int, layout: torch.memory_format) -> Tensor:
        """Random coarse masks, upsampled with a random shift; the map is their mean, weighted by the probability."""
        image = self.scene.inputs[0]
        generator = torch.Generator().manual_seed(0)
        total = torch.zeros(_CLASSES, 224, 224, device=image.device)
        with torch.no_grad():
            for start in range(0, self.forwards, step):
                count = min(step, self.forwards - start)
                cells = (torch.rand(count, 1, 8, 8, generator=generator) < 0.5).float().to(image)
                whole = interpolate(cells, (256, 256), mode="bilinear")
                down, right = (int(torch.randint(0, 32, (), generator=generator)) for _ in range(2))
                masks = whole[..., down : down + 224, right : right + 224]
                answers = self.scene.classifier.module((image * masks).contiguous(memory_format=layout)).softmax(1)
                total += torch.einsum("nc,nhw->chw", answers, masks[:, 0])
        return total / self.forwards


def black_boxes(scene: Scene, points: int) -> Contest:
    """Each at its own best batch size and, where it has a choice, layout, found beforehand on fewer forwards."""
    trial, whole = BlackBoxes(scene, 7), BlackBoxes(scene, points)
    pairs = [(step, layout) for step in _STEPS for layout in _LAYOUTS]
    best, layout = _fastest(pairs, lambda pair: trial.bare(*pair))
    ours = _fastest(_STEPS, trial.glas)
    theirs = _fastest(_STEPS, trial.occlusion)
    print(f"best batch: bare {best} ({layout}), GLAS {ours}, occlusion {theirs}; {whole.forwards} forwards an image")
    return {
        "bare forwards": lambda: whole.bare(best, layout),
        "GLAS, all classes": lambda: whole.glas(ours),
        "RISE, all classes": lambda: whole.rise(best, layout),
        "captum occlusion, one class": lambda: whole.occlusion(theirs),
    }


def score_cams(scene: Scene) -> Contest:
    batch, module = scene.inputs[:1], scene.classifier.module
    step = 32

    def ours() -> Tensor:
        with capturing(scene.classifier) as capture:
            forward = capture(batch)
            head = Head.recognise(module, forward, "float32")
            probes = Probes(scene.classifier, capture, batch, forward, ["one"], step=step)
            every = torch.arange(_CLASSES, device=batch.device)
            ((_, gradient),) = head.gradients(forward, every, 1)
            evidence = Evidence(forward, head, gradient, every, every < 0, probes)
            return ScoreCam().weights(evidence).saliency(forward.activation)

    def pytorch_grad_cam() -> object:
        from pytorch_grad_cam import ScoreCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        with ScoreCAM(module, [module.get_submodule("layer4")]) as camera:
            camera.batch_size = step
            return camera(batch, [ClassifierOutputTarget(0)])

    def torchcam() -> object:
        from torchcam.methods import ScoreCAM

        with ScoreCAM(module, module.get_submodule("layer4"), batch_size=step) as camera, torch.no_grad():
            logits = module(batch)
            return camera(0, logits)

    return {
        "Score-CAM, all classes": ours,
        "pytorch-grad-cam, one class": pytorch_grad_cam,
        "torchcam, one class": torchcam,
    }


def _fastest(choices: Sequence[Choice], run: Callable[[Choice], object]) -> Choice:
    """The choice with the shortest run of a few, tried in turns: one disturbance does not decide."""
    shortest = dict.fromkeys(choices, float("inf"))
    for _ in range(_TRIALS):
        for choice in choices:
            shortest[choice] = min(shortest[choice], _seconds(partial(run, choice)))
    return min(choices, key=shortest.__getitem__)


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def contend(title: str, contest: Contest, rounds: int) -> None:
    """Run the contestants in turns and print each one's ratio to the first."""
    for run in contest.values():
        _seconds(run)
    times: dict[str, list[float]] = {name: [] for name in contest}
    for _ in range(rounds):
        for name, run in contest.items():
            times[name].append(_seconds(run))
    first = next(iter(times))
    print(f"\n{title}")
    for name, taken in times.items():
        ratio = statistics.median(one / base for one, base in zip(taken, times[first], strict=True))
        print(f"{name:<32}{statistics.median(taken):>10.3f} s{ratio:>10.3f} x", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.explainers", description=__doc__)
    parser.add_argument("--model", default="resnet50", choices=("resnet18", "resnet50"))
    parser.add_argument("--score-model", default="resnet18", choices=("resnet18", "resnet50"))
    parser.add_argument("--images", type=int, default=32, help="of the gradient CAMs")
    parser.add_argument("--points", type=int, default=15, help="k of GLAS")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("cams", "glas", "score"))
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"torch {torch.__version__}, {device.type}, {torch.get_num_threads()} thread(s), {options.rounds} rounds")
    scene = Scene.of(options.model, device, options.images)
    if options.only in (None, "cams"):
        contend(f"{options.model}, {options.images} images, {_CLASSES} classes", nine_cams(scene), options.rounds)
    if options.only in (None, "glas"):
        contend(f"{options.model}, one image, k = {options.points}", black_boxes(scene, options.points), options.rounds)
    if options.only in (None, "score"):
        score = Scene.of(options.score_model, device, 1)
        contend(f"{options.score_model}, one image, Score-CAM", score_cams(score), options.rounds)


if __name__ == "__main__":
    main()
