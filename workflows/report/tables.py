"""The figures of the engineering part, as tables whose cells hold bars and strips: legible on any screen."""

from dataclasses import dataclass

import numpy as np

from workflows.report.gallery import Picture
from workflows.report.painting import Array, colour_map, data_uri
from workflows.report.results import AGREEMENT, BORDER, EVERY_CLASS, Importance, Levels, Metric, Results
from workflows.report.wording import correlation, number, percent

SHOWN_CLASSES = 24  # more rows are no longer looked at; the arrays hold all of them
_PRINCIPAL = 4
_SHOWN_REGIONS = 5
_STRIP_COLUMNS = 480
_FEW = 3  # cases below which a correlation says nothing
_SCALES = {
    "raw": "not scaled",
    "individual": "scaled by itself",
    "linear": "common scale, linear",
    "tanh": "common scale, tanh (S-CAM)",
}


@dataclass(frozen=True, slots=True)
class LevelRow:
    """One class's levels, in words. thin: P1 to P99, thick: the limits; start and width in percent."""

    name: str
    low: str
    middle: str
    high: str
    thin: tuple[float, float]
    thick: tuple[float, float]
    median: float


@dataclass(frozen=True, slots=True)
class LevelTable:
    """zero: where 0 lies, percent; axis: the numbers at both ends."""

    base: str
    rows: tuple[LevelRow, ...]
    zero: float
    axis: tuple[str, str]


@dataclass(frozen=True, slots=True)
class ImportanceRow:
    """principal: the strongest features and their share of what speaks for the class."""

    name: str
    light: Picture
    dark: Picture
    principal: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class ImportanceTable:
    """bound: the contribution at full colour; half: features that hold half of what speaks for a class, median."""

    base: str
    rows: tuple[ImportanceRow, ...]
    bound: str
    features_a_column: int
    half: int


@dataclass(frozen=True, slots=True)
class ConsistencyRow:
    """within: the median of Pearson's correlation over `classes` classes that have cases enough."""

    method: str
    scale: str
    pearson: str
    spearman: str
    n: int
    within: str
    classes: int


@dataclass(frozen=True, slots=True)
class ClassRow:
    """Worded measures of one class; a dash where there are none."""

    name: str
    cases: str
    probability: str
    agreement: str
    border: str


@dataclass(frozen=True, slots=True)
class RegionRow:
    """The regions where a class's maps are highest: name, mean and deviation between images."""

    name: str
    n: int
    highest: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class RegionTable:
    method: str
    rows: tuple[RegionRow, ...]


def region_tables(results: Results, shown: list[int]) -> list[RegionTable]:
    """One table a method, where there is an atlas."""
    tables = []
    for method in dict.fromkeys(region.method for region in results.regions):
        rows = []
        for name in (results.record.model.classes[c] for c in shown):
            own = [region for region in results.regions if (region.method, region.category) == (method, name)]
            best = sorted(own, key=lambda region: -region.mean)[:_SHOWN_REGIONS]
            if best:
                words = tuple((region.name, number(region.mean), number(region.std)) for region in best)
                rows.append(RegionRow(name, best[0].n, words))
        tables.append(RegionTable(method, tuple(rows)))
    return tables


def shown_classes(results: Results) -> list[int]:
    """All classes where they are few, else those with examples and those most often answered, in the model's order."""
    count = len(results.record.model.classes)
    if count <= SHOWN_CLASSES:
        return list(range(count))
    examples = [] if results.exemplars is None else [int(c) for c in results.exemplars.classes]
    frequent = [int(c) for c in np.argsort(-results.answered, kind="stable")]
    return sorted(list(dict.fromkeys(examples + frequent))[:SHOWN_CLASSES])


def level_table(results: Results, levels: Levels, shown: list[int]) -> LevelTable:
    limits, quantiles = levels.limits[shown], levels.quantiles[shown]
    first = min(0.0, float(limits.min()), float(quantiles.min()))
    last = max(0.0, float(limits.max()), float(quantiles.max()))
    extent = (last - first) or 1.0

    def bar(low: float, high: float) -> tuple[float, float]:
        return 100 * (low - first) / extent, 100 * (high - low) / extent

    rows = tuple(
        LevelRow(
            name=results.record.model.classes[c],
            low=number(low),
            middle=number(median),
            high=number(high),
            thin=bar(lowest, highest),
            thick=bar(low, high),
            median=bar(median, median)[0],
        )
        for c, (low, high), (lowest, median, highest) in zip(shown, limits.tolist(), quantiles.tolist(), strict=True)
    )
    return LevelTable(levels.base, rows, 100 * -first / extent, (number(first), number(last)))


