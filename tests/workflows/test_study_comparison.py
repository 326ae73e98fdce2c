"""The comparison of a study: means over seeds, differences seed by seed, and nothing averaged away.

All numbers are made up, or the paper's own.
"""

import json
from collections.abc import Mapping
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from storage.objects import Objects
from storage.tables import read_table
from tasks.measures.student import mean_interval, quantile
from tests.workflows.synthetic_study import Rule, make_audit, make_catalogue, trials_of
from workflows.report.papers.latex import as_latex
from workflows.report.papers.text import as_text
from workflows.study.comparison import compare
from workflows.study.configuration import Study
from workflows.study.estimates import MEASURES, Difference, Estimate, Key, Value, estimates, verdict
from workflows.study.findings import Told, tell
from workflows.study.tables import Frame, class_tables, overall_tables
from workflows.study.trials import Trial


def _study(run: Path, **changes: Any) -> Study:
    tree = {
        "run": str(run),
        "archive": {"location": "a", "labels": {"file": "l.csv"}},
        "report": {"pictures": False},
        **changes,
    }
    return Study.model_validate(tree)


def _drawn(trial: Trial, name: str, measure: str) -> float:
    seed = [*f"{trial.name} {name} {measure}".encode()]
    return float(np.random.default_rng(seed).uniform(0.2, 0.8))


def _made(run: Path, rule: Rule = _drawn, **changes: Any) -> tuple[Objects, list[Trial], Study]:
    configuration = _study(run, **changes)
    study, trials = Objects(str(run)), trials_of(configuration)
    make_catalogue(study)
    for trial in trials:
        make_audit(study, trial, rule)
    return study, trials, configuration


def _rows(study: Objects) -> dict[tuple[str, ...], dict[str, Any]]:
    names = ("task", "model", "loss", "class", "measure")
    return {tuple(row[n] for n in names): row for row in read_table(study, "comparison.parquet").to_pylist()}


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 10, 120])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_the_quantile_is_that_of_students_distribution(freedom: int, confidence: float) -> None:
    expected = stats.t.ppf((1 + confidence) / 2, freedom)
    assert quantile(confidence, freedom) == pytest.approx(expected, rel=1e-9)


def test_one_value_has_no_interval() -> None:
    with pytest.raises(ValueError, match="two values or more, got 1"):
        mean_interval([0.5], 0.95)


def test_means_intervals_and_paired_differences_are_scipys(tmp_path: Path) -> None:
    study, trials, configuration = _made(tmp_path)
    compare(study, trials, configuration, dict.fromkeys(trial.name for trial in trials), ())
    found = _rows(study)
    assert len(found) == 2 * 4 * len(MEASURES) * (3 + 2)
    for (task, model, loss, name, measure), row in found.items():
        own, bce = ([_drawn(Trial(task, model, which, s), name, measure) for s in range(3)] for which in (loss, "bce"))
        scale = stats.sem(own)
        expected = [np.mean(own), *stats.t.interval(0.95, 2, np.mean(own), scale)]
        assert [row["mean"], row["low"], row["high"]] == pytest.approx(expected)
        assert (row["interval"], row["seeds"], row["asked"]) == ("seeds", 3, 3)
        if loss == "bce":
            assert row["difference"] is None
            continue
        paired = stats.ttest_rel(own, bce).confidence_interval(0.95)
        expected = [np.mean(own) - np.mean(bce), paired.low, paired.high]
        assert [row["difference"], row["diff_low"], row["diff_high"]] == pytest.approx(expected)


def test_other_confidence_gives_other_intervals(tmp_path: Path) -> None:
    study, trials, configuration = _made(tmp_path, measures={"confidence": 0.8})
    compare(study, trials, configuration, dict.fromkeys(trial.name for trial in trials), ())
    key = ("binary", "resnet50", "focal", "(all)", "iobb")
    own = [_drawn(Trial("binary", "resnet50", "focal", seed), "(all)", "iobb") for seed in range(3)]
    assert _rows(study)[key]["high"] == pytest.approx(stats.t.interval(0.8, 2, np.mean(own), stats.sem(own))[1])
    assert b"80 %" in study.get("tables/study-alignment.txt")


def test_a_difference_is_taken_over_the_seeds_that_both_have(tmp_path: Path) -> None:
    study, trials, configuration = _made(tmp_path, tasks=["binary"])
    ended: dict[str, str | None] = dict.fromkeys(trial.name for trial in trials)
    ended["binary/resnet50/wbce/seed-0"] = "its loss was not finite in epoch 3"
    ended["binary/resnet50/bce/seed-2"] = "the worker was lost"
    compare(study, trials, configuration, ended, ())
    row = _rows(study)["binary", "resnet50", "wbce", "(all)", "auroc"]
    one = _drawn(Trial("binary", "resnet50", "wbce", 1), "(all)", "auroc")
    other = _drawn(Trial("binary", "resnet50", "bce", 1), "(all)", "auroc")
    assert (row["seeds"], row["asked"], row["pairs"]) == (2, 3, 1)
    assert row["difference"] == pytest.approx(one - other)
    assert row["diff_low"] is None
    assert verdict(Difference(one - other, None, None, 1)) == "not known"
    assert {row["seed"] for row in read_table(study, "trials.parquet").to_pylist() if row["loss"] == "wbce"} == {
        0,
        1,
        2,
    }
    wbce = [row for row in read_table(study, "trials.parquet").to_pylist()
            if (row["model"], row["loss"]) == ("resnet50", "wbce")]  # fmt: skip
    assert {row["seed"] for row in wbce} == {1, 2}


