"""The measures of explanations by their names: in tables, in the table of cases, in the configuration."""

from dataclasses import dataclass
from typing import Literal

IOU_THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True, slots=True)
class Measure:
    """One number of a map. name: in metrics.parquet; column: behind `<method>.` in cases.parquet, whose mean times
    factor is the metric; group: of the configuration, which is asked for and paid for as a whole."""

    name: str
    column: str
    group: str
    better: Literal["lower", "higher"]
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Group:
    """Measures that are had together. needs: boxes | labels | features | nothing; sampled: all images, those of the
    larger sample (one masked forward a map), or of the smaller one (many forwards a map)."""

    name: str
    needs: tuple[str, ...]
    sampled: Literal["all", "masked", "perturbed"]
    default: bool


GROUPS = {
    group.name: group
    for group in (
        Group("drop", (), "masked", True),
        Group("inverse", (), "masked", True),
        Group("alignment", ("boxes",), "all", True),
        Group("pointing", ("boxes",), "all", True),
        Group("iou", ("boxes",), "all", True),
        Group("features", ("labels", "features"), "all", True),
        Group("concepts", ("boxes", "features"), "all", True),
        Group("performance", ("labels",), "all", True),
        Group("infidelity", (), "perturbed", False),
        Group("sensitivity", (), "perturbed", False),
        Group("curves", (), "perturbed", False),
    )
}
"""Of the configuration's `measures.include`."""

MEASURES = (
    Measure("average drop", "drop", "drop", "lower", 100.0),
    Measure("increase in confidence", "increase", "drop", "higher", 100.0),
    Measure("inverse drop", "inverse", "inverse", "higher", 100.0),
    Measure("iobb", "iobb", "alignment", "higher"),
    Measure("ior", "ior", "alignment", "higher"),
    Measure("pointing game", "pointing", "pointing", "higher"),
    Measure("pointing game small", "pointing small", "pointing", "higher"),
    *(Measure(f"iou {share:g}", f"iou {share:g}", "iou", "higher") for share in IOU_THRESHOLDS),
    Measure("infidelity", "infidelity", "infidelity", "lower"),
    Measure("max-sensitivity", "sensitivity", "sensitivity", "lower"),
    Measure("insertion", "insertion", "curves", "higher"),
    Measure("deletion", "deletion", "curves", "lower"),
)
"""What each case is measured by: an image, a class, and the raw map of a method with all or its principal features."""

COLUMNS = {measure.column: measure for measure in MEASURES}
