"""From `model:` in the configuration to a classifier on a device.

The driver fetches everything once (`fetch_model`); a worker needs only the package (`build_classifier`).
"""

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from storage.documents import read_document
from storage.errors import LucencyError, ModelError
from tasks.cams.heads import Head
from tasks.capture import capturing
from tasks.classifier import Classifier
from tasks.layers import resolve_layer
from tasks.preprocess import Preprocess
from workflows import configuration
from workflows.black_boxes import Answering, BlackBox, black_box, how_it_answers, make_black_box
from workflows.exported import load_exported
from workflows.model_sources import (
    Made,
    check_lucency,
    check_torchvision,
    make_network,
    make_pickled,
    make_python,
    published_torchvision,
)
from workflows.registry import fetch_registered
from workflows.weights import load_state_dict, outputs_of, read_state_dict, save_state_dict, weights_digest

_EXAMPLES = 2  # images in a dummy forward: one would not show a batch axis that is fixed
_OWN = 1e-2  # relative; sums in another order differ by less, batch statistics or dropout by more
MODEL_BYTES = 1 << 36
_KINDS = ("torchvision", "lucency", "python", "mlflow", "export", "torchscript", "onnx", "http", "https")
_WHOLE = ("mlflow", "export", "torchscript", "onnx", "http", "https")  # weights and all


@dataclass(frozen=True, slots=True)
class ModelPackage:
    """All a worker needs to build the classifier. Picklable; holds the weights, and no file is read later."""

    source: str  # as in the configuration
    form: str  # of the weights: none | state (tensors by name) | export (.pt2) | pickle (a module) | torchscript | onnx
    weights: bytes | None
    classes: tuple[str, ...] | None
    layer: str
    task: str
    input: configuration.Input
    trust: str
    search_path: tuple[str, ...]  # folders behind sys.path where a factory's module is looked for
    answering: Answering | None = None  # of a black box

    @property
    def digest(self) -> str:
        """SHA-256 of the weights as they travel."""
        return hashlib.sha256(self.weights or b"").hexdigest()


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What a report says about the classifier."""

    features: int  # F
    native: tuple[int, ...]  # sides of the target layer; of a black box 15 each
    classes: tuple[str, ...]
    weights_sha256: str  # of a served model, of what its server says it is
    layer: str | None  # None: a black box
    input: tuple[int, ...]  # H, W the model sees, or D, H, W
    task: str
    head: str  # gap-linear | relu-gap-linear | autograd: how its gradient is had; black-box: it has none
    runtime: str = "torch"  # what answers: torch | TorchScript | ONNX Runtime | served: a name, a version, a platform


def fetch_model(model: configuration.Model, *, folder: str | None, server: str | None = None) -> ModelPackage:
    """Read or download everything the classifier is made of.

    `folder` holds the configuration file, `server` is MLflow's for `mlflow:` sources (none: MLflow's own default).
    Raises ModelError when the source, the weights or the class names cannot be had.
    """
    kind, _, name = model.source.partition(":")
    if kind not in _KINDS or not name:
        raise ModelError(
            f"model.source: {model.source!r}; expected torchvision:NAME, lucency:t-densenet121, "
            "python:module.factory, mlflow:models:/NAME@ALIAS, export:FILE.pt2, torchscript:FILE.pt, onnx:FILE.onnx or "
            "https://HOST/v2/models/NAME."
        )
    if kind in _WHOLE and model.weights is not None:
        raise ModelError(f"model.weights: {kind} brings its own weights; leave the key out.")
    package = ModelPackage(
        source=model.source,
        form="none",
        weights=None,
        classes=_class_names(model.classes),
        layer=model.layer,
        task=model.task,
        input=model.input,
        trust=model.trust,
        search_path=(folder,) if folder else (),
    )
    if black_box(model.source):
        answering = how_it_answers(model)
        data = None if answering.endpoint else _fetched(name, "model.source")
        return replace(package, form=kind if data else "none", weights=data, answering=answering)
    if kind == "mlflow":
        form, data = fetch_registered(name, server=server, trust=model.trust)
        return replace(package, form=form, weights=data)
    if kind == "export":
        return replace(package, form="export", weights=_fetched(name, "model.source"))
    if kind == "torchvision":
        check_torchvision(name)
    if kind == "lucency":
        check_lucency(name)
    if model.weights is None:
        if kind != "python":
            default = ", or DEFAULT" if kind == "torchvision" else ""
            raise ModelError(f"model.weights: missing; expected the file or URL of a state dict{default}.")
        return package
    return _with_state(package, model.weights)


def _with_state(package: ModelPackage, weights: str) -> ModelPackage:
    """Pickles, where they are trusted, are opened here and only here: workers get plain tensors."""
    kind, _, name = package.source.partition(":")
    if weights != "DEFAULT":
        state = read_state_dict(_fetched(weights, "model.weights"), trust=package.trust)
        return replace(package, form="state", weights=save_state_dict(state))
    if kind != "torchvision":
        raise ModelError(f"model.weights: DEFAULT is for torchvision models; {package.source} needs a file or a URL.")
    module, categories = published_torchvision(name)
    return replace(
        package,
        form="state",
        weights=save_state_dict(module.state_dict()),
        classes=package.classes or categories,
    )


def fetch_permuted(package: ModelPackage, location: str) -> ModelPackage:
    """The same model with the weights at `location`, which learned permuted labels; tried once on the CPU.

    Raises ModelError where they cannot be had or do not fit.
    """
    key = "measures.sanity.permuted"
    if package.answering is not None and package.answering.endpoint is not None:
        raise ModelError(f"{key}: a served model has no weights to put others in the place of; leave `permuted` out.")
    data = _fetched(location, key)
    try:
        if package.form in ("none", "state"):
            data = save_state_dict(read_state_dict(data, trust=package.trust))
            package = replace(package, form="state")
        other = replace(package, weights=data)
        build_classifier(other, "cpu")
    except ModelError as error:
        raise ModelError(f"{key}: {error}") from error
    return other


def _fetched(location: str, key: str) -> bytes:
    """A file of the model. Its path, unlike an archive's, tells of no patient, so an error may name it."""
    return read_document(location, key if "://" in location else f"{key}: {location}", limit=MODEL_BYTES)


