"""A memory that is really fitted to a synthetic scene, and how it serves the scene's classifier."""

import torch

from tasks.fitting import Figures, Fitting, Recipe
from tasks.memory import pooled
from tasks.reductions.memory_use import MemoryUse
from tasks.slots import find_slots, noise_cosines
from tests.workflows.synthetic_scene import Scene
from workflows.fitted import About, FittedMemory, from_bytes, to_bytes

_TASK = "one-label"
_HELD_OUT = 8


def fit_memory(scene: Scene, names: tuple[str, ...], epochs: int) -> tuple[FittedMemory, MemoryUse]:
    """Fitted to the classes that the scene's classifier answers; after one epoch it knows next to nothing."""
    activation = torch.from_numpy(scene.activations).float()
    logits = torch.from_numpy(scene.logits()).float()
    predicted = torch.nn.functional.one_hot(logits.argmax(1), len(names))
    shape = tuple(activation.shape[1:])
    recipe = Recipe(slots=8, epochs=epochs, batch=8, rate=0.01, patience=epochs)
    fitting = Fitting(recipe, shape, len(names), "cpu")
    while not fitting.done:
        losses = []
        for places in torch.arange(_HELD_OUT, len(activation)).split(recipe.batch):
            batch = activation[places], predicted[places].float()
            losses.append(float(fitting.step(*batch, images=len(places)).total))
        judged = (activation[:_HELD_OUT], predicted[:_HELD_OUT].float(), logits[:_HELD_OUT])
        fitting.end_epoch(sum(losses) / len(losses), Figures.of(fitting.memory, *judged, _TASK))
    memory = fitting.best()
    about = About(
        model_sha256="ab" * 32,
        preprocess="cd" * 32,
        layer="layer4",
        input=(224, 224),
        shape=shape,
        classes=names,
        task=_TASK,
        recipe=recipe,
        learned=len(activation) - _HELD_OUT,
        held_out=_HELD_OUT,
        best_epoch=fitting.best_epoch,
        history=tuple(fitting.history),
    )
    with torch.no_grad():
        query = pooled(activation)
        noise = noise_cosines([str(image) for image in range(len(query))], shape[0], memory.slots)
        recalled = torch.nn.functional.one_hot(memory(query).argmax(1), len(names)).bool()
        use = MemoryUse.of(find_slots(memory, query, noise), memory.slots, predicted.bool(), recalled, _TASK)
    return from_bytes(to_bytes(memory, about)), use
