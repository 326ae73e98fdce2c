"""Accuracy with some of the features at the target layer, the others set to 0 (IFA, section on feature masking)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tasks.cams.heads import Head
from tasks.probes import Probes
from tasks.profile import predicted_classes

WAYS = ("principal", "non-principal", "principal.union", "non-principal.union")
"""Logit c under the principal features of class c, under the others, under those of any class, under those of none."""


def masked_logits(head: Head, probes: Probes, masks: Tensor, images: Sequence[int]) -> dict[str, Tensor]:
    """z [b,C] of some of the batch's images under masks [F,C] bool, in each of WAYS.

    Of a head that is known to be linear no forward at all; of others, for each image, a pass of the head for every mask
    that differs, at most 2C + 2, and one of the trunk for `Probes.step` of them.
    """
    union = masks.any(1, keepdim=True).expand_as(masks)
    kept = dict(zip(WAYS, (masks, ~masks, union, ~union), strict=True))
    if head.closed is not None and head.closed.explains(probes.forward, head.tolerance):
        return {way: head.closed.keeping(probes.forward, keep)[list(images)] for way, keep in kept.items()}
    distinct, which = torch.cat(list(kept.values()), 1).T.unique(dim=0, return_inverse=True)
    logits, classes = probes.keeping(distinct, images), torch.arange(masks.shape[1], device=masks.device)
    return {way: logits[:, rows, classes] for way, rows in zip(WAYS, which.chunk(len(WAYS)), strict=True)}


def correct(logits: Tensor, positive: Tensor, task: str) -> Tensor:
    """How right z [B,C] is about which classes are there, positive [B,C] bool -> [B] float64.

    One label: 1 where the largest logit is that of a class that is there, else 0. Multi-label: the share of classes
    decided right, at a probability of one half.
    """
    predicted = predicted_classes(logits, task)
    if task == "multi-label":
        return (predicted == positive).double().mean(1)
    return (predicted & positive).any(1).double()
