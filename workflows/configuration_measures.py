"""The section `measures` of the configuration."""

from math import ceil
from typing import Literal

from pydantic import Field, model_validator

from tasks.measures.names import GROUPS
from workflows.sections import Positive, Section

_DEFAULT = [group.name for group in GROUPS.values() if group.default]


class Sanity(Section):
    """Whether maps hang on what the model has learned at all: tried on a few images."""

    checks: list[Literal["randomised", "permuted", "repeated"]] = Field(
        ["randomised", "repeated"],
        description="weights drawn anew from the output down; a model fitted to permuted labels; the same input twice",
    )
    images: Positive = Field(16, description="of the archive, drawn with the seed")
    steps: Positive = Field(6, description="stages in which the weights are drawn anew, from the output to the input")
    alike: float = Field(
        0.5, gt=0, le=1, description="rank correlation with the original map from which a method fails the check"
    )
    permuted: str | None = Field(
        None, description="weights of the same model trained on permuted labels, path or URL; needed by `permuted`"
    )

    @model_validator(mode="after")
    def _permuted_has_weights(self) -> "Sanity":
        if ("permuted" in self.checks) != (self.permuted is not None):
            raise ValueError("the check `permuted` and the weights `permuted: FILE` go together")
        return self


class Measures(Section):
    """How explanations are judged."""

    include: list[str] = Field(
        _DEFAULT, description=f"groups of measures, any of {', '.join(GROUPS)}; [] judges nothing"
    )
    masked_images: Positive = Field(
        10_000, description="images, drawn with the seed, on which drop and inverse are measured: a forward a map each"
    )
    perturbed_images: Positive = Field(
        256,
        description="images, drawn with the seed, on which infidelity, sensitivity and curves are measured, and "
        "features where the head is not linear",
    )
    seed: int = Field(0, ge=0, description="of both samples, of the bootstrap and of the sanity checks")
    draws: Positive = Field(10, description="noisy inputs of infidelity and of sensitivity")
    noise: float = Field(0.003, gt=0, description="std of infidelity's noise, in units of the normalised input")
    radius: float = Field(0.02, gt=0, description="of sensitivity's uniform noise, in the same units")
    steps: int = Field(20, ge=2, description="of insertion and deletion: parts in which pixels come and go")
    level: float = Field(0.95, gt=0, lt=1, description="of the pointing game: the blob above this part of the maximum")
    small: float = Field(0.25, gt=0, le=1, description="boxes below this part of the image are small")
    concept: float = Field(
        0.01, gt=0, lt=1, description="q: share of a feature's cells over the archive that count as a concept"
    )
    replicates: int = Field(1000, ge=100, description="of the bootstrap over patients that gives the intervals")
    confidence: float = Field(0.95, gt=0, lt=1, description="of these intervals")
    sanity: Sanity = Sanity()

    @model_validator(mode="after")
    def _known_groups(self) -> "Measures":
        unknown = [name for name in self.include if name not in GROUPS]
        if unknown:
            raise ValueError(f"include: no measures are called {', '.join(unknown)}; expected {', '.join(GROUPS)}")
        if len(set(self.include)) < len(self.include):
            raise ValueError("include: a group is listed twice")
        return self

    @model_validator(mode="after")
    def _replicates_beyond_the_interval(self) -> "Measures":
        least = ceil(2 / (1 - self.confidence) - 1e-6)  # one beyond each end; rounding is no replicate
        if self.replicates < least:
            raise ValueError(
                f"replicates: {self.replicates} leave less than one beyond each end of an interval of confidence "
                f"{self.confidence:g}; expected {least} or more, or a lower confidence"
            )
        return self
