"""Which slot of a memory a class hangs on: the one whose loss, noise in the place of its key, costs most of its logit.

The paper replaces one key after the other by noise and asks the memory anew (Kim and Ro 2021, algorithm 1). Only the
length of one term of the softmax changes, so that the answer is known in closed form for all images, slots and classes;
and of the noise only its cosine with the query matters, which can be drawn by itself.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tasks.memory import Memory


@dataclass(frozen=True, slots=True)
class Found:
    """slot [B,C]: the slot of each image and class. drop [B,C]: what its loss costs of the logit, the mean over draws.

    positive [B,C]: whether that is anything at all; steady [B,C]: share of the draws that find the same slot.
    """

    slot: Tensor
    drop: Tensor
    positive: Tensor
    steady: Tensor


def find_slots(memory: Memory, query: Tensor, cosines: Tensor) -> Found:
    """Search for queries [B,F] under noise with these cosines [B,N,D] to them, D draws for each slot."""
    with torch.no_grad():
        # Slots come last, where a maximum over them is quick.
        shares = _shares(memory, query, cosines).transpose(1, 2).contiguous()  # [B,D,N]
        losses = _losses(memory, query).transpose(1, 2).contiguous()  # [B,C,N]
        drop, slot = (shares.mean(1)[:, None] * losses).max(2)
        highest = torch.stack([(share[:, None] * losses).amax(2) for share in shares.unbind(1)], 2)  # [B,C,D]
        own = shares.gather(2, slot[:, None].expand(-1, shares.shape[1], -1)).transpose(1, 2)
        steady = own * losses.gather(2, slot[..., None]) >= highest
    return Found(slot, drop, drop > 0, steady.float().mean(2))


def drops(memory: Memory, query: Tensor, cosines: Tensor) -> Tensor:
    """z_c - z_c with noise in the place of a slot's key [B,N,C], the mean over draws."""
    with torch.no_grad():
        return _shares(memory, query, cosines).mean(2)[:, :, None] * _losses(memory, query)


def noise_cosines(names: Sequence[str], features: int, slots: int, draws: int = 16) -> Tensor:
    """Cosines [B,N,D] between a query and Gaussian noise of as many dimensions, for images of these names.

    Whatever the query is, the cosine is distributed like g / sqrt(g^2 + h), g normal and h chi-square of the other
    dimensions. Drawn from a seed of the image's name alone, in the order of the slots.
    """
    drawn = np.empty((len(names), slots, draws))
    for place, name in enumerate(names):
        seed = int.from_bytes(hashlib.sha256(f"{name}|slots".encode()).digest()[:16], "little")
        random = np.random.Generator(np.random.PCG64(seed))
        along = random.standard_normal((slots, draws))
        beside = random.chisquare(features - 1, (slots, draws)) if features > 1 else 0.0
        drawn[place] = along / np.sqrt(along**2 + beside)
    return torch.from_numpy(drawn).float()


def _shares(memory: Memory, query: Tensor, cosines: Tensor) -> Tensor:
    """delta / (Z + delta) [B,N,D]: how much of the address the noise takes more, or less, than the key did."""
    similarity = normalize(query, dim=1) @ normalize(memory.keys, dim=1).T
    # Every exponent less r: what the largest cosine gives is 1, and shares do not change.
    terms = (memory.radius * (similarity - 1)).exp()
    change = (memory.radius * (cosines.to(query) - 1)).exp() - terms[..., None]
    return change / (terms.sum(1)[:, None, None] + change)


def _losses(memory: Memory, query: Tensor) -> Tensor:
    """(v - V_n) W_v[c] [B,N,C]: what a logit loses for a share of 1 that goes over to the slot."""
    gains = memory.values @ memory.value_weights().T
    return (memory.address(query) @ gains)[:, None] - gains