def feature_order(matrix: Array) -> Array:
    """Features [F] sorted by the class they serve most, the strongest of a class first. matrix [F,C]."""
    return np.asarray(np.lexsort((-matrix.max(1), matrix.argmax(1))))


def importance_table(results: Results, importance: Importance, shown: list[int]) -> ImportanceTable:
    matrix = np.nan_to_num(importance.all[:, shown])
    block = -(-len(matrix) // _STRIP_COLUMNS)
    bound = colour_bound(matrix)
    strips = _strongest(matrix[feature_order(matrix)], block) / bound
    positive = np.maximum(matrix, 0)
    names = [results.record.model.classes[c] for c in shown]
    rows = tuple(
        ImportanceRow(
            name=name,
            light=_strip(strips[:, column], "RdBu_r", name),
            dark=_strip(strips[:, column], "berlin", name),
            principal=_principal(positive[:, column]),
        )
        for column, name in enumerate(names)
    )
    return ImportanceTable(importance.base, rows, number(bound), block, _half(positive))


def colour_bound(matrix: Array) -> float:
    """The contribution that gets full colour: above all but one entry in two hundred, so that one giant hides none."""
    return float(np.quantile(np.abs(matrix), 0.995)) or 1.0


def _strongest(matrix: Array, block: int) -> Array:
    """Of each `block` neighbouring features the entry farthest from 0: an average would hide a single strong one."""
    padded = np.pad(matrix, ((0, -len(matrix) % block), (0, 0)))
    groups = padded.reshape(-1, block, matrix.shape[1])
    strongest = np.abs(groups).argmax(1)
    return np.asarray(np.take_along_axis(groups, strongest[:, None], axis=1)[:, 0])


def _strip(values: Array, colours: str, name: str) -> Picture:
    painted = colour_map(colours, (1 + values) / 2)
    return Picture(data_uri(painted[None], lossless=True), f"Importance of every feature for class {name}")


def _principal(positive: Array) -> tuple[tuple[int, str], ...]:
    total = positive.sum()
    top = np.argsort(-positive, kind="stable")[:_PRINCIPAL]
    return tuple((int(f), percent(float(positive[f] / total))) for f in top if positive[f] > 0)


def _half(positive: Array) -> int:
    ordered = -np.sort(-positive, axis=0)
    reached = np.cumsum(ordered, axis=0) >= 0.5 * ordered.sum(0, keepdims=True)
    return int(np.median(reached.argmax(0) + 1))


def consistency_rows(results: Results) -> tuple[ConsistencyRow, ...]:
    """Correlation of map sums with logits, a row for each method and scale."""
    rows = []
    for metric in results.metrics:
        if metric.measure == "consistency.pearson" and metric.category == EVERY_CLASS:
            method, _, scale = metric.method.rpartition(".")
            ranked = results.find(metric.method, EVERY_CLASS, "consistency.spearman")
            within = [
                item.value
                for item in results.metrics
                if (item.method, item.measure) == (metric.method, metric.measure)
                and item.category != EVERY_CLASS
                and item.n >= _FEW
                and np.isfinite(item.value)
            ]
            rows.append(
                ConsistencyRow(
                    method=method,
                    scale=_SCALES[scale],
                    pearson=correlation(metric.value),
                    spearman=correlation(float("nan") if ranked is None else ranked.value),
                    n=metric.n,
                    within=correlation(float(np.median(within)) if within else float("nan")),
                    classes=len(within),
                )
            )
    return tuple(rows)


def class_rows(results: Results, shown: list[int]) -> tuple[ClassRow, ...]:
    """What the run measured of each shown class that has cases."""
    bordered = next((item.method for item in results.metrics if item.measure == BORDER), "")
    rows = []
    for name in (results.record.model.classes[c] for c in shown):
        cases = results.find("model", name, "cases")
        if cases is not None:
            rows.append(
                ClassRow(
                    name=name,
                    cases=f"{cases.value:,.0f}",
                    probability=_share(results.find("model", name, "mean probability")),
                    agreement=_share(results.find("model", name, AGREEMENT)),
                    border=_share(results.find(bordered, name, BORDER)),
                )
            )
    return tuple(rows)


def _share(metric: Metric | None) -> str:
    return "\N{EN DASH}" if metric is None or not np.isfinite(metric.value) else percent(metric.value)
