"""Networks as training begins with them: given weights where they fit, everything else drawn from a seed."""

import hashlib
from dataclasses import dataclass

from torch import nn

from storage.documents import read_document
from storage.errors import ModelError
from workflows.model_sources import check_lucency, check_torchvision, make_network, published_torchvision
from workflows.models import MODEL_BYTES
from workflows.weights import StateDict, load_state_dict, outputs_of, read_state_dict, save_state_dict

_KINDS = ("torchvision", "lucency", "python")
_FULL = "features.transition2.norm."  # behind T-DenseNet's last dense block; the shorter network calls it norm5
_TRUNK = tuple(f"features.{part}." for part in ("conv0", "norm0", "denseblock1", "transition1", "denseblock2"))


@dataclass(frozen=True, slots=True)
class Start:
    """What a network is built from. Picklable; fetched once, and no file is read later."""

    source: str  # torchvision:NAME | lucency:t-densenet121 | python:module.factory
    weights: bytes | None  # plain tensors by the network's own names; None: all is drawn
    search_path: tuple[str, ...]  # folders behind sys.path where a factory's module is looked for

    @property
    def digest(self) -> str:
        """SHA-256 of source and weights."""
        return hashlib.sha256(self.source.encode() + b"\0" + (self.weights or b"")).hexdigest()


def fetch_start(source: str, weights: str | None, *, trust: str, folder: str | None) -> Start:
    """Read or download what training begins with, and try it once.

    `weights` is the file or URL of a state dict, or DEFAULT for torchvision's ImageNet weights; `folder` holds the
    configuration file. Raises ModelError when they cannot be had or are another network's.
    """
    search_path = (folder,) if folder else ()
    try:
        state = _state(source, weights, trust, search_path)
    except ModelError as error:
        raise ModelError(f"models: {source}: {error}") from error
    return Start(source, None if state is None else save_state_dict(state), search_path)


def _state(source: str, weights: str | None, trust: str, search_path: tuple[str, ...]) -> StateDict | None:
    kind, _, name = source.partition(":")
    if kind not in _KINDS or not name:
        raise ModelError("expected torchvision:NAME, lucency:t-densenet121 or python:module.factory.")
    if kind == "torchvision":
        check_torchvision(name)
    if kind == "lucency":
        check_lucency(name)
    if weights is None:
        make_network(source, 1, search_path)
        return None
    if weights == "DEFAULT":
        if kind == "python":
            raise ModelError("weights: DEFAULT is torchvision's; expected a file, a URL or null (drawn).")
        module, _ = published_torchvision("densenet121" if kind == "lucency" else name)
        given: StateDict = module.state_dict()
    else:
        where = f"models: {source}: weights"
        data = read_document(weights, where if "://" in weights else f"{where}: {weights}", limit=MODEL_BYTES)
        given = read_state_dict(data, trust=trust)
    if kind == "lucency" and any(key.startswith(_FULL) for key in given):
        return _of_densenet121(given)
    return _checked(source, given, search_path)


def _checked(source: str, given: StateDict, search_path: tuple[str, ...] = ()) -> StateDict:
    """The tensors by the names that the network gives them. Raises ModelError that lists what does not fit."""
    if source.startswith("python:"):
        return _checked_but_for_shapes(make_network(source, 1, search_path).module, given)
    module = make_network(source, outputs_of(given), search_path).module
    load_state_dict(module, given)
    state: StateDict = module.state_dict()
    return state


def _checked_but_for_shapes(module: nn.Module, given: StateDict) -> StateDict:
    """Of a factory's network nobody knows which tensors are the head: any but all may have another shape."""
    drawn = module.state_dict()
    other = {name: drawn[name] for name in given if name in drawn and given[name].shape != drawn[name].shape}
    load_state_dict(module, given | other if len(other) < len(given) else given)
    return module.state_dict() | {name: given[name] for name in other}


def _of_densenet121(given: StateDict) -> StateDict:
    """T-DenseNet's part of DenseNet-121's weights; there is none for its classifier, which sees other features."""
    full = _checked("torchvision:densenet121", given)
    trunk = {name: tensor for name, tensor in full.items() if name.startswith(_TRUNK)}
    norm = {name.replace(_FULL, "features.norm5."): tensor for name, tensor in full.items() if name.startswith(_FULL)}
    return trunk | norm


def build_start(start: Start, outputs: int, seed: int) -> tuple[nn.Module, tuple[str, ...]]:
    """The network with `outputs` logits on the CPU, and the names of its tensors that have no given weight.

    Those are drawn from `seed` alone: of a network with given weights the head, where theirs has other logits.
    """
    module = make_network(start.source, outputs, start.search_path, seed=seed).module
    drawn = module.state_dict()
    given = {} if start.weights is None else read_state_dict(start.weights, trust="weights")
    fitting = {name: given[name] for name in drawn if name in given and given[name].shape == drawn[name].shape}
    module.load_state_dict(drawn | fitting)
    return module, tuple(name for name in drawn if name not in fitting)