def test_a_value_that_is_no_number_counts_as_missing() -> None:
    trials = [Trial("binary", "m", loss, seed) for loss in ("bce", "focal") for seed in range(3)]
    values = [Value(t, "(all)", "iobb", nan if t == trials[3] else float(t.seed), None, None, 9) for t in trials]
    found = estimates(trials, values, 0.95)[Key("binary", "m", "focal", "(all)", "iobb")]
    assert (found.seeds, found.mean) == (2, 1.5)
    assert found.difference is not None
    assert found.difference.pairs == 2


def test_one_seed_shows_its_own_interval_and_says_that_it_is_not_over_seeds(tmp_path: Path) -> None:
    study, trials, configuration = _made(tmp_path, seeds=[0])
    compare(study, trials, configuration, dict.fromkeys(trial.name for trial in trials), ())
    for row in _rows(study).values():
        assert row["interval"] == "patients"
        assert [row["low"], row["high"]] == pytest.approx([row["mean"] - 0.01, row["mean"] + 0.01])
        assert row["diff_low"] is None
    text = study.get("tables/study-concepts.txt").decode()
    assert "p: one seed" in text
    assert "Student" not in text


def test_trials_without_numbers_leave_dashes_with_their_reasons(tmp_path: Path) -> None:
    study, trials, configuration = _made(tmp_path, tasks=["binary"])
    ended = {trial.name: "its loss was not finite" if trial.loss == "focal" else None for trial in trials}
    study.put("trials/binary/resnet50/wbce/seed-0/audit/run.json", b'{"state": "profile"}')
    del ended["binary/t-densenet121/wbce/seed-0"]
    compare(study, trials, configuration, ended, ())
    text = study.get("tables/study-alignment.txt").decode()
    assert "[1] its loss was not finite" in text
    assert "8 of 24 trials have no numbers" in text
    rows = _rows(study)
    assert rows["binary", "resnet50", "focal", "(all)", "iobb"]["mean"] is None
    assert rows["binary", "resnet50", "wbce", "(all)", "iobb"]["seeds"] == 2
    assert rows["binary", "t-densenet121", "wbce", "(all)", "iobb"]["seeds"] == 2


def test_tables_are_whole_at_eighty_columns(tmp_path: Path) -> None:
    study, trials, configuration = _made(tmp_path)
    compare(study, trials, configuration, dict.fromkeys(trial.name for trial in trials), ())
    names = [
        "alignment",
        "concepts",
        "performance",
        "classes-multi-label-resnet50",
        "classes-multi-label-t-densenet121",
    ]
    assert [key for key in study.list("tables") if key.endswith(".txt")] == sorted(
        f"tables/study-{name}.txt" for name in names
    )
    for name in names:
        text = study.get(f"tables/study-{name}.txt").decode()
        assert max(map(len, text.splitlines())) <= 80
        assert "n = 3 throughout." in text


def _told(shift: float, spread: float = 0.01, **changes: Any) -> Told:
    """Of losses whose numbers lie `shift` above BCE's, with a spread over seeds that is BCE's own."""
    trials = [Trial("binary", "m", loss, s) for loss in ("bce", "wbce") for s in changes.get("seeds", range(3))]
    noise = {0: -1.0, 1: 0.25, 2: 0.75}
    values = [
        Value(t, "(all)", measure, 0.5 + (shift + spread * noise[t.seed] if t.loss == "wbce" else 0.0), 0.4, 0.6, 9)
        for t in trials
        for measure in MEASURES
    ]
    return tell(estimates(trials, values, 0.95))


@pytest.mark.parametrize(
    ("shift", "seeds", "expected", "outcome"),
    [
        (0.1, range(3), "more", "holds"),
        (-0.1, range(3), "less", "does not hold"),
        (0.001, range(3), "not told apart", "not shown"),
        (0.1, range(1), "not known", "not known"),
    ],
)
def test_verdicts_follow_from_the_interval_of_the_difference(
    shift: float, seeds: range, expected: str, outcome: str
) -> None:
    told = _told(shift, seeds=seeds)
    assert {answer.verdict for answer in told.answers} == {expected}
    assert [finding.evidence["outcome"] for finding in told.findings[:2]] == [outcome, outcome]
    assert f"Here: {outcome}." in told.sentences[0]


def test_alike_is_not_concluded_from_an_interval_that_holds_zero() -> None:
    (sentence,) = [line for line in _told(0.001).sentences if "AUROC" in line]
    half = stats.t.ppf(0.975, 2) * 0.01 * np.std([-1, 0.25, 0.75], ddof=1) / 3**0.5
    assert "1 not told apart" in sentence
    assert f"differences of up to {0.001 + half:.3f}" in sentence


