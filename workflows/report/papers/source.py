"""A run as the tables ask it: for one number with its interval, or for the reason why it is not there."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite

import numpy as np

from storage.objects import Objects
from tasks.cams.names import MethodName
from tasks.measures.names import MEASURES
from workflows.report.papers.table import Cell, measured
from workflows.report.results import EVERY_CLASS, Metric, Results, read_results

CONSISTENCY = "consistency"
FEW = 3  # cases below which a correlation within a class says nothing
_GROUPS = {measure.name: measure.group for measure in MEASURES}
_PREFIXES = {"accuracy": "features", "concepts": "concepts"}


@dataclass(frozen=True)
class Source:
    """One run. name: how the tables call it, its title and what tells it apart from others of that title."""

    name: str
    title: str
    results: Results

    @cached_property
    def _overall(self) -> Mapping[tuple[str, str], Metric]:
        """(method, measure) -> over all classes."""
        found = (item for item in self.results.metrics if item.category == EVERY_CLASS)
        return {(item.method, item.measure): item for item in found}

    @cached_property
    def _within(self) -> Mapping[str, list[float]]:
        """method -> its consistency within each class that has cases enough."""
        found = defaultdict(list)
        for item in self.results.metrics:
            enough = item.measure == CONSISTENCY and item.category != EVERY_CLASS and item.n >= FEW
            if enough and isfinite(item.value):
                found[item.method].append(item.value)
        return found

    def methods(self, measure: str) -> list[str]:
        """Those that have the measure, in the order of the run."""
        return [method for method, name in self._overall if name == measure]

    def cell(self, method: str, measure: str, decimals: int = 3) -> Cell:
        """A measure over all classes, or a dash with its reason."""
        item = self._overall.get((method, measure))
        if item is None:
            return Cell(why=self.why(method, measure), decimals=decimals)
        if not item.n:
            return Cell(why=self._left_out(measure) or "no image or case has what this is measured on")
        return measured(item.value, low=item.low, high=item.high, n=item.n, decimals=decimals)

    def within(self, method: str) -> Cell:
        """The median over classes of the consistency within a class."""
        values = self._within.get(method)
        if not values:
            return Cell(why=f"no class has {FEW} cases or more")
        return measured(float(np.median(values)))

    def why(self, method: str, measure: str) -> str:
        """Why there is no such number."""
        group, judging = _group(measure), self.results.record.judging
        if group and group not in judging.groups:
            return f"not asked for: measures.include lacks {group}"
        reason = self._left_out(measure)
        if reason:
            return reason
        if method != "model" and method.partition(".")[0] not in self.variants:
            return f"not asked for: explain.methods lacks {method.partition('.')[0]}"
        return "not measured by this run"

    @cached_property
    def variants(self) -> frozenset[str]:
        """Base methods with all or with their principal features, of those that the run was asked for."""
        parsed = (MethodName.parse(name) for name in self.results.record.judging.methods)
        return frozenset(str(MethodName(method.base, method.selected)) for method in parsed)

    def _left_out(self, measure: str) -> str:
        """Why a measure, or its group, was left out for all classes; empty where it was not."""
        items = (item for item in self.results.left_out if item.category is None)
        return "; ".join(dict.fromkeys(one_line(i.reason) for i in items if i.measure in (measure, _group(measure))))


def _group(measure: str) -> str:
    """Of measures.include; empty for what is always measured."""
    return _GROUPS.get(measure) or _PREFIXES.get(measure.partition(".")[0], "")


def to_fill(needs: str, runs: Sequence[Source], measure: str) -> str:
    """What a table without a number says: what it needs, and why the runs have none."""
    reasons = dict.fromkeys(run.why("model", measure) for run in runs)
    return f"Needs {needs}. Here: {'; '.join(reasons)}."


def sources(runs: Sequence[Objects]) -> tuple[Source, ...]:
    """The runs by their reports' titles; where two are titled alike, by the names of their folders too.

    Raises RunError where there is no finished run.
    """
    read = [read_results(run) for run in runs]
    titles = [one_line(results.record.title) for results in read]
    names = _told_apart(titles, [one_line(run.location.rpartition("/")[2]) for run in runs])
    names = _told_apart(names, [str(place) for place in range(1, len(runs) + 1)])
    return tuple(map(Source, names, titles, read))


def _told_apart(names: Sequence[str], by: Sequence[str]) -> list[str]:
    return [f"{name} ({what})" if names.count(name) > 1 else name for name, what in zip(names, by, strict=True)]


def one_line(text: str) -> str:
    """Without line breaks, and without characters that steer a terminal or turn the direction of what follows."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())
