"""What is asked of a synthetic archive, and what follows for one image of it: patient, split, findings, confounder."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

FINDINGS = ("Effusion", "Cardiomegaly", "Nodule", "Opacity")
_MOST = 4  # images of a patient
_BLOCK = 16  # images after which patients begin anew: who is on image n is known without those before


@dataclass(frozen=True, slots=True)
class Company:
    """Of the images with `given`, the share `probability` has `then` too; `given` stands before it in FINDINGS."""

    given: str
    then: str
    probability: float


@dataclass(frozen=True, slots=True)
class Confounder:
    """Something drawn that is no finding: a letter in a corner, or a tube.

    It is there where `finding` is, and absent where it is absent, on the share `train` of the training images and
    `test` of the test images; on the rest it is the other way round. At 0.5 it says nothing about the finding.
    """

    kind: Literal["marker", "tube"]
    finding: str
    train: float = 0.9
    test: float = 0.5

    def __post_init__(self) -> None:
        if not (0 <= self.train <= 1 and 0 <= self.test <= 1):
            raise ValueError(f"agreement: expected two shares in [0, 1], got {self.train:g} and {self.test:g}")


@dataclass(frozen=True, slots=True)
class Settings:
    """Of an archive without end: image n follows from these and n alone.

    side: height and width in pixels; rates: share of images with each of FINDINGS; contrast: range from which the
    contrast of a finding is drawn, 1 is plain to see; test: share of patients who are in the split `test`.
    """

    seed: int = 0
    side: int = 256
    rates: tuple[float, ...] = (0.25,) * len(FINDINGS)
    company: tuple[Company, ...] = (Company("Effusion", "Cardiomegaly", 0.3), Company("Effusion", "Opacity", 0.3))
    contrast: tuple[float, float] = (0.4, 1.0)
    confounder: Confounder | None = None
    test: float = 0.0

    def __post_init__(self) -> None:
        if len(self.rates) != len(FINDINGS) or not all(0 <= rate < 1 for rate in self.rates):
            raise ValueError(f"rates: expected one in [0, 1) for each of {', '.join(FINDINGS)}, got {self.rates}")
        if not 0 <= self.test < 1:
            raise ValueError(f"test: expected a share in [0, 1), got {self.test:g}")
        if not 0 < self.contrast[0] <= self.contrast[1]:
            raise ValueError(f"contrast: expected two numbers above 0, the smaller first, got {self.contrast}")
        if self.side < 32:
            raise ValueError(f"side: expected at least 32 pixels, got {self.side}")
        named = [company.then for company in self.company]
        for company in self.company:
            if FINDINGS.index(company.given) >= FINDINGS.index(company.then) or named.count(company.then) > 1:
                raise ValueError(f"company: {company.then} follows from one finding before it in {', '.join(FINDINGS)}")
            alone = self._alone(company)
            if not 0 <= alone <= 1:
                raise ValueError(
                    f"company: {company.then} with {company.given} at {company.probability:g} leaves the rate "
                    f"{alone:.3g} without it; expected one in [0, 1]. Change the rates or the probability"
                )

    @classmethod
    def imbalanced(cls, negatives: float, **others: Any) -> "Settings":
        """So many images without a finding for each with it."""
        return cls(rates=(1 / (1 + negatives),) * len(FINDINGS), **others)

    @classmethod
    def of_json(cls, document: Mapping[str, Any]) -> "Settings":
        """From what `to_json` gave."""
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in document.items()
        }
        values["company"] = tuple(Company(**company) for company in values["company"])
        values["confounder"] = None if values["confounder"] is None else Confounder(**values["confounder"])
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def random(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *key])

    def rate(self, finding: str, present: Mapping[str, bool]) -> float:
        """Of a finding, once those before it are decided."""
        for company in self.company:
            if company.then == finding:
                return company.probability if present[company.given] else self._alone(company)
        return self.rates[FINDINGS.index(finding)]

    def _alone(self, company: Company) -> float:
        """Rate of `then` where `given` is absent, so that its rate over all images is as asked."""
        given, then = (self.rates[FINDINGS.index(name)] for name in (company.given, company.then))
        return (then - given * company.probability) / (1 - given)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is on an image. patient: block of images and place therein; confounded: the confounder is drawn."""

    number: int
    patient: tuple[int, int]
    split: Literal["train", "test"]
    findings: tuple[str, ...] = field(default=())
    confounded: bool = False


def facts(settings: Settings, number: int) -> Facts:
    """Of image `number`, without drawing it."""
    patient = _patient(settings, number)
    split: Literal["train", "test"] = "test" if settings.random(1, *patient).random() < settings.test else "train"
    random = settings.random(2, number)
    present: dict[str, bool] = {}
    for finding in FINDINGS:
        present[finding] = bool(random.random() < settings.rate(finding, present))
    confounded = False
    if settings.confounder is not None:
        agrees = random.random() < getattr(settings.confounder, split)
        confounded = bool(agrees == present[settings.confounder.finding])
    return Facts(number, patient, split, tuple(name for name in FINDINGS if present[name]), confounded)


def _patient(settings: Settings, number: int) -> tuple[int, int]:
    """A block is shared out among patients of one to four images."""
    block, place = divmod(number, _BLOCK)
    ends = np.cumsum(settings.random(0, block).integers(1, _MOST, _BLOCK, endpoint=True))
    return block, int(np.searchsorted(ends, place, side="right"))
