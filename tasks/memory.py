"""The bias-reducing memory of M-CAM: what the features of each class look like, in slots (Kim and Ro 2021).

A query, the mean of the target layer's activation over its cells, addresses keys; the address mixes values; values and
query together give logits of their own. Beside keys and values lie the activations that go with them. All of it is
learned from a classifier that stays as it is: no gradient reaches it.

Axes: b image, n slot, f feature, t class; q [B,F], A [B,F,h,w] or [B,F,d,h,w].
"""

from dataclasses import dataclass
from math import isfinite, prod
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, kl_div, mse_loss, normalize

from storage.errors import ModelError

_SHORT = 0.02


@dataclass(frozen=True, slots=True)
class Losses:
    """The terms of the objective (eq. 2-5), means over the batch."""

    classifier: Tensor
    sparse: Tensor
    address: Tensor

    @property
    def total(self) -> Tensor:
        return self.classifier + self.sparse + self.address


class Memory(nn.Module):
    """N slots of keys K [N,F], values V [N,F] and spatial features S [N,F,*cells], with their own small classifier.

    radius: r, of which the printed formula has 1; addresses are then all but uniform, because a cosine is at most 1 and
    112 slots share what e and 1/e leave. cells: sides of the activation.
    """

    keys: nn.Parameter
    values: nn.Parameter
    spatial: nn.Parameter

    def __init__(
        self, features: int, cells: tuple[int, ...], classes: int, *, slots: int = 112, radius: float = 16.0
    ) -> None:
        if slots < 1:
            raise ValueError(f"slots: expected at least 1, got {slots}")
        if not (isfinite(radius) and radius > 0):
            raise ValueError(f"radius: expected a number above 0, got {radius}")
        super().__init__()
        self.radius = radius
        # Keys and spatial features count by their directions alone. Short ones turn within some steps of Adam; of the
        # length of noise they would keep the direction that they began with.
        self.keys = nn.Parameter(_SHORT * torch.randn(slots, features))
        self.values = nn.Parameter(torch.randn(slots, features) / features**0.5)
        self.spatial = nn.Parameter(_SHORT * torch.randn(slots, features, *cells))
        self.encoder = nn.Linear(classes, features)  # G, of labels
        self.classifier = nn.Linear(2 * features, classes)  # fc, of cat(v, q)

    @classmethod
    def seeded(cls, seed: int, features: int, cells: tuple[int, ...], classes: int, **options: float) -> Self:
        """Untrained, and the same for the same seed. options: slots and radius."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(features, cells, classes, **options)  # type: ignore[arg-type]  # slots is a whole number

    @property
    def slots(self) -> int:
        return len(self.keys)

    @property
    def classes(self) -> int:
        return self.classifier.out_features

    def address(self, query: Tensor) -> Tensor:
        """p [B,N] of queries [B,F]: softmax of r cos(q, K) (eq. 1)."""
        return self._similarities(query, self.keys).softmax(1)

    def read(self, address: Tensor) -> Tensor:
        """v [B,F] = p V."""
        return address @ self.values

    def forward(self, query: Tensor) -> Tensor:
        """z [B,C] of queries [B,F]: the memory's own answer, fc(cat(v, q))."""
        return self._answer(self.read(self.address(query)), query)

    def losses(self, activation: Tensor, labels: Tensor) -> Losses:
        """The objective for activations A, which need no gradient, and labels [B,C], 1 where the class is there.

        What the label's value v' addresses is what the query, and the activation as a whole, are to address too: the
        label's address is a target there, which these terms do not move. The value that the query reads does not move
        the values. Raises ModelError for activations that are not numbers or of another shape.
        """
        self._check(activation)
        activation = activation.detach()
        query = pooled(activation)
        by_key = self._similarities(query, self.keys)
        by_space = self._similarities(activation.flatten(1), self.spatial.flatten(1))
        told = self._similarities(self.encoder(labels), self.values).softmax(1)
        read, read_told = by_key.softmax(1) @ self.values.detach(), self.read(told)
        wanted = told.detach()
        answers = torch.stack([self._answer(value, query) for value in (read_told, read)])
        return Losses(
            classifier=2 * binary_cross_entropy_with_logits(answers, labels.expand_as(answers)),
            sparse=mse_loss(read, read_told),
            address=kl_div(by_space.log_softmax(1), wanted, reduction="batchmean")
            + kl_div(by_key.log_softmax(1), wanted, reduction="batchmean"),
        )

    def query_gradient(self, query: Tensor, classes: Tensor) -> Tensor:
        """dz_c/dq of classes [T] or [B,T] for queries [B,F]: [B,T,F], in closed form, through the address too."""
        classes = classes.expand(len(query), -1)
        directions, keys = normalize(query, dim=1), normalize(self.keys, dim=1)
        cosines = directions @ keys.T
        address = (self.radius * cosines).softmax(1)
        of_value, of_query = self._halves()
        gains = self.values @ of_value.T  # what each slot's value adds to each logit [N,C]
        mean = (address @ gains).gather(1, classes)[..., None]
        pull = address[:, None] * (gains.T[classes] - mean)  # [B,T,N]
        turned = pull @ keys - (pull * cosines[:, None]).sum(2, keepdim=True) * directions[:, None]
        length = query.norm(dim=1)[:, None, None]
        through: Tensor = self.radius * turned / length.where(length > 0, torch.ones_like(length))
        return of_query[classes] + through

    def likeness(self, activation: Tensor) -> Tensor:
        """tau [B,N,F]: the cosine over cells of each feature of A and of each slot's S (eq. 6), 0 where one is 0."""
        own, stored = (normalize(values.flatten(2), dim=2) for values in (activation, self.spatial))
        return torch.einsum("bfx,nfx->bnf", own, stored)

    def stored_maps(self, slot: int) -> Tensor:
        """What a slot keeps, as each class reads it [C,*cells], signed: the sum over features of S, weighted by dz_c/dq
        at the slot's own key. Its unit is arbitrary: of S, training decides the direction and not the length."""
        every = torch.arange(self.classes, device=self.keys.device)
        weights = self.query_gradient(self.keys[slot : slot + 1], every)[0]
        return torch.einsum("cf,f...->c...", weights, self.spatial[slot])

    def _similarities(self, queries: Tensor, stored: Tensor) -> Tensor:
        cosines: Tensor = normalize(queries, dim=1) @ normalize(stored, dim=1).T
        return cosines * self.radius

    def _answer(self, value: Tensor, query: Tensor) -> Tensor:
        answer: Tensor = self.classifier(torch.cat([value, query], 1))
        return answer

    def _halves(self) -> tuple[Tensor, Tensor]:
        """The classifier's weights [C,F] of the value and of the query."""
        features = self.keys.shape[1]
        return self.classifier.weight[:, :features], self.classifier.weight[:, features:]

    def value_weights(self) -> Tensor:
        """W_v [C,F], what the value adds to the logits."""
        return self._halves()[0]

    def _check(self, activation: Tensor) -> None:
        if activation.shape[1:] != self.spatial.shape[1:]:
            raise ModelError(
                f"the memory holds features of {list(self.spatial.shape[1:])}, and is given "
                f"{list(activation.shape[1:])}: was it fitted for another model, layer or input size?"
            )
        if not bool(torch.isfinite(activation).all()):
            raise ModelError("the memory cannot learn from activations that are not numbers (NaN or infinite).")


def pooled(activation: Tensor) -> Tensor:
    """q [B,F], the mean of A over its cells."""
    return activation.flatten(2).mean(2)


def spatial_bytes(features: int, cells: tuple[int, ...], slots: int) -> int:
    """What S holds, by far the most of a memory: float32."""
    return 4 * slots * features * prod(cells)
