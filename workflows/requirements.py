"""What a method needs beyond a forward: packages, or a gradient through the whole model."""

from collections.abc import Iterable
from importlib.util import find_spec

import torch

from storage.errors import ConfigurationError, ModelError
from tasks.cams.names import GRADIENT_METHODS, MethodName
from tasks.capture import capturing
from tasks.classifier import Classifier

_PACKAGES = {"occlusion": ("captum",), "lime": ("captum", "sklearn")}


def check_requirements(methods: Iterable[str], classifier: Classifier) -> None:
    """Raise ConfigurationError for a method that lacks something, with what works without it."""
    bases = tuple(dict.fromkeys(MethodName.parse(name).base for name in methods))
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
