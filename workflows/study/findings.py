"""What the numbers of a study say, and no more than their intervals allow."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workflows.findings import Finding
from workflows.metrics import EVERY_CLASS
from workflows.study.estimates import (
    AUROC,
    DISJOINT,
    IOBB,
    IOR,
    PRECISION,
    PROBABILITY,
    REFERENCE,
    UNIQUE,
    Difference,
    Estimates,
    Key,
    Verdict,
    verdict,
)

QUESTIONS = {
    DISJOINT: "concepts (disjoint)",
    UNIQUE: "concepts (unique)",
    IOBB: "IoBB",
    IOR: "IoR",
    AUROC: "AUROC",
    PRECISION: "average precision",
    PROBABILITY: "mean predicted probability",
}
LOSSES = {"bce": "BCE", "wbce": "WBCE", "focal": "Focal", "cb-focal": "CB-Focal"}
_WORDS: Mapping[Verdict, str] = {"more": "higher", "less": "lower"}
_MORE_CONCEPTS = "that handling imbalance makes a model encode more concepts"
_BETTER_ALIGNED = "that its maps then cover more of the findings (higher IoBB)"


@dataclass(frozen=True, slots=True)
class Answer:
    """One comparison of a loss with BCE, over all classes."""

    key: Key
    verdict: Verdict
    difference: Difference | None


@dataclass(frozen=True, slots=True)
class Told:
    """What is said: answers to each question, sentences for people, findings for programs."""

    answers: tuple[Answer, ...]
    sentences: tuple[str, ...]
    findings: tuple[Finding, ...]


def tell(estimates: Estimates) -> Told:
    """Verdicts, the paper's two conclusions, and what else the paper saw."""
    answers = tuple(
        Answer(key, verdict(found.difference), found.difference)
        for key, found in estimates.items()
        if key.category == EVERY_CLASS and key.measure in QUESTIONS and key.loss != REFERENCE
    )
    concepts = _of(answers, DISJOINT, UNIQUE)
    aligned = _of(answers, IOBB)
    conclusions = [_conclusion("more-concepts", _MORE_CONCEPTS, concepts)]
    conclusions.append(_conclusion("better-aligned", _BETTER_ALIGNED, aligned))
    sentences = [finding.sentence for finding in conclusions]
    sentences += [_seen(answers, IOR, "less"), _seen(answers, PROBABILITY, "more")]
    sentences += [_alike(answers, measure) for measure in (AUROC, PRECISION)]
    return Told(answers, tuple(filter(None, sentences)), (*conclusions, *_differences(answers)))


def _of(answers: Sequence[Answer], *measures: str) -> list[Answer]:
    return [answer for answer in answers if answer.key.measure in measures]


def _conclusion(kind: str, claim: str, answers: Sequence[Answer]) -> Finding:
    """The paper's claim as one of holds | mixed | does not hold | not shown | not known. number: the share of the known
    comparisons that are told apart in its favour; threshold: the share at which it holds."""
    counts = Counter(answer.verdict for answer in answers)
    known = len(answers) - counts["not known"]
    if not known:
        outcome = "not known"
    elif counts["more"] == known:
        outcome = "holds" if known == len(answers) else "holds as far as it is known"
    elif counts["more"]:
        outcome = "mixed"
    else:
        outcome = "does not hold" if counts["less"] else "not shown"
    sentence = f"The paper concludes {claim}. Here: {outcome}. {_counted(counts, len(answers))}"
    evidence: dict[str, Any] = {
        "outcome": outcome,
        "comparisons": len(answers),
        **{str(name): count for name, count in counts.items()},
        "higher in the mean": _signs(answers, "more")[0],
    }
    return Finding(kind, counts["more"] / known if known else 0.0, 1.0, sentence + _leaning(answers, "more"), evidence)


def _counted(counts: Counter[Verdict], total: int) -> str:
    if not total:
        return f"There is nothing to compare: no other loss than {LOSSES[REFERENCE]}."
    parts = [f"{counts[name]} {name}" for name in ("more", "less", "not told apart", "not known") if counts[name]]
    return f"Of {total} comparison{'s' * (total != 1)} with BCE: {', '.join(parts)}."


def _signs(answers: Sequence[Answer], expected: Verdict) -> tuple[int, int]:
    """How many differences lie on the expected side of 0, and how many there are, whatever their intervals."""
    means = [answer.difference.mean for answer in answers if answer.difference is not None]
    return sum(mean > 0 if expected == "more" else mean < 0 for mean in means), len(means)


def _leaning(answers: Sequence[Answer], expected: Verdict) -> str:
    """Of those without an interval the bare signs, and that they show nothing."""
    beyond, there = _signs([answer for answer in answers if answer.verdict == "not known"], expected)
    if not there:
        return ""
    return (
        f" Of {there} without an interval the bare number is {_WORDS[expected]} in {beyond}; from one seed alone "
        "nobody knows whether training again would give the same order."
    )


def _seen(answers: Sequence[Answer], measure: str, expected: Verdict) -> str:
    """What the paper saw besides, and how often it is seen here."""
    own = _of(answers, measure)
    counts = Counter(answer.verdict for answer in own)
    if not own:
        return ""
    return (
        f"The paper sees a {_WORDS[expected]} {QUESTIONS[measure]}. {_counted(counts, len(own))}"
        f"{_leaning(own, expected)}"
    )


def _alike(answers: Sequence[Answer], measure: str) -> str:
    """An interval that holds 0 does not show that two are alike: how far they may lie apart is said instead."""
    own = _of(answers, measure)
    known = [a.difference for a in own if a.difference is not None and a.difference.low is not None]
    if not own:
        return ""
    counts = Counter(answer.verdict for answer in own)
    said = f"The paper finds {QUESTIONS[measure]} alike. {_counted(counts, len(own))}"
    ends = [abs(end) for difference in known for end in (difference.low, difference.high) if end is not None]
    if ends:
        return f"{said} The intervals allow differences of up to {max(ends):.3f}."
    means = [abs(answer.difference.mean) for answer in own if answer.difference is not None]
    return f"{said} The largest bare difference is {max(means):.3f}." if means else said


def _differences(answers: Sequence[Answer]) -> Iterator[Finding]:
    """One for each comparison that is known. number: the mean paired difference; threshold: the 0 that its interval
    leaves out or holds."""
    for answer in answers:
        difference, key = answer.difference, answer.key
        if difference is None or answer.verdict == "not known":
            continue
        sign = "not told apart from" if answer.verdict == "not told apart" else f"{answer.verdict} than"
        sentence = (
            f"{key.task}, {key.model}: {QUESTIONS[key.measure]} of {LOSSES[key.loss]} is {sign} that of BCE "
            f"(difference {difference.mean:.4g}, {difference.low:.4g} to {difference.high:.4g})."
        )
        evidence = {
            "task": key.task,
            "model": key.model,
            "loss": key.loss,
            "measure": key.measure,
            "verdict": answer.verdict,
            "low": difference.low,
            "high": difference.high,
            "pairs": difference.pairs,
        }
        yield Finding("differs" if answer.verdict in ("more", "less") else "not-told-apart", difference.mean, 0.0,
                      sentence, evidence)  # fmt: skip
