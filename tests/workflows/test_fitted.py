"""A fitted memory as a file: what comes back, and which models it is refused for."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from storage.errors import ConfigurationError, ModelError
from tasks.fitting import Recipe
from tasks.memory import Memory
from tasks.preprocess import Preprocess
from workflows.configuration import Tracking, check
from workflows.fitted import About, FittedMemory, fetch_memory, from_bytes, preprocess_digest, to_bytes
from workflows.models import ModelDescription

_MODEL = ModelDescription(4, (2, 3), ("a", "b"), "c0ffee" * 10, "trunk", (16, 24), "one-label", "gap-linear")
_PREPROCESS = Preprocess(None, (16, 24), 1, (0.5,), (0.25,))
_ABOUT = About(
    model_sha256=_MODEL.weights_sha256,
    preprocess=preprocess_digest(_PREPROCESS),
    layer="trunk",
    input=(16, 24),
    shape=(4, 2, 3),
    classes=("a", "b"),
    task="one-label",
    recipe=Recipe(slots=5, radius=7.0),
    learned=9,
    held_out=2,
    best_epoch=1,
    history=({"train.loss": 2.0, "held-out.loss": 3.0}, {"train.loss": 1.0, "held-out.loss": 2.5}),
)


def fitted() -> bytes:
    return to_bytes(Memory.seeded(1, 4, (2, 3), 2, slots=5, radius=7.0), _ABOUT)


def test_a_file_gives_back_the_memory_and_what_it_is_of() -> None:
    found = from_bytes(fitted())
    before = Memory.seeded(1, 4, (2, 3), 2, slots=5, radius=7.0)
    query = torch.randn(3, 4)
    assert found.about == _ABOUT
    assert torch.equal(found.memory(query), before(query))
    assert not any(parameter.requires_grad for parameter in found.memory.parameters())


def test_the_same_memory_has_the_same_name_and_another_has_another() -> None:
    other = to_bytes(Memory.seeded(2, 4, (2, 3), 2, slots=5, radius=7.0), _ABOUT)
    names = [from_bytes(data).name for data in (fitted(), fitted(), other)]
    assert names[0] == names[1] != names[2]
    assert names[0].startswith("memory-")


def test_its_bytes_do_not_tell_how_it_came_to_be() -> None:
    """Of a fit that was resumed, equal names in the figures are not one object."""
    resumed = tuple({"".join(list(name)): value for name, value in row.items()} for row in _ABOUT.history)
    memory = Memory.seeded(1, 4, (2, 3), 2, slots=5, radius=7.0)
    assert to_bytes(memory, replace(_ABOUT, history=resumed)) == fitted()


class _Trap:
    """What opens it with pickle creates the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_it_is_opened_without_pickle(tmp_path: Path) -> None:
    tree = torch.load(io.BytesIO(fitted()), weights_only=True)
    torch.save(tree | {"more": _Trap(tmp_path / "sprung")}, tmp_path / "memory.pt")
    with pytest.raises(ModelError, match=r"explain\.memory\.file: not a memory that `lucency fit-memory` wrote"):
        fetch_memory(str(tmp_path / "memory.pt"), Tracking())
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("data", [b"", b"not a file of tensors", fitted()[:-2000]])
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ModelError, match=r"explain\.memory\.file: not a memory"):
        from_bytes(data)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"weights_sha256": "deadbeef" * 8}, "weights: c0ffeec0ffee, and the model has deadbeefdead"),
        ({"layer": "layer3"}, "layer: trunk, and the model has layer3"),
        ({"input": (32, 48)}, r"input: \[16, 24\], and the model has \[32, 48\]"),
        ({"native": (4, 6)}, r"activation: \[4, 2, 3\], and the model has \[4, 4, 6\]"),
        ({"classes": ("b", "a")}, r"classes: \['a', 'b'\], and the model has \['b', 'a'\]"),
        ({"task": "multi-label"}, "task: one-label, and the model has multi-label"),
    ],
)
def test_a_memory_of_another_model_is_refused_with_what_differs(change: dict[str, object], told: str) -> None:
    found: FittedMemory = from_bytes(fitted())
    found.refuse_other(_MODEL, _PREPROCESS)
    with pytest.raises(ConfigurationError, match=told):
        found.refuse_other(replace(_MODEL, **change), _PREPROCESS)


def test_a_memory_of_images_prepared_otherwise_is_refused() -> None:
    brighter = replace(_PREPROCESS, mean=(0.4,))
    with pytest.raises(ConfigurationError, match=r"preprocessing \(model\.input\): \w+, and the model has \w+"):
        from_bytes(fitted()).refuse_other(_MODEL, brighter)


@pytest.mark.parametrize(
    ("explain", "told"),
    [
        (
            {"methods": ["m-cam"], "memory": {"file": "m.pt", "slots": 9}},
            "`file` names a memory that is fitted: leave out slots",
        ),
        ({"methods": ["grad-cam"], "memory": {"file": "m.pt"}}, r"memory\.file: only m-cam has a memory"),
        ({"methods": ["m-cam"], "memory": {"rate": float("inf")}}, r"explain\.memory\.rate: .* finite number"),
        ({"methods": ["m-cam"], "memory": {"radius": float("inf")}}, r"explain\.memory\.radius: .* finite number"),
    ],
)
def test_what_contradicts_itself_is_refused_at_the_door(explain: dict[str, object], told: str) -> None:
    tree = {"run": "run", "archive": {"location": "a"}, "model": {"source": "torchvision:resnet50"}}
    with pytest.raises(ConfigurationError, match=told):
        check({**tree, "explain": explain})
