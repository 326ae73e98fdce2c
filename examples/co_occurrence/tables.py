"""The tables of the study: means over seeds with 95 % intervals, and differences within a seed."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from math import nan, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t

from examples.co_occurrence.chain import BASELINES, LITERAL, MCAM, MEMORIES, METHODS_SHOWN, NO_LIKENESS
from examples.co_occurrence.scenes import TARGETS

Row = Mapping[str, Any]

_HEADINGS = {
    "of_both": "energy on the target, of target and context",
    "energy_target": "energy on the target, of the map",
    "peak_target": "peak on the target",
    "peak_context": "peak on the context",
}
_SHOWN = ("frequent", "rare")


def interval(values: Iterable[float]) -> tuple[float, float, int]:
    """Mean, half the width of its 95 % interval (Student's t) and how many values there are, NaN left out."""
    known = [value for value in values if value == value]
    if len(known) < 2:
        return (known[0] if known else nan), nan, len(known)
    half = float(t.ppf(0.975, len(known) - 1)) * stdev(known) / sqrt(len(known))
    return fmean(known), half, len(known)


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Numbers to six digits."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row.values()] for row in rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def by_seed(
    maps: Iterable[Row], measure: str, *, target: str, context: str = "with", canvases: str = "all"
) -> dict[str, dict[str, float]]:
    """Method -> seed -> the measure's mean over canvases."""
    found: dict[str, dict[str, float]] = {}
    for row in maps:
        if (row["target"], row["context"], row["canvases"]) == (target, context, canvases):
            found.setdefault(str(row["method"]), {})[str(row["seed"])] = float(row[measure])
    return found


def markdown(maps: Sequence[Row], answers: Sequence[Row]) -> str:
    """Every table, from rows as the CSV files have them."""
    seeds = len({str(row["seed"]) for row in maps})
    parts = [f"Means over {seeds} seeds ± half the width of their 95 % interval, in percent of the canvases or energy."]
    for target in _SHOWN:
        parts += [f"**The {target} target, with its context, all canvases**", _methods(maps, target, _HEADINGS)]
    for target in _SHOWN:
        title = f"**m-cam minus each other method, within a seed: the {target} target with its context, all canvases**"
        parts += [title, _differences(maps, target)]
    right = {key: _HEADINGS[key] for key in ("of_both", "peak_target")}
    for target in _SHOWN:
        title = f"**The {target} target, with its context, only where the classifier finds it**"
        parts += [title, _methods(maps, target, right, canvases="right")]
    alone = {key: _HEADINGS[key] for key in ("energy_target", "peak_target")}
    for target in _SHOWN:
        parts += [
            f"**Control: the {target} target without its context, all canvases**",
            _methods(maps, target, alone, context="without"),
        ]
    parts += ["**The classifier and its memories**", _classifiers(answers)]
    return "\n\n".join(parts) + "\n"


def _methods(maps: Sequence[Row], target: str, headings: Mapping[str, str], **kind: str) -> str:
    columns = [by_seed(maps, measure, target=target, **kind) for measure in headings]
    rows = [[method, *(_percent(column[method].values()) for column in columns)] for method in METHODS_SHOWN]
    return _table(["method", *headings.values()], rows)


def _differences(maps: Sequence[Row], target: str) -> str:
    columns = [by_seed(maps, measure, target=target) for measure in _HEADINGS]
    rows = []
    for method in (*BASELINES, MCAM + NO_LIKENESS, LITERAL):
        gaps = [[column[MCAM][seed] - value for seed, value in column[method].items()] for column in columns]
        rows.append([f"minus {method}", *(_percent(gap, sign="+") for gap in gaps)])
    return _table(["difference", *_HEADINGS.values()], rows)


def _classifiers(answers: Sequence[Row]) -> str:
    """The head, and the memories that it is explained by."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in answers:
        found.setdefault(str(row["figure"]), {}).setdefault(str(row["classifier"]), []).append(float(row["value"]))
    names = ("head", *MEMORIES)
    told = {
        f"recall.{target}.{place}": f"{target} target found, {place} its context"
        for target in TARGETS
        for place in ("with", "without")
    }
    told |= {f"false.{target}.context": f"{target} target seen where only the context is" for target in TARGETS}
    told |= {"agreement.test": "decisions as the head's, all classes"}
    told |= {f"agreement.{target}.with": f"the same, {target} target with its context" for target in TARGETS}
    told |= {f"slot.steady.{target}": f"draws that find the same slot, {target} target" for target in TARGETS}
    rows = [[text, *(_percent(found[key].get(name, [])) for name in names)] for key, text in told.items()]
    numbers = {
        "fit.held-out.address.slots": "slots an address spreads over",
        "fit.held-out.slots.used": "slots all addresses use",
    }
    numbers |= {"fit.epochs": "epochs of the fit"}
    rows += [[text, *(_number(found[key].get(name, [])) for name in names)] for key, text in numbers.items()]
    return _table(["", "classifier", *(f"memory of {name}" for name in MEMORIES)], rows)


def _percent(values: Iterable[float], sign: str = "") -> str:
    mean, half, count = interval(100 * value for value in values)
    return _cell(f"{round(mean, 1) + 0.0:{sign}.1f}", half, count)  # + 0.0: no -0.0


def _number(values: Iterable[float]) -> str:
    mean, half, count = interval(values)
    return _cell(f"{mean:.1f}", half, count)


def _cell(mean: str, half: float, count: int) -> str:
    if not count:
        return ""
    return f"{mean} ± {half:.1f}" if count > 1 else mean


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
