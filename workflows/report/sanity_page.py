"""The sanity checks in words, numbers and one small line a method: how alike maps stay as the model forgets."""

from dataclasses import dataclass
from math import isfinite, isnan

from tasks.sanity import Likeness
from workflows.report.wording import correlation, number
from workflows.sanity_results import ROUNDING, SanityResults

_LINE = (150, 36)  # width and height of a line, in units of its view box
_LOWEST = -0.2  # the axis of all lines ends here, or where a line goes below


@dataclass(frozen=True, slots=True)
class Line:
    """Likeness after each stage, as points; zero, alike: heights of no likeness and of the threshold."""

    width: int
    height: int
    points: str
    end: tuple[str, str]
    zero: str
    alike: str


@dataclass(frozen=True, slots=True)
class MethodRow:
    """One variant. verdict: passes | fails | unknown | none; stages: correlation after each."""

    name: str
    verdict: str
    line: Line | None
    whole: str
    magnitude: str
    unranked: int
    permuted: str | None
    permuted_fails: bool
    repeated: str | None
    repeated_fails: bool
    stages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SanityPage:
    """stages: the last module and the number of modules drawn anew so far; failing: methods that stay alike."""

    images: int
    failed: int
    alike: str
    rows: tuple[MethodRow, ...]
    stages: tuple[tuple[str, int], ...]
    failing: tuple[str, ...]
    randomised: bool
    permuted: bool
    repeated: bool
    unranked: bool
    memory: bool
    left_out: tuple[tuple[str, str], ...]


def sanity_page(found: SanityResults | None) -> SanityPage | None:
    """None where no check was asked for."""
    if found is None:
        return None
    every = [item.similarity for stage in found.randomised for item in stage.likeness.values()]
    low = min([_LOWEST, *filter(isfinite, every)])
    rows = tuple(_row(found, name, low) for name in found.variants)
    return SanityPage(
        images=found.images,
        failed=found.failed,
        alike=correlation(found.alike),
        rows=rows,
        stages=tuple((stage.through or "the whole", stage.modules) for stage in found.randomised),
        failing=tuple(found.alike_in(found.whole)),
        randomised=bool(found.randomised),
        permuted=bool(found.permuted),
        repeated=bool(found.repeated),
        unranked=any(row.unranked for row in rows),
        memory=any(row.name.endswith("m-cam") for row in rows),
        left_out=tuple((item["measure"].removeprefix("sanity."), item["reason"]) for item in found.left_out),
    )


def _row(found: SanityResults, name: str, low: float) -> MethodRow:
    likeness = [stage.likeness[name] for stage in found.randomised]
    whole, permuted = found.whole.get(name), found.permuted.get(name)
    repeated = found.repeated.get(name)
    return MethodRow(
        name,
        _verdict(whole, found.alike),
        _line([item.similarity for item in likeness], found.alike, low) if whole is not None and whole.n else None,
        whole=correlation(whole.similarity) if whole is not None else "",
        magnitude=correlation(whole.magnitude) if whole is not None else "",
        unranked=whole.unranked if whole is not None else 0,
        permuted=None if permuted is None else correlation(permuted.similarity),
        permuted_fails=permuted is not None and permuted.similarity > found.alike,
        repeated=None if repeated is None else _moved(repeated.largest),
        repeated_fails=repeated is not None and repeated.largest > ROUNDING,
        stages=tuple(correlation(item.similarity) for item in likeness),
    )


def _verdict(whole: Likeness | None, alike: float) -> str:
    if whole is None:
        return "none"
    if not whole.n:
        return "unknown"
    return "fails" if whole.similarity > alike else "passes"


def _moved(share: float) -> str:
    if isnan(share):
        return "not known"
    if share == 0:
        return "the same bits"
    return "rounding" if share <= ROUNDING else f"differs by {number(share)}"


def _line(similarities: list[float], alike: float, low: float) -> Line:
    """From 1, the model as it is, over the stages. The axis goes from `low`, at the bottom, to 1."""
    width, height = _LINE
    values = [1.0, *similarities]

    def up(value: float) -> str:
        return f"{height * (1 - value) / (1 - low):.1f}"

    points = [
        (f"{place * width / (len(values) - 1):.1f}", up(value)) for place, value in enumerate(values) if isfinite(value)
    ]
    return Line(width, height, " ".join(",".join(point) for point in points), points[-1], up(0), up(alike))
