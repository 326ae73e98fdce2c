"""Fits a memory to activations that are all in main memory, as a run does with those of an archive."""

from collections.abc import Mapping

import torch
from torch import Tensor

from tasks.fitting import Figures, Fitting, Recipe, epoch_batches, held_out
from tasks.memory import Memory


def fit_memory(
    activation: Tensor, labels: Tensor, logits: Tensor, task: str, recipe: Recipe
) -> tuple[Memory, Mapping[str, float]]:
    """Of activations [N,F,h,w], labels [N,C] and the head's logits [N,C]. Each image counts as a patient.

    Returns the memory of the least held-out loss, and that epoch's figures, `epochs` among them: how many were done.
    """
    patients = [str(place) for place in range(len(activation))]
    judging = torch.from_numpy(held_out(patients, labels.numpy() > 0, recipe))
    learned, judged = ([values[part] for values in (activation, labels, logits)] for part in (~judging, judging))
    fitting = Fitting(recipe, tuple(activation.shape[1:]), labels.shape[1], "cpu")
    while not fitting.done:
        total = 0.0
        epoch = len(fitting.history)
        shards = [0] * len(learned[0])
        for batch in epoch_batches(shards, batch=recipe.batch, mixed=recipe.mixed, seed=recipe.seed, epoch=epoch):
            chosen = torch.from_numpy(batch)
            losses = fitting.step(learned[0][chosen], learned[1][chosen], images=len(chosen))
            total += float(losses.total) * len(chosen)
        fitting.end_epoch(total / len(learned[0]), Figures.of(fitting.memory, judged[0], judged[1], judged[2], task))
    return fitting.best(), fitting.history[fitting.best_epoch] | {"epochs": float(len(fitting.history))}
