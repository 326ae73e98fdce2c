"""Classifiers with random weights from a fixed seed, and images to go with them."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from tasks.baselines import InputGradient, LimeMap, MeaningfulPerturbation, OcclusionMap, RiseMap
from tasks.cams.evidence import Evidence
from tasks.cams.heads import Head
from tasks.cams.mcam import MCam
from tasks.cams.rules import RULES, IsCam, Rule, SmoothGradCamPlusPlus, SsCam
from tasks.capture import capturing
from tasks.classifier import Classifier
from tasks.glas import Glas, Recursive
from tasks.layers import resolve_layer
from tasks.memory import Memory
from tasks.methods import GlasMap, Method, RglasMap
from tasks.preprocess import Preprocess
from tasks.probes import Probes
from tasks.profile import Truth

CPU = torch.device("cpu")
# Every method, with few draws and search points.
QUICK: dict[str, Rule] = dict(RULES) | {
    "smooth-grad-cam++": SmoothGradCamPlusPlus(2),
    "ss-cam": SsCam(2),
    "is-cam": IsCam(2),
}
QUICK_METHODS: dict[str, Method] = {
    **QUICK,
    "m-cam": MCam(Memory.seeded(3, 12, (4, 4), 5, slots=6)),  # for the features of `small`
    "glas": GlasMap("fusion", Glas(2)),
    "glas-light": GlasMap("light", Glas(2)),
    "glas-shadow": GlasMap("shadow", Glas(2)),
    "rglas": RglasMap(Recursive(Glas(2), iterations=2)),
    "occlusion": OcclusionMap(4, 2),
    "rise": RiseMap(8, 5),
    "lime": LimeMap(12, 4),
    "gradient": InputGradient(),
    "meaningful-perturbation": MeaningfulPerturbation(4, 3),
}


class TwoLayers(nn.Module):
    """A trunk of two convolutions, and a head that is given."""

    def __init__(self, head: nn.Module, features: int = 12) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, features, 3, stride=2, padding=1)
        )
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(images))


def pooled_head(classes: int = 5, features: int = 12) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes))


def in_place_relu_head(classes: int = 5, features: int = 12) -> nn.Module:
    return nn.Sequential(nn.ReLU(inplace=True), *pooled_head(classes, features))


def deep_head(classes: int = 5, features: int = 12) -> nn.Module:
    """Convolution, ReLU, then a linear layer on every cell: no closed form."""
    convolution = nn.Conv2d(features, 6, 3, padding=1)
    return nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, classes))


def classifier(
    module: nn.Module,
    layer: str,
    *,
    classes: int = 5,
    size: int = 16,
    task: str = "one-label",
    device: torch.device = CPU,
    reshape: Any = None,
) -> Classifier:
    return Classifier(
        module=module.eval().requires_grad_(False).to(device),
        layer=layer,
        classes=tuple(f"class {index}" for index in range(classes)),
        task=task,
        preprocess=Preprocess(None, (size, size), 3, (0.5,) * 3, (0.25,) * 3),
        device=device,
        reshape=reshape,
    )


def small(head: nn.Module | None = None, *, layer: str = "trunk", seed: int = 0, **options: Any) -> Classifier:
    """TwoLayers with a pooled head by default: 12 features of 4 x 4 cells, 5 classes."""
    torch.manual_seed(seed)
    return classifier(TwoLayers(head or pooled_head()), layer, **options)


def from_torchvision(name: str, *, classes: int = 5, size: int = 64, device: torch.device = CPU) -> Classifier:
    """Random weights, the layer `auto` takes, and batch normalisation and heads that do something.

    "narrow densenet" is a DenseNet of 62 features and "short resnet" a ResNet of a block a stage, for what takes a
    forward for each feature.
    """
    torch.manual_seed(0)
    options: dict[str, Any] = {"image_size": size} if name.startswith("vit") else {}
    if name == "narrow densenet":
        make, options = torchvision.models.DenseNet, {"growth_rate": 8, "block_config": (2, 2, 4, 4)}
    elif name == "short resnet":
        make, options = torchvision.models.ResNet, {"block": BasicBlock, "layers": [1, 1, 1, 1]}
    else:
        make = getattr(torchvision.models, name)
    module = make(num_classes=classes, **options).eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.3)
        if isinstance(part, nn.Linear) and not part.weight.any():  # torchvision starts ViT's head at zero
            nn.init.normal_(part.weight, std=0.1)
    target = resolve_layer(module, "auto", torch.zeros(1, 3, size, size))
    return classifier(module, target.name, classes=classes, size=size, device=device, reshape=target.reshape)


def pictures(count: int, *, size: int = 16, seed: int = 0) -> list[NDArray[np.uint8]]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, (size, size, 3), np.uint8) for _ in range(count)]


def some_truth(count: int, classes: int = 5, *, seed: int = 0) -> Truth:
    """Several labels an image, every fourth image unlabelled."""
    random = np.random.default_rng(seed)
    return Truth(np.arange(count) % 4 != 3, random.random((count, classes)) < 0.4)


def names(images: list[NDArray[Any]]) -> list[str]:
    """A name for each image that goes with it into any shard, as an id does."""
    return [hashlib.sha256(image.tobytes()).hexdigest() for image in images]


@contextmanager
def evidence_of(
    model: Classifier, images: list[NDArray[np.uint8]], targets: Tensor, head: Head | None = None, step: int = 4
) -> Iterator[Evidence]:
    """What rules see of the images, for classes targets [T] or [B,T]."""
    with capturing(model) as capture:
        batch = pixels(model, images)
        forward = capture(batch)
        head = head or Head.recognise(model.module, forward, "float32")
        ((_, gradient),) = head.gradients(forward, targets, 1)
        yield Evidence(
            forward,
            head,
            gradient,
            targets,
            targets < 0,
            Probes(model, capture, batch, forward, names(images), step=step),
        )


def rounding(model: Classifier, images: Tensor) -> float:
    """How far two float32 evaluations of the logits may lie apart, whatever batch and instructions they take.

    A sum of n products loses about sqrt(n) u of its terms' size, u = 2^-24, where errors have random signs (Higham and
    Mary, SIAM J. Sci. Comput. 41, 2019). Of deep networks the logits' own size stands for their terms' here, with a
    factor of 4 for that and for unlucky signs; two evaluations lose it each.
    """
    weights = [part.weight for part in model.module.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    products = sum(weight[0].numel() for weight in weights)
    with torch.no_grad():
        return 4 * 2 * products**0.5 * 2**-24 * model.module(images).abs().max().item()


def pixels(model: Classifier, images: list[NDArray[np.uint8]]) -> Tensor:
    return model.preprocess(images, model.device)
