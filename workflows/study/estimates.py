"""What the trials of a study measured, over seeds and against BCE: pure functions of rows."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal

from tasks.measures.student import mean_interval
from workflows.metrics import EVERY_CLASS
from workflows.study.trials import Trial

REFERENCE = "bce"
AUROC, PRECISION, PROBABILITY = "auroc", "average precision", "probability"
POSITIVES = "probability of positives"
IOBB, IOR, DISJOINT, UNIQUE = "iobb", "ior", "concepts.disjoint", "concepts.unique"
MAPS = "grad-cam"
MEASURES: Mapping[str, str] = {
    **dict.fromkeys((AUROC, PRECISION, PROBABILITY, POSITIVES), "model"),
    **dict.fromkeys((IOBB, IOR), MAPS),
    **dict.fromkeys((DISJOINT, UNIQUE), "model"),
}
"""What is compared, and the method that it is of in metrics.parquet."""


@dataclass(frozen=True, slots=True)
class Value:
    """One number of one trial's audit; low, high: by bootstrap over patients, None where there is none."""

    trial: Trial
    category: str
    measure: str
    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Difference:
    """From BCE, seed by seed. pairs: seeds that both have; low, high: None of a single pair."""

    mean: float
    low: float | None
    high: float | None
    pairs: int


@dataclass(frozen=True, slots=True)
class Key:
    """What is averaged over seeds."""

    task: str
    model: str
    loss: str
    category: str
    measure: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """seeds: that have a finite value, of `asked`; mean: over them, None without any. interval: what low and high are
    over; of one seed they are its own, over patients, and say nothing of training again."""

    mean: float | None
    low: float | None
    high: float | None
    seeds: int
    asked: int
    interval: Literal["seeds", "patients"] | None
    difference: Difference | None  # None: of BCE itself, or no seed that both have


Estimates = Mapping[Key, Estimate]


def estimates(trials: Sequence[Trial], values: Iterable[Value], confidence: float) -> Estimates:
    """One for each task, model and loss asked for, each class that the task's trials know and each measure."""
    seeds: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for trial in trials:
        seeds[trial.task, trial.model, trial.loss].append(trial.seed)
    found: dict[Key, dict[int, Value]] = defaultdict(dict)
    categories: dict[str, dict[str, None]] = defaultdict(lambda: {EVERY_CLASS: None})
    for value in values:
        trial = value.trial
        categories[trial.task][value.category] = None
        if isfinite(value.value):
            found[Key(trial.task, trial.model, trial.loss, value.category, value.measure)][trial.seed] = value
    return {
        key: _estimate(
            found.get(key, {}),
            {} if loss == REFERENCE else found.get(Key(task, model, REFERENCE, category, measure), {}),
            len(asked),
            confidence,
        )
        for (task, model, loss), asked in seeds.items()
        for category in categories[task]
        for measure in MEASURES
        for key in [Key(task, model, loss, category, measure)]
    }


def _estimate(found: Mapping[int, Value], reference: Mapping[int, Value], asked: int, confidence: float) -> Estimate:
    own = [value.value for _, value in sorted(found.items())]
    both = sorted(found.keys() & reference.keys())
    paired = [found[seed].value - reference[seed].value for seed in both]
    difference = Difference(*_over_seeds(paired, confidence), len(paired)) if paired else None
    if len(own) == 1:
        (value,) = found.values()
        over: Literal["patients"] | None = "patients" if None not in (value.low, value.high) else None
        return Estimate(value.value, value.low, value.high, 1, asked, over, difference)
    if not own:
        return Estimate(None, None, None, 0, asked, None, None)
    return Estimate(*_over_seeds(own, confidence), len(own), asked, "seeds", difference)


def _over_seeds(values: Sequence[float], confidence: float) -> tuple[float, float | None, float | None]:
    return (values[0], None, None) if len(values) == 1 else mean_interval(values, confidence)


Verdict = Literal["more", "less", "not told apart", "not known"]


def verdict(difference: Difference | None) -> Verdict:
    """Of a loss against BCE: told apart only where the interval of the paired difference leaves out 0."""
    if difference is None or difference.low is None or difference.high is None:
        return "not known"
    if difference.low > 0:
        return "more"
    return "less" if difference.high < 0 else "not told apart"
