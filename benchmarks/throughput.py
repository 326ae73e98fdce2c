"""`python -m benchmarks.throughput`: what explaining costs, as ratios to a bare forward of the same images.

In one process, on the same decoded images, in turns: (a) the bare forward, (b) the profile pass, (c) the maps pass
for the predicted class and for every class, (d) torchcam and pytorch-grad-cam mapping every class, the way their
documentation does. All include preprocessing. A ratio is taken within a round, and the median over rounds is shown:
to the forward as everyone writes it, and to one with its batch in channels-last layout, which the passes choose for
themselves on CPUs. The libraries walk the classes one by one, so with many classes they are timed on a few and
scaled up, which is said in the table. Images are seeded noise and weights are random: neither changes the work.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor

from tasks.cams.names import MethodName
from tasks.classifier import Classifier
from tasks.explain import ExplainSettings, explain_shard
from tasks.preprocess import Preprocess
from tasks.profile import ProfileSettings, Truth, profile_shard
from tasks.reductions.profile import Profile

_TARGET_LAYERS = {"resnet50": "layer4", "resnet18": "layer4", "densenet121": "features.norm5"}
_FORWARD, _BEST_FORWARD = "forward", "forward, channels last"


@dataclass(frozen=True, slots=True)
class Setting:
    """One column of the comparison."""

    model: str
    classes: int
    images: int
    batch: int
    device: torch.device
    looped: Mapping[str, int]  # library -> classes it is timed on; 0 leaves it out


@dataclass(frozen=True, slots=True)
class Contest:
    """Everything the contestants share."""

    classifier: Classifier
    images: list[NDArray[Any]]
    names: list[str]
    truth: Truth
    profile: Profile
    setting: Setting

    @property
    def looped(self) -> Mapping[str, int]:
        """How many classes each library is timed on."""
        return self.setting.looped

    @classmethod
    def prepare(cls, setting: Setting) -> "Contest":
        torch.manual_seed(0)
        random = np.random.default_rng(0)
        module = getattr(torchvision.models, setting.model)(num_classes=setting.classes)
        classifier = Classifier(
            module=module.eval().requires_grad_(False).to(setting.device),
            layer=_TARGET_LAYERS[setting.model],
            classes=tuple(f"class {index}" for index in range(setting.classes)),
            task="one-label",
            preprocess=Preprocess(256, 224, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            device=setting.device,
        )
        images = [random.integers(0, 256, (320, 288, 3), np.uint8) for _ in range(setting.images)]
        names = [str(number) for number in range(setting.images)]
        positive = np.eye(setting.classes, dtype=bool)[random.integers(0, setting.classes, setting.images)]
        truth = Truth(np.ones(setting.images, bool), positive)
        profile = profile_shard(
            classifier, images, names, truth, ProfileSettings(("grad-cam",), batch=setting.batch)
        ).profile
        return cls(classifier, images, names, truth, profile, setting)

    def batches(self) -> Iterator[Tensor]:
        for start in range(0, len(self.images), self.setting.batch):
            yield self.classifier.preprocess(self.images[start : start + self.setting.batch], self.setting.device)


def bare_forward(contest: Contest, layout: torch.memory_format = torch.contiguous_format) -> None:
    with torch.no_grad():
        for batch in contest.batches():
            contest.classifier.module(batch.contiguous(memory_format=layout))


def profile_pass(contest: Contest) -> None:
    settings = ProfileSettings(("grad-cam",), batch=contest.setting.batch)
    profile_shard(contest.classifier, contest.images, contest.names, contest.truth, settings)


def maps_pass(contest: Contest, targets: str, columns: int) -> None:
    methods = (MethodName("grad-cam"), MethodName("grad-cam", scaled=True))
    settings = ExplainSettings(methods, targets, columns, batch=contest.setting.batch)
    limits = {"grad-cam": contest.profile.limits("grad-cam")}
    explain_shard(contest.classifier, contest.images, contest.names, contest.truth, settings, limits=limits, masks={})


def torchcam_loop(contest: Contest) -> None:
    """One forward with a graph, then a backward through the head for each class."""
    from torchcam.methods import GradCAM

    with _trainable(contest.classifier.module), GradCAM(contest.classifier.module, contest.classifier.layer) as camera:
        for batch in contest.batches():
            logits = contest.classifier.module(batch)
            for index in range(contest.looped["torchcam"]):
                camera(index, logits, retain_graph=True)


def pytorch_grad_cam_loop(contest: Contest) -> None:
    """A forward and a backward for each class."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    module = contest.classifier.module
    with _trainable(module), GradCAM(module, [module.get_submodule(str(contest.classifier.layer))]) as camera:
        for batch in contest.batches():
            for index in range(contest.looped["pytorch-grad-cam"]):
                camera(batch, [ClassifierOutputTarget(index)] * len(batch))