def _mixed(row: Mapping[str, float]) -> Told:
    trials = [Trial("binary", "m", loss, seed) for loss in ("bce", *row) for seed in range(3)]
    values = [
        Value(t, "(all)", measure, row.get(t.loss, 0.0) + 0.01 * (t.seed if t.loss != "bce" else 0), None, None, 9)
        for t in trials
        for measure in MEASURES
    ]
    return tell(estimates(trials, values, 0.95))


def test_a_conclusion_that_some_losses_bear_out_is_mixed() -> None:
    told = _mixed({"wbce": 1.0, "focal": -0.01, "cb-focal": -1.0})
    aligned = told.findings[1]
    assert aligned.evidence["outcome"] == "mixed"
    assert "1 more, 1 less, 1 not told apart" in aligned.sentence
    assert aligned.number == pytest.approx(1 / 3)


_PAPER = {  # Disjoint, Unique, IoBB, IoR of tables 1 and 2
    ("multi-label", "T-DenseNet"): {
        "bce": (217, 141, 0.2105, 0.2951),
        "wbce": (259, 157, 0.2836, 0.2252),
        "focal": (226, 143, 0.1855, 0.3223),
        "cb-focal": (263, 163, 0.2753, 0.3141),
    },
    ("multi-label", "ResNet50"): {
        "bce": (562, 328, 0.2700, 0.2401),
        "wbce": (641, 441, 0.3447, 0.2060),
        "focal": (585, 570, 0.2915, 0.1845),
        "cb-focal": (546, 390, 0.2839, 0.2375),
    },
    ("binary", "T-DenseNet"): {
        "bce": (280, 165, 0.2661, 0.2123),
        "wbce": (287, 169, 0.2765, 0.1999),
        "focal": (291, 170, 0.2129, 0.2064),
        "cb-focal": (292, 171, 0.2458, 0.1956),
    },
    ("binary", "ResNet50"): {
        "bce": (363, 278, 0.3159, 0.2084),
        "wbce": (542, 386, 0.3505, 0.2021),
        "focal": (586, 414, 0.2516, 0.2042),
        "cb-focal": (567, 400, 0.3409, 0.1955),
    },
}


def test_of_the_papers_own_numbers_it_says_what_they_show_and_that_they_have_no_intervals() -> None:
    """One network of each kind: the paper's `consistently` is 23 of 24, and its IoBB rises in 8 of 12."""
    measures = ("concepts.disjoint", "concepts.unique", "iobb", "ior")
    values = [
        Value(Trial(*kind, loss, 0), "(all)", measure, float(number), None, None, 0)
        for kind, rows in _PAPER.items()
        for loss, row in rows.items()
        for measure, number in zip(measures, row, strict=True)
    ]
    trials = list(dict.fromkeys(value.trial for value in values))
    told = tell(estimates(trials, values, 0.95))
    concepts, aligned, ior = told.sentences[:3]
    assert "Here: not known. Of 24 comparisons with BCE: 24 not known." in concepts
    assert "Of 24 without an interval the bare number is higher in 23;" in concepts
    assert "Here: not known. Of 12 comparisons with BCE: 12 not known." in aligned
    assert "Of 12 without an interval the bare number is higher in 8;" in aligned
    assert "the bare number is lower in 10;" in ior
    assert all(finding.kind in ("more-concepts", "better-aligned") for finding in told.findings)


def test_findings_are_json_with_number_threshold_and_evidence(tmp_path: Path) -> None:
    study, trials, configuration = _made(tmp_path)
    compare(study, trials, configuration, dict.fromkeys(trial.name for trial in trials), ())
    findings = json.loads(study.get("findings.json"))
    assert len(findings) == 2 + 7 * 12
    assert all({"kind", "number", "threshold", "sentence", "evidence"} == finding.keys() for finding in findings)


def test_without_bce_nothing_is_compared_and_that_is_said(tmp_path: Path) -> None:
    study, trials, configuration = _made(tmp_path, losses=["focal"])
    compare(study, trials, configuration, dict.fromkeys(trial.name for trial in trials), ())
    sentence = json.loads(study.get("findings.json"))[0]["sentence"]
    assert "Here: not known. Of 8 comparisons with BCE: 8 not known." in sentence


def test_class_names_cannot_break_a_table() -> None:
    hostile = "a&b\x1b[31m\\end{table}"
    found = {
        Key("multi-label", "m", "bce", name, measure): Estimate(0.5, 0.4, 0.6, 3, 3, "seeds", None)
        for name in ("(all)", hostile, "other")
        for measure in MEASURES
    }
    frame = Frame([Trial("multi-label", "m", "bce", seed) for seed in range(3)], 0.95, {})
    (table,) = class_tables(found, frame)
    assert "\x1b" not in as_text(table)
    assert "\\end{table}" not in as_latex(table).replace("\\end{table}\n", "")
    assert len(overall_tables(found, frame)) == 3
