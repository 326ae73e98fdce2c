"""Training a classifier: the steps, the figures of an epoch, which weights are kept, when it ends.

Everything is decided by the course and the images: workers that share a batch only add up what each finds for its part.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from storage.errors import ModelError
from tasks.fitting import Together, alone, on_cpu
from tasks.losses import Loss
from tasks.measures.performance import Ranking


@dataclass(frozen=True, slots=True)
class Course:
    """How a classifier is trained. batch: images a step; micro: images a forward on one worker; rate: of Adam, at
    first; decay: of weights; patience: epochs without a better criterion before the end, None for no such end;
    criterion: auroc, average precision or loss, on the validation images; precision: of the steps, float32, or bf16
    for mixed; mixed: shards whose images are shuffled together."""

    epochs: int = 50
    batch: int = 512
    micro: int = 64
    rate: float = 4e-4
    decay: float = 1e-6
    patience: int | None = 10
    criterion: str = "auroc"
    precision: str = "float32"
    mixed: int = 4
    seed: int = 0


class Training:
    """A classifier while it is trained: it, Adam's moments, the best weights so far, and the figures of every epoch.

    Each epoch: `begin_epoch`, a `step` for every batch, `average` where there are several workers, `answers` to the
    validation images, `end_epoch`. history: a row for each epoch done. Same course, same batches, same kind of device:
    same weights, also from an epoch's `to_state` on, in a Training made alike; on a GPU as far as its kernels are
    deterministic.
    """

    def __init__(self, module: nn.Module, loss: Loss, course: Course, device: torch.device) -> None:
        self.module, self.loss, self.course, self.device = module.to(device), loss.to(device), course, device
        self.history: list[dict[str, float]] = []
        self._learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._optimiser = torch.optim.Adam(self._learning, lr=course.rate, weight_decay=course.decay)
        self._rates = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimiser, course.epochs)
        self._best = on_cpu(module.state_dict())

    def begin_epoch(self, rank: int) -> None:
        """What is left to chance, as dropout, follows from the seed, the epoch and the worker's rank from here on."""
        drawn = np.random.SeedSequence([self.course.seed, len(self.history), rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(drawn[0]))

    def step(self, micros: Iterable[tuple[Tensor, Tensor]], *, images: int, together: Together = alone) -> float:
        """One step on a batch of `images`, of which this worker has some, or none. Returns the batch's loss.

        micros: images [b,...] and targets [b,C] on the device, part by part; their gradients add up. Raises ModelError
        where the loss or its gradient is no number, before any weight has changed.
        """
        self.module.train()
        for parameter in self._learning:
            parameter.grad = torch.zeros_like(parameter)
        told = torch.zeros(1, device=self.device)
        for pictures, targets in micros:
            share = self.loss(self._logits(pictures), targets) * (len(pictures) / images)
            share.backward()
            told += share.detach()
        gradients = [parameter.grad for parameter in self._learning if parameter.grad is not None]
        if together is not alone:
            whole = together(torch.cat([told, *(gradient.flatten() for gradient in gradients)]))
            told, rest = whole[:1], whole[1:].split([gradient.numel() for gradient in gradients])
            for gradient, summed in zip(gradients, rest, strict=True):
                gradient.copy_(summed.view_as(gradient))
        norm = nn.utils.get_total_norm(gradients)
        self._insist_on_numbers({"loss": float(told), "norm of its gradient": float(norm)})
        self._optimiser.step()
        return float(told)

    def average(self, together: Together, workers: int) -> None:
        """Give all workers the mean of what each has: batch norms have seen different images.

        To be done after an epoch's last step, so that the weights that are judged are those that are kept.
        """
        tensors = list(self.module.state_dict().values())
        # In float64 the mean of equal float32 values is that value, to the bit.
        whole = together(torch.cat([tensor.flatten().double() for tensor in tensors])) / workers
        for tensor, mean in zip(tensors, whole.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_((mean if tensor.is_floating_point() else mean.round()).view_as(tensor))

    def answers(self, pictures: Tensor) -> Tensor:
        """Logits [b,C] float32 of images [b,...] on the device, as they are when nothing is learned.

        Whatever the precision of the steps is: in bf16 many logits are equal, and ties would choose the epoch.
        """
        self.module.eval()
        with torch.no_grad():
            logits: Tensor = self.module(pictures)
        return logits.float()

    def end_epoch(self, learned: float, logits: Tensor, positive: Tensor) -> None:
        """Keep the epoch's figures, and the weights if no earlier ones were as good by the criterion.

        learned: mean loss of the steps, each at the weights it began with; logits [M,C] and labels [M,C] bool: of all
        validation images. AUROC and average precision are means over the classes that have both labels, NaN if none
        has. Raises ModelError where a loss, or the criterion, is no number.
        """
        judged = float(self.loss(logits.to(self.device), positive.to(self.device)))
        self._insist_on_numbers({"loss": learned, "loss on the validation images": judged})
        told = {"train.loss": learned, "rate": float(self._rates.get_last_lr()[0]), "validation.loss": judged}
        auroc, precision = _macro(logits.cpu().numpy(), positive.cpu().numpy())
        told |= {"validation.auroc": auroc, "validation.average precision": precision}
        if not isfinite(told[self._criterion]):
            raise ModelError(
                f"training.criterion is {self.course.criterion}, and no class has both positive and negative images "
                "among those that the training is judged by. Choose `loss`, or change `split`."
            )
        self.history.append(told)
        if self.best_epoch == len(self.history) - 1:
            self._best = on_cpu(self.module.state_dict())
        self._rates.step()

    @property
    def best_epoch(self) -> int:
        """The epoch, from 0, whose weights are kept: the best by the criterion, of equals the first."""
        sign = 1 if self.course.criterion == "loss" else -1
        return int(np.argmin([sign * row[self._criterion] for row in self.history]))

    @property
    def done(self) -> bool:
        """Whether all epochs are done, or as many as `patience` without a better criterion."""
        epochs, patience = len(self.history), self.course.patience
        waited = epochs - 1 - self.best_epoch if epochs else 0
        return epochs >= self.course.epochs or (patience is not None and waited >= patience)

    def best(self) -> dict[str, Tensor]:
        """The state dict of the best epoch, on the CPU."""
        return dict(self._best)

    def to_state(self) -> dict[str, Any]:
        """Tensors, on the CPU, and plain numbers, from which `resume` goes on, also on another device."""
        return {
            "module": on_cpu(self.module.state_dict()),
            "optimiser": on_cpu(self._optimiser.state_dict()),
            "rates": self._rates.state_dict(),
            "best": self._best,
            "history": list(self.history),
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from where another Training, of the same course, gave this state."""
        self.module.load_state_dict(state["module"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._rates.load_state_dict(state["rates"])
        self._best, self.history = state["best"], list(state["history"])

    @property
    def _criterion(self) -> str:
        return f"validation.{self.course.criterion}"

    def _logits(self, pictures: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.course.precision == "bf16"):
            logits: Tensor = self.module(pictures)
        return logits

    def _insist_on_numbers(self, figures: dict[str, float]) -> None:
        if not all(map(isfinite, figures.values())):
            told = ", ".join(f"{name} {value:g}" for name, value in figures.items())
            raise ModelError(
                f"the training diverged in epoch {len(self.history) + 1}: {told}. "
                f"A smaller training.rate than {self.course.rate:g} may hold it."
            )


def _macro(logits: NDArray[np.float32], positive: NDArray[np.bool_]) -> tuple[float, float]:
    """AUROC and average precision, means over the classes [C] that have both labels; NaN if none has."""
    one = np.ones((1, len(positive)), np.int64)
    each = [Ranking.of(logits[:, c], positive[:, c]).measure(one) for c in range(positive.shape[1])]
    found = np.array([(auroc[0], precision[0]) for auroc, precision in each])
    found = found[~np.isnan(found).any(1)]
    return (float(found[:, 0].mean()), float(found[:, 1].mean())) if len(found) else (nan, nan)