def _class_names(classes: list[str] | str | None) -> tuple[str, ...] | None:
    if not isinstance(classes, str):
        return None if classes is None else tuple(classes)
    text = _fetched(classes, "model.classes").decode("utf-8-sig")
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not names:
        raise ModelError("model.classes: the file names no class; expected one a line.")
    return names


def build_classifier(package: ModelPackage, device: torch.device | str) -> Classifier:
    """The classifier on `device`: eval mode, frozen, its target layer found and its logits checked.

    Raises ModelError when the parts do not fit together.
    """
    device = torch.device(device)
    made = _make(package, device)
    module = made.module.eval().requires_grad_(False).to(device)
    preprocess = _preprocess(package.input, made.preprocess)
    example = _example(preprocess, device)
    if isinstance(module, BlackBox):
        module.check_input(example)
    logits = _logits(module, example)
    if isinstance(module, BlackBox):
        module.check_answers(logits)
    classes = _matched_classes(package.classes or made.classes, logits.shape[1])
    closed = isinstance(module, BlackBox) or package.layer == "none"
    target = None if closed else resolve_layer(module, package.layer, example)
    return Classifier(
        module=module,
        layer=None if target is None else target.name,
        classes=classes,
        task=package.task,
        preprocess=preprocess,
        device=device,
        reshape=None if target is None else target.reshape,
    )


