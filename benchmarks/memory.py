"""`python -m benchmarks.memory`: M-CAM's slot search against the printed algorithm, and its maps against Grad-CAM's.

In one process, in turns, on the same inputs; a ratio is taken within a round, and the median over rounds is shown.
(a) The slots of 64 images and 14 classes in a memory of 112 slots, 2048 features. The printed loop takes one class at a
time and draws noise once for each image, class and slot; a kinder one asks the memory for all classes together; ours
averages 16 draws for each. (b) Maps of 14 classes in the target layer's resolution, from one forward of ResNet-50: the
weights and the mixing of M-CAM with what its memory says, against Grad-CAM alone. Inputs are seeded noise and weights
are random: neither changes the work.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence

import torch
import torchvision
from torch import Tensor
from torch.nn.functional import cosine_similarity

from benchmarks.explainers import contend
from tasks.cams.evidence import Evidence
from tasks.cams.heads import Head
from tasks.cams.mcam import MCam
from tasks.cams.rules import GradCam
from tasks.capture import capturing
from tasks.classifier import Classifier
from tasks.memory import Memory
from tasks.preprocess import Preprocess
from tasks.probes import Probes
from tasks.slots import find_slots, noise_cosines

_IMAGES, _SLOTS, _CLASSES, _FEATURES, _CELLS = 64, 112, 14, 2048, (7, 7)


def searches(memory: Memory, query: Tensor, names: list[str]) -> Mapping[str, Callable[[], object]]:
    def ours() -> object:
        return find_slots(memory, query, noise_cosines(names, _FEATURES, _SLOTS))

    return {
        "closed form, 16 draws": ours,
        "loop over slots, 1 draw": lambda: printed(memory, query, [list(range(_CLASSES))]),
        "printed loop, 1 draw": lambda: printed(memory, query, [[target] for target in range(_CLASSES)]),
    }


def printed(memory: Memory, queries: Tensor, groups: Sequence[list[int]]) -> Tensor:
    """Algorithm 1, image by image, slot by slot, and for each group of classes anew."""
    found = torch.zeros(len(queries), _CLASSES, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for place, query in enumerate(queries):
            answer = memory(query[None])[0]
            for group in groups:
                highest, columns = torch.zeros(len(group)), torch.tensor(group)
                for slot in range(_SLOTS):
                    keys = memory.keys.clone()
                    keys[slot] = torch.randn(_FEATURES, generator=generator)
                    address = (memory.radius * cosine_similarity(query[None], keys)).softmax(0)
                    drop = (answer - memory.classifier(torch.cat([address @ memory.values, query])))[group]
                    found[place, columns[drop > highest]] = slot
                    highest = torch.maximum(highest, drop)
    return found


def maps(memory: Memory, images: int) -> Mapping[str, Callable[[], object]]:
    module = torchvision.models.resnet50(num_classes=_CLASSES).eval().requires_grad_(False)
    preprocess = Preprocess(None, 224, 3, (0.5,) * 3, (0.25,) * 3)
    device = torch.device("cpu")
    labels = tuple(f"class {index}" for index in range(_CLASSES))
    classifier = Classifier(module, "layer4", labels, "one-label", preprocess, device)
    inputs, every = torch.randn(images, 3, 224, 224), torch.arange(_CLASSES)
    names = [str(place) for place in range(images)]

    def drawn(rule: GradCam | MCam) -> object:
        with capturing(classifier) as capture:
            forward = capture(inputs)
            head = Head.recognise(module, forward, "float32")
            probes = Probes(classifier, capture, inputs, forward, names, step=images)
            ((_, gradient),) = head.gradients(forward, every, 1)
            evidence = Evidence(forward, head, gradient, every, every < 0, probes)
            return rule.weights(evidence).saliency(forward.activation)

    return {"Grad-CAM maps": lambda: drawn(GradCam()), "M-CAM maps": lambda: drawn(MCam(memory))}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=32, help="of the maps")
    options = parser.parse_args()
    torch.manual_seed(0)
    memory = Memory.seeded(0, _FEATURES, _CELLS, _CLASSES, slots=_SLOTS).requires_grad_(False)
    names = [str(place) for place in range(_IMAGES)]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {options.rounds} rounds")
    title = f"slots of {_IMAGES} images, {_SLOTS} slots, {_CLASSES} classes"
    contend(title, searches(memory, torch.rand(_IMAGES, _FEATURES), names), options.rounds)
    contend(f"maps of {options.images} images, {_CLASSES} classes", maps(memory, options.images), options.rounds)


if __name__ == "__main__":
    main()
