"""A trial of the study: one classifier, trained with one loss from one seed for one task."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Trial:
    """task: multi-label | binary; model: the architecture's name; loss: one of the four."""

    task: str
    model: str
    loss: str
    seed: int

    @property
    def name(self) -> str:
        """Also its folder below `trials/`."""
        return f"{self.task}/{self.model}/{self.loss}/seed-{self.seed}"
