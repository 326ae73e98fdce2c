"""What a run's sanity checks found, `sanity.json`: written, read, as metrics and as findings."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import isfinite, isnan, nan
from typing import Any, Self

from storage.objects import Objects
from tasks.sanity import Checked, Likeness, Redrawn, Repeated
from workflows.configuration_measures import Sanity
from workflows.findings import Finding

KEY = "sanity.json"
ROUNDING = 1e-3  # differences below this come with the size of a batch


@dataclass(frozen=True, slots=True)
class SanityResults:
    """alike: rank correlation from which a method fails; images: that were checked; failed: that could not be;
    left_out: what was not checked, and why; the rest as in Checked."""

    alike: float
    images: int
    failed: int
    randomised: tuple[Redrawn, ...]
    permuted: Mapping[str, Likeness]
    repeated: Mapping[str, Repeated]
    left_out: tuple[Mapping[str, Any], ...]

    @classmethod
    def of(cls, checked: Checked, rejected: int, asked: Sanity) -> Self:
        """rejected: images that could not even be read again."""
        failed = rejected + len(checked.failures)
        reasons = dict(checked.left_out)
        if not checked.images:
            reasons = dict.fromkeys(asked.checks, "none of the images drawn for it could be explained again")
        return cls(
            asked.alike,
            checked.images,
            failed,
            checked.randomised,
            checked.permuted,
            checked.repeated,
            tuple({"measure": f"sanity.{check}", "class": None, "reason": reason} for check, reason in reasons.items()),
        )

    @classmethod
    def without(cls, reason: str, asked: Sanity) -> Self:
        """No check could be made."""
        left_out = tuple({"measure": f"sanity.{check}", "class": None, "reason": reason} for check in asked.checks)
        return cls(asked.alike, 0, 0, (), {}, {}, left_out)

    def to_json(self) -> bytes:
        return json.dumps(_finite(asdict(self)), indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        tree = json.loads(data)
        stages = (Redrawn(**{**stage, "likeness": _likeness(stage["likeness"])}) for stage in tree["randomised"])
        return cls(
            **{
                **tree,
                "randomised": tuple(stages),
                "permuted": _likeness(tree["permuted"]),
                "repeated": {
                    name: Repeated(**{each: nan if apart is None else apart for each, apart in item.items()})
                    for name, item in tree["repeated"].items()
                },
                "left_out": tuple(tree["left_out"]),
            }
        )

    @property
    def whole(self) -> Mapping[str, Likeness]:
        """With all weights drawn anew, by variant; empty where that was not checked."""
        return self.randomised[-1].likeness if self.randomised else {}

    @property
    def variants(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*self.whole, *self.permuted, *self.repeated]))

    def alike_in(self, likeness: Mapping[str, Likeness]) -> dict[str, float]:
        """Variants that fail, with their similarity, the most alike first."""
        failed = {name: item.similarity for name, item in likeness.items() if item.similarity > self.alike}
        return dict(sorted(failed.items(), key=lambda item: -item[1]))


def read_sanity(run: Objects) -> SanityResults | None:
    """None where no check was asked for."""
    try:
        return SanityResults.from_json(run.get(KEY))
    except FileNotFoundError:
        return None


def sanity_metrics(run: Objects) -> Iterator[tuple[str, str, float, int]]:
    """Variant, measure, value, and of how many images."""
    found = read_sanity(run)
    if found is None:
        return
    for measure, likeness in (("sanity.randomised", found.whole), ("sanity.permuted", found.permuted)):
        for name, item in likeness.items():
            if item.n:
                yield name, measure, item.similarity, item.n
    for name, repeated in found.repeated.items():
        if not isnan(repeated.largest):
            yield name, "sanity.repeated", repeated.largest, found.images


def sanity_left_out(run: Objects) -> list[dict[str, Any]]:
    """Checks that could not be made, as left_out.json lists them."""
    found = read_sanity(run)
    return [] if found is None else [dict(item) for item in found.left_out]


def sanity_findings(run: Objects) -> Iterator[Finding]:
    """Methods that fail a check, a finding each check."""
    found = read_sanity(run)
    if found is None:
        return
    yield from _alike(
        found,
        "randomised",
        found.whole,
        "With all weights of the model drawn anew, these maps stay alike: {}. They show the image, or a pattern of the "
        "method's own, rather than what the model has learned.",
    )
    yield from _alike(
        found,
        "permuted",
        found.permuted,
        "On a model that learned permuted labels, these maps stay alike: {}. They hang on how images look rather than "
        "on what the labels taught.",
    )
    moved = {name: item.largest for name, item in found.repeated.items() if item.largest > ROUNDING}
    if moved:
        moved = dict(sorted(moved.items(), key=lambda item: -item[1]))
        yield Finding(
            "sanity-failed",
            max(moved.values()),
            ROUNDING,
            f"The same image gives other maps when it is shown again: {_listed(moved, '{:.2g} of its largest value')}.",
            {"check": "repeated", "methods": moved, "images": found.images},
        )


def _alike(found: SanityResults, check: str, likeness: Mapping[str, Likeness], sentence: str) -> Iterator[Finding]:
    failed = found.alike_in(likeness)
    if failed:
        yield Finding(
            "sanity-failed",
            max(failed.values()),
            found.alike,
            sentence.format(_listed(failed, "mean rank correlation {:.2f}")),
            {"check": check, "methods": failed, "images": found.images},
        )


def _listed(numbers: Mapping[str, float], words: str) -> str:
    return ", ".join(f"{name} ({words.format(number)})" for name, number in numbers.items())


def _likeness(tree: Mapping[str, Any]) -> dict[str, Likeness]:
    return {name: Likeness(**({"similarity": nan, "magnitude": nan} | _known(item))) for name, item in tree.items()}


def _known(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in tree.items() if value is not None}


def _finite(tree: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(tree, dict):
        return {name: _finite(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not isfinite(tree) else tree
