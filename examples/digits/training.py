"""Trains the digits classifier in under two minutes on two cores."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from examples.digits.canvases import Digits, Floats, draw
from examples.digits.digits_model import factory, preprocess

_BATCH = 64
_RATE = 4e-3


def train(digits: Digits, *, epochs: int, seed: int, say: Callable[[str], None]) -> nn.Module:
    """Each epoch draws every digit anew at another place, so the network cannot learn the places."""
    values = torch.from_numpy(digits.values)

    def drawn(epoch: int) -> tuple[Tensor, Tensor]:
        return normalised(draw(digits, seed=seed + 1 + epoch).pixels), values

    return fit(factory, drawn, cross_entropy, images=len(values), epochs=epochs, seed=seed, say=say)


def fit(
    factory: Callable[[], nn.Module],
    drawn: Callable[[int], tuple[Tensor, Tensor]],
    criterion: Callable[[Tensor, Tensor], Tensor],
    *,
    images: int,
    epochs: int,
    seed: int,
    say: Callable[[str], None],
) -> nn.Module:
    """A network fitted to the inputs and targets that are drawn for each epoch. criterion: loss of logits, targets."""
    with torch.random.fork_rng(devices=[]), _one_thread():
        torch.manual_seed(seed)
        module = factory().train()
        optimiser = torch.optim.AdamW(module.parameters(), weight_decay=1e-3)
        batches = -(-images // _BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=epochs * batches)
        for epoch in range(epochs):
            inputs, targets = drawn(epoch)
            total = 0.0
            for chosen in torch.randperm(len(inputs)).split(_BATCH):
                loss = criterion(module(inputs[chosen]), targets[chosen])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                total += loss.item() * len(chosen)
            say(f"epoch {epoch + 1}/{epochs}: loss {total / images:.3f}")
    return module.eval()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order, so the weights do not depend on the number of cores; for a network this small no slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def normalised(pixels: Floats) -> Tensor:
    """Canvases [N,64,64] in [0,1] -> the network's input [N,1,64,64]."""
    return (torch.from_numpy(pixels)[:, None] - preprocess.mean[0]) / preprocess.std[0]


def accuracy(module: nn.Module, pixels: Floats, digits: Digits) -> float:
    with torch.inference_mode():
        predicted = module(normalised(pixels)).argmax(1)
    return float((predicted == torch.from_numpy(digits.values)).float().mean())