def _make(package: ModelPackage, device: torch.device) -> Made:
    kind, _, name = package.source.partition(":")
    if package.answering is not None:
        return Made(make_black_box(package.weights, package.answering, package.task, device), None, None)
    if package.form == "export" and package.weights is not None:
        return Made(load_exported(package.weights, device, trust=package.trust), None, None)
    if package.form == "pickle" and package.weights is not None:
        return make_pickled(package.weights, package.search_path)
    named = len(package.classes) if package.classes else None
    if package.weights is None:
        if kind != "python":
            raise ModelError("model.weights: the package holds none.")
        return make_python(name, package.search_path, outputs=named)
    state = read_state_dict(package.weights, trust="weights")
    told = named if kind == "python" else None  # a factory's head need not come last among its weights
    made = make_network(package.source, told or outputs_of(state), package.search_path)
    load_state_dict(made.module, state)
    return made


def _preprocess(given: configuration.Input, known: Preprocess | None) -> Preprocess:
    """The model's own preparation with the configuration's keys over it. Raises ModelError when it is not complete."""
    overrides = {key: value for key, value in given.model_dump().items() if value is not None}
    if isinstance(given.resize, tuple) and given.crop is None:
        overrides["crop"] = None  # height and width are said; the model's own crop would undo them
    for key in ("mean", "std"):
        if key in overrides:
            overrides[key] = tuple(overrides[key])
    if known is None and not {"mean", "std"} <= overrides.keys():
        raise ModelError(
            "model.input: this source does not say what the model wants to see; "
            "expected `mean` and `std` (of pixels in [0, 1]), and `crop` or `resize: [height, width]`."
        )
    try:
        if known is not None:
            return replace(known, **overrides)
        return Preprocess(**{"resize": None, "crop": None, "channels": len(overrides["mean"]), **overrides})
    except ValueError as error:
        raise ModelError(f"model.input: {error}.") from error


def _example(preprocess: Preprocess, device: torch.device) -> Tensor:
    """Seeded noise of the size the model sees, [2,channels,H,W]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(_EXAMPLES, preprocess.channels, *preprocess.size, generator=generator).to(device)


def _logits(module: nn.Module, example: Tensor) -> Tensor:
    """Two dummy forwards; raises ModelError unless they give [B,C] and an image's logits are its own."""
    with torch.no_grad():
        try:
            logits, alone = module(example), module(example[:1])
        except LucencyError:
            raise
        except Exception as error:  # the model's own code, on noise: nothing private in the message
            raise ModelError(
                f"the model refuses a batch of {list(example.shape)} or of one: {type(error).__name__}: {error}\n"
                "Is model.input what it was trained on? Was it exported with a batch axis of any length?"
            ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != example.shape[0]:
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(f"the model puts out {got}; expected logits [{example.shape[0]}, classes].")
    if not torch.allclose(logits[:1], alone, rtol=_OWN, atol=_OWN * float(logits.abs().max())):
        raise ModelError(
            "an image's logits change with the rest of its batch. Was the model exported in training mode? "
            "Call model.eval() before."
        )
    return logits


def _matched_classes(names: tuple[str, ...] | None, outputs: int) -> tuple[str, ...]:
    if names is None:
        return tuple(f"class {index}" for index in range(outputs))
    if len(names) != outputs:
        raise ModelError(f"model.classes: {len(names)} name(s), but the model puts out {outputs} logits.")
    if len(set(names)) < len(names):
        raise ModelError("model.classes: a name is there twice; results a class could not be told apart.")
    return names


def describe(classifier: Classifier) -> ModelDescription:
    """What there is to say about the classifier, from dummy forwards and its weights."""
    example = _example(classifier.preprocess, classifier.device)
    module = classifier.module
    with capturing(classifier) as capture:
        forward = capture(example)
        head = Head.recognise(module, forward, "float32")
    return ModelDescription(
        features=forward.activation.shape[1],
        native=tuple(forward.activation.shape[2:]),
        classes=classifier.classes,
        weights_sha256=module.asked.digest if isinstance(module, BlackBox) else weights_digest(module),
        layer=classifier.layer,
        input=classifier.preprocess.size,
        task=classifier.task,
        head=head.name,
        runtime=module.asked.runtime if isinstance(module, BlackBox) else "torch",
    )