@contextmanager
def _trainable(module: torch.nn.Module) -> Iterator[None]:
    """Both libraries find their gradients only in a graph through the trunk."""
    module.requires_grad_(True)
    try:
        yield
    finally:
        module.requires_grad_(False)
        module.zero_grad(set_to_none=True)


def contestants(setting: Setting) -> dict[str, Callable[[Contest], None]]:
    runs: dict[str, Callable[[Contest], None]] = {
        _FORWARD: bare_forward,
        _BEST_FORWARD: partial(bare_forward, layout=torch.channels_last),
        "profile": profile_pass,
        "maps of the predicted class": partial(maps_pass, targets="predicted", columns=1),
        "maps of all classes": partial(maps_pass, targets="all", columns=setting.classes),
        "torchcam": torchcam_loop,
        "pytorch-grad-cam": pytorch_grad_cam_loop,
    }
    return {name: run for name, run in runs.items() if setting.looped.get(name, 1)}


def seconds(run: Callable[[Contest], None], contest: Contest, clock: Callable[[], float]) -> float:
    start = clock()
    run(contest)
    if contest.setting.device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def measured(contest: Contest, rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, a library's scaled up to all classes."""
    runs = contestants(contest.setting)
    for run in runs.values():  # once unmeasured: allocators, kernels, caches
        seconds(run, contest, clock)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run, contest, clock))
    for name, timed in contest.looped.items():
        if name in times:
            factor = contest.setting.classes / timed
            # torchcam runs one forward for all classes: only what comes on top of it grows with them.
            shared = times[_FORWARD] if name == "torchcam" else [0.0] * rounds
            times[name] = [once + (whole - once) * factor for once, whole in zip(shared, times[name], strict=True)]
    return times


def show(setting: Setting, times: Mapping[str, Sequence[float]]) -> None:
    def ratio(name: str, to: str) -> float:
        return statistics.median(one / other for one, other in zip(times[name], times[to], strict=True))

    print(f"\n{setting.model}, {setting.classes} classes, {setting.images} images, batch {setting.batch}")
    print(f"{'':<30}{'images/s':>10}{'x forward':>12}{'x channels last':>18}")
    for name, taken in times.items():
        timed = setting.looped.get(name, setting.classes)
        remark = f"  timed on {timed} classes, scaled up" if timed < setting.classes else ""
        rate = setting.images / statistics.median(taken)
        print(f"{name:<30}{rate:>10.2f}{ratio(name, _FORWARD):>12.3f}{ratio(name, _BEST_FORWARD):>18.3f}{remark}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput")
    parser.add_argument("--quick", action="store_true", help="few images and rounds, resnet18: does it run?")
    parser.add_argument("--model", choices=sorted(_TARGET_LAYERS), default="resnet50")
    parser.add_argument("--classes", type=int, nargs="+", default=[14, 1000])
    parser.add_argument("--images", type=int, default=None, help="default 64 on a CPU, 2048 on a GPU")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: processor seconds of this process, for a machine that others use too; takes one thread",
    )
    parser.add_argument("--ours", action="store_true", help="leave the libraries out")
    options = parser.parse_args()
    threads = 1 if options.clock == "cpu" else options.threads
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = options.images or (2048 if device.type == "cuda" else 64)
    model, rounds = ("resnet18", 2) if options.quick else (options.model, options.rounds)
    print(f"torch {torch.__version__}, {device.type}, {threads} thread(s), {options.clock} clock, {rounds} rounds")
    for classes in options.classes:
        most = 0 if options.ours else classes
        looped = {"torchcam": min(most, 20), "pytorch-grad-cam": min(most, 2)}
        setting = Setting(model, classes, 8 if options.quick else images, options.batch, device, looped)
        show(setting, measured(Contest.prepare(setting), rounds, clock))


if __name__ == "__main__":
    main()
