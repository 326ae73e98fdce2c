"""Models that answer in probabilities: the logits that give those probabilities back."""

import torch
from torch import Tensor

from storage.errors import ModelError

_SLACK = 1e-2  # probabilities in half precision, or rounded to a few digits


def logits_of(probabilities: Tensor, task: str) -> Tensor:
    """z [B,C] float32 whose softmax, of multi-label tasks whose sigmoid, is p [B,C].

    One-label: log p, the logits whose exponentials add up to 1. Multi-label: log p - log(1 - p). p is kept away from 0
    and 1 by what float32 can tell from them, so logits are finite; a NaN stays one. Raises ModelError for numbers that
    are no probabilities.
    """
    if probabilities.ndim != 2:
        raise ModelError(f"the model puts out {list(probabilities.shape)}; expected probabilities [batch, classes].")
    p = probabilities.float()
    _check(p, task)
    limits = torch.finfo(torch.float32)
    if task == "multi-label":
        p = p.clamp(limits.tiny, 1 - limits.eps / 2)
        return p.log() - (-p).log1p()
    return p.clamp(limits.tiny, 1.0).log()


def are_shares(answers: Tensor) -> bool:
    """Whether each image's answers [B,C] are of several classes, from 0 to 1, and add up to 1, as no logits do."""
    if answers.shape[1] < 2 or bool(((answers < 0) | (answers > 1)).any()):
        return False
    return bool(((answers.sum(1) - 1).abs() <= _SLACK).all())


def _check(p: Tensor, task: str) -> None:
    """NaN passes: that is one image's fault, and found out later."""
    if bool(((p < -_SLACK) | (p > 1 + _SLACK)).any()):
        raise ModelError(
            "model.output: expected probabilities, and the model answers numbers below 0 or above 1. "
            "Set `model.output: logits` if they are logits."
        )
    if task != "multi-label" and bool(((p.sum(1) - 1).abs() > _SLACK).any()):
        raise ModelError(
            "model.output: expected the probabilities of an image's classes to add up to 1, and the model's do not. "
            "Is it a multi-label model (`model.task: multi-label`), or does it answer logits (`model.output: logits`)?"
        )
