"""The classifier as every computation sees it: a frozen module, its target layer and its way in."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.preprocess import Preprocess


@dataclass(frozen=True, slots=True)
class Classifier:
    """A model ready to be explained on one device.

    The module is in eval mode, its parameters are frozen and lie on `device`. It maps a batch
    [B,channels,H,W] from `preprocess` to logits [B,C], C being `len(classes)`.
    """

    module: torch.nn.Module
    layer: str | None  # dotted name of the target layer inside module; None: a black box, only its answers are known
    classes: tuple[str, ...]
    task: str  # one-label: softmax over classes | multi-label: a sigmoid each
    preprocess: Preprocess
    device: torch.device
    reshape: Callable[[Tensor], Tensor] | None = None  # the layer's output -> [B,F,h,w]; None: it is that already

    def probabilities(self, logits: Tensor) -> Tensor:
        """p [B,C] of logits [B,C]."""
        return logits.sigmoid() if self.task == "multi-label" else logits.softmax(1)
