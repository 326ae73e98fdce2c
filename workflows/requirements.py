"""What methods need of a model, and models of a configuration: refused before anything starts, with what would work."""

from collections.abc import Iterable
from importlib.util import find_spec

import torch

from storage.errors import ConfigurationError, ModelError
from tasks.cams.names import GRADIENT_METHODS, PROBABILITY_METHODS, MethodName
from tasks.capture import capturing
from tasks.classifier import Classifier
from workflows.black_boxes import black_box
from workflows.configuration import Configuration, Server
from workflows.models import ModelDescription

_PACKAGES = {"occlusion": ("captum",), "lime": ("captum", "sklearn")}


def check_model(configuration: Configuration, classifier: Classifier, description: ModelDescription) -> None:
    """What the model, tried once, does not support. Raises ConfigurationError."""
    bases = configuration.explain.bases
    _check_sides(configuration, description)
    _check_head(bases, description)
    _check_requirements(bases, classifier)


def _check_requirements(bases: Iterable[str], classifier: Classifier) -> None:
    for base in bases:
        missing = [package for package in _PACKAGES.get(base, ()) if find_spec(package) is None]
        if missing:
            raise ConfigurationError(
                f"explain.methods: {base} needs {' and '.join(missing)}, not installed here: "
                "pip install 'lucency[baselines]', on every node of a cluster too. rise and glas need nothing more."
            )
    differentiated = [base for base in bases if base in GRADIENT_METHODS]
    if differentiated and not _has_input_gradient(classifier):
        raise ConfigurationError(
            f"explain.methods: {differentiated[0]} needs the gradient of the logits with respect to the input, and "
            "this model gives none. occlusion, rise, lime and glas ask for probabilities alone and work here."
        )


def _has_input_gradient(classifier: Classifier) -> bool:
    shape = (1, classifier.preprocess.channels, *classifier.preprocess.size)
    inputs = torch.zeros(shape, device=classifier.device, requires_grad=True)
    with capturing(classifier) as capture:
        try:
            torch.autograd.grad(capture.differentiable(inputs).sum(), inputs)
        except (ModelError, RuntimeError):
            return False
    return True


def check_before(configuration: Configuration) -> None:
    """What can be known before the model is fetched. Of one that only answers nothing but answers may be asked.

    Raises ConfigurationError.
    """
    model, words = configuration.model, black_box(configuration.model.source)
    if "infidelity" in configuration.measures.include and configuration.explain.precision != "float32":
        raise ConfigurationError(
            f"measures.include: infidelity looks at how logits change under noise of {configuration.measures.noise:g}, "
            f"which {configuration.explain.precision} rounds away. Choose `explain.precision: float32`."
        )
    if "m-cam" in configuration.explain.bases and configuration.explain.memory.file is None:
        check_labels(configuration)
    served = model.source.startswith(("http:", "https:"))
    if model.server != Server() and not served:
        raise ConfigurationError(
            "model.server: only a served model (https://HOST/v2/models/NAME) is asked over a network."
        )
    if words is None:
        if model.output != "logits" or model.output_name is not None:
            raise ConfigurationError(
                "model.output: only a model that cannot be looked into (torchscript, onnx, http) may answer other than "
                "one tensor of logits. Let this one's code return them."
            )
        if model.layer == "none":
            _refuse_features(configuration.explain.methods)
        return
    if model.output_name is not None and not (served or model.source.startswith("onnx:")):
        raise ConfigurationError(f"model.output_name: {words} has one output, and it has no name; leave the key out.")
    if model.layer not in ("auto", "none"):
        raise ConfigurationError(f"model.layer: {words} has no layer that can be looked at; leave the key out.")
    asked = [name for name in configuration.explain.methods if MethodName.parse(name).base not in PROBABILITY_METHODS]
    if asked:
        raise ConfigurationError(
            f"explain.methods: {', '.join(asked)}: this needs the model's features or gradients, and {words} only "
            f"answers. Methods that need answers alone: {', '.join(PROBABILITY_METHODS)}; s-glas and its like put them "
            "on a common scale."
        )
    if configuration.explain.precision != "float32" and not model.source.startswith("torchscript:"):
        raise ConfigurationError(f"explain.precision: {words} computes in its own precision; leave the key out.")


def check_labels(configuration: Configuration) -> None:
    """Refuse to fit a memory without labels, or to a split that they do not name. Raises ConfigurationError."""
    labels, split = configuration.archive.labels, configuration.explain.memory.split
    if labels is None:
        raise ConfigurationError(
            "explain.memory: m-cam's memory learns from labels, and archive.labels is not there. Give labels, or "
            "explain.memory.file with a memory fitted before."
        )
    if split is not None and labels.split is None:
        raise ConfigurationError(
            f"explain.memory.split: {split!r} is a split of the label file, and archive.labels.split does not name the "
            "column. Name it, or set explain.memory.split to null: the memory then learns from the audited images."
        )


def _refuse_features(methods: Iterable[str]) -> None:
    without = PROBABILITY_METHODS + GRADIENT_METHODS
    asked = [name for name in methods if MethodName.parse(name).base not in without]
    if asked:
        raise ConfigurationError(
            f"explain.methods: {', '.join(asked)}: this needs a target layer, and `model.layer: none` leaves it out. "
            f"Methods that need none: {', '.join(without)}."
        )


def _check_head(bases: Iterable[str], model: ModelDescription) -> None:
    if model.head == "autograd" and "cam" in bases:
        raise ConfigurationError(
            "explain.methods: cam needs a model whose target layer is followed by global average pooling and one "
            f"linear layer, and the head behind {model.layer!r} is another. grad-cam, which differs from it by a "
            "factor only, works here."
        )


def _check_sides(configuration: Configuration, model: ModelDescription) -> None:
    images, sides = configuration.archive.images, len(model.input)
    if (images == "volumes") != (sides == 3):
        raise ConfigurationError(
            f"archive.images: {images}; the model's input has {sides} sides. Volumes go with model.input of [depth, "
            "height, width], frames with [height, width]."
        )
    if configuration.explain.atlas is not None and sides != 3:
        raise ConfigurationError("explain.atlas: its regions are parts of volumes, and this model sees images.")
