"""What a CAM rule may look at: one batch, some class columns, and what further forwards tell."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.cams.heads import Head
from tasks.cams.weights import Dense, Separable, Weights
from tasks.capture import Forward
from tasks.probes import Masking, Probes


@dataclass(frozen=True, slots=True)
class Evidence:
    """gradient: dz_c/dA of classes, [T] for every image or [B,T]. absent: which of them stand for no class."""

    forward: Forward
    head: Head
    gradient: Weights
    classes: Tensor
    absent: Tensor
    probes: Probes

    @property
    def activation(self) -> Tensor:
        """A [B,F,h,w], of volumes [B,F,d,h,w]."""
        return self.forward.activation

    @property
    def cells(self) -> int:
        """h w, or d h w"""
        return self.activation[0, 0].numel()

    @property
    def logits(self) -> Tensor:
        """z [B,T] of the classes."""
        return self._columns(self.forward.logits[:, None])[..., 0]

    def for_every_class(self, weights: Tensor) -> Separable:
        """Weights [B,F] that are the same for each class column."""
        by_cell = weights[(..., *[None] * (self.activation.ndim - 2))]
        return Separable(weights.new_ones(self.classes.shape[-1], weights.shape[1]), by_cell)

    def for_all_cells(self, weights: Tensor) -> Dense:
        """Weights [B,T,F] that are the same for each cell."""
        return Dense(weights[(..., *[None] * (self.activation.ndim - 2))])

    def noisy_gradients(self, draws: int, std: float) -> list[Weights]:
        """The gradient under noise on the input; of a head whose gradient is constant, that one."""
        if self.head.constant and isinstance(self.gradient, Separable):
            return [self.gradient]
        gradients: list[Weights] = []
        for forward in self.probes.noisy(draws, std):
            parts = [part for _, part in self.head.gradients(forward, self.classes, 1)]
            gradients.append(parts[0] if len(parts) == 1 else Dense(torch.cat([p.dense().values for p in parts], 1)))
        if len({type(gradient) for gradient in gradients}) > 1:  # the closed form does not explain every draw
            every = self.classes.expand(len(self.activation), -1)
            return [Dense(forward.gradient(every)) for forward in self.probes.noisy(draws, std)]
        return gradients

    def drops_without_feature(self) -> Tensor:
        """z_c - z_c without the feature [B,T,F]: of a linear head in closed form, otherwise one head pass a feature."""
        if isinstance(self.gradient, Separable):
            return (
                self.gradient.totals(self.activation)
                .dense()
                .values.flatten(3)[..., 0]
                .expand(len(self.activation), -1, -1)
            )
        return self.logits[..., None] - self._columns(self.probes.ablated())

    def masked_logits(self, masking: Masking) -> Tensor:
        """z [B,T,F] of the classes under the mask of each feature."""
        return self._columns(self.probes.masked(masking))

    def _columns(self, by_feature: Tensor) -> Tensor:
        """[B,F,C] of all classes -> [B,T,F] of these."""
        classes = self.classes.expand(len(by_feature), -1)
        chosen = classes[:, None].expand(-1, by_feature.shape[1], -1)
        return torch.gather(by_feature, 2, chosen).transpose(1, 2)
