"""One seed of the study, from handwriting to figures: canvases, classifier, memories, maps, measures."""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from examples.co_occurrence.measures import Floats, Measures, by_area, measured
from examples.co_occurrence.memories import fit_memory
from examples.co_occurrence.scenes import SIDE, TARGETS, Cast, Drawn, Ints, Plan, Scenes, compose, draw
from examples.co_occurrence.scenes_model import classifier, factory
from examples.digits.canvases import Digits, read_digits
from examples.digits.training import fit, normalised
from tasks.cams.mcam import MCam
from tasks.cams.names import MethodName
from tasks.classifier import Classifier
from tasks.explain import ExplainSettings, explain_shard
from tasks.fitting import Recipe, decisions
from tasks.memory import Memory, pooled
from tasks.methods import METHODS
from tasks.profile import Truth
from tasks.slots import find_slots, noise_cosines

BASELINES = ("grad-cam", "grad-cam++", "eigen-cam", "eigen-grad-cam", "ablation-cam")
MCAM, LITERAL, CHANCE = "m-cam", "m-cam, r = 1", "chance, by area"
MEMORIES = (MCAM, LITERAL)
NO_LIKENESS = ", tau = 0"  # behind the name of M-CAM
METHODS_SHOWN = (*BASELINES, MCAM, MCAM + NO_LIKENESS, LITERAL, CHANCE)
_TEST_SHARE = 0.3  # of the handwriting, which only test canvases show
_BATCH = 64
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sizes:
    """unit: training canvases with the rare target, of 36 in all; each: test canvases of each kind; epochs: of the
    classifier; recipe: of the memory, but for its seed and radius 1 in the reference."""

    unit: int = 60
    each: int = 60
    epochs: int = 40
    recipe: Recipe = field(default_factory=Recipe)


@dataclass(frozen=True, slots=True)
class Shown:
    """One test canvas for the picture. boxes: of target, context and the third digit; probabilities: of the target, by
    the head and by the memory; maps: method -> signed [48,48]."""

    target: str
    canvas: NDArray[np.float32]
    boxes: Ints
    probabilities: tuple[float, ...]
    maps: Mapping[str, Floats]


@dataclass(frozen=True, slots=True)
class Outcome:
    """maps: rows of figures of maps; answers: rows of figures of the classifier and its memories."""

    maps: list[dict[str, Any]]
    answers: list[dict[str, Any]]
    shown: list[Shown]


@dataclass(frozen=True, slots=True)
class _Test:
    """Test canvases and what is known of them. logits [N,10]: of the head."""

    scenes: Scenes
    drawn: Drawn
    logits: Tensor
    query: Tensor


def chain(seed: int, sizes: Sizes) -> Outcome:
    """The same for the same seed and sizes, on one thread."""
    torch.set_num_threads(1)
    cast = Cast.drawn(seed)
    pool, unseen = handwriting(seed)
    learned = compose(Plan.training(sizes.unit), cast, pool, seed)
    explained = classifier(_trained(learned, pool, sizes.epochs, seed))
    pixels = draw(learned, pool, seed).pixels
    activation, logits = _activations(explained, pixels)
    labels = torch.from_numpy(learned.labels)
    recipe = replace(sizes.recipe, seed=seed)
    memory, figures = fit_memory(activation, labels, logits, explained.task, recipe)
    literal, literal_figures = fit_memory(activation, labels, logits, explained.task, replace(recipe, radius=1.0))

    scenes = compose(Plan.test(sizes.each), cast, unseen, seed + 1_000_000)
    drawn = draw(scenes, unseen, seed + 1_000_000)
    seen, logits = _activations(explained, drawn.pixels)
    test = _Test(scenes, drawn, logits, pooled(seen))
    rules = {MCAM: MCam(memory), LITERAL: MCam(literal), MCAM + NO_LIKENESS: MCam(without_likeness(memory))}
    maps, shown = [], []
    for target in range(len(TARGETS)):
        for company in (True, False):
            rows = scenes.where(target, context=company)
            found = _maps(explained, drawn.pixels[rows], rows, cast.targets[target], rules, seed)
            maps += _rows(seed, target, company, found, rows, test, cast)
            if company and TARGETS[target] != "medium":
                shown += _shown(target, found, rows[:2], test, cast, (memory,))
    answers = [
        *_answers(seed, "head", logits, test, cast),
        *_answers(seed, MCAM, memory(test.query), test, cast, figures, memory),
        *_answers(seed, LITERAL, literal(test.query), test, cast, literal_figures, literal),
    ]
    return Outcome(maps, answers, shown)


def handwriting(seed: int) -> tuple[Digits, Digits]:
    """What is learned from, and the rest, in which each digit has the same share."""
    digits = read_digits()
    order = np.random.default_rng([seed, 3]).permutation(len(digits.values))
    order = order[np.argsort(digits.values[order], kind="stable")]
    place = np.concatenate([np.arange(count) / count for count in np.bincount(digits.values)])
    return digits.take(order[place >= _TEST_SHARE]), digits.take(order[place < _TEST_SHARE])


def _trained(scenes: Scenes, pool: Digits, epochs: int, seed: int) -> torch.nn.Module:
    """Each epoch draws the digits of a canvas at other places; which digits they are stays."""
    labels = torch.from_numpy(scenes.labels)

    def canvases(epoch: int) -> tuple[Tensor, Tensor]:
        return normalised(draw(scenes, pool, 1_000 * (seed + 1) + epoch).pixels), labels

    criterion = binary_cross_entropy_with_logits
    return fit(factory, canvases, criterion, images=len(labels), epochs=epochs, seed=seed, say=_LOG.debug)


def _activations(explained: Classifier, pixels: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    """A [N,64,12,12] and the head's logits [N,10] of canvases."""
    module = explained.module
    with torch.no_grad():
        parts = [module.get_submodule("features")(inputs) for inputs in normalised(pixels).split(_BATCH)]
        activation = torch.cat(parts).contiguous()
        logits: Tensor = module.get_submodule("classifier")(pooled(activation))
    return activation, logits


def without_likeness(memory: Memory) -> Memory:
    """A memory whose slots look like nothing: tau is 0, and M-CAM is Grad-CAM of its classifier."""
    blank = copy.deepcopy(memory)
    with torch.no_grad():
        blank.spatial.zero_()
    return blank


def _maps(
    explained: Classifier,
    pixels: NDArray[np.float32],
    rows: Ints,
    target: int,
    rules: Mapping[str, MCam],
    seed: int,
) -> dict[str, Floats]:
    """Method -> signed maps [N,48,48] of one class."""
    unlabelled = Truth(np.zeros(len(pixels), bool), np.zeros((len(pixels), 10), bool))
    names = [f"{seed}-{row}" for row in rows]

    def drawn(methods: tuple[str, ...], mcam: MCam) -> dict[str, Any]:
        settings = ExplainSettings(
            tuple(map(MethodName, methods)), (target,), map="input", rules=dict(METHODS) | {MCAM: mcam}
        )
        done = explain_shard(explained, list(pixels), names, unlabelled, settings, limits={}, masks={})
        if done.failures:
            raise SystemExit(f"not explained: {done.failures}")
        return {method: maps[:, 0].astype(np.float64) for method, maps in done.maps.items()}

    found = drawn((*BASELINES, MCAM), rules[MCAM])
    found |= {name: drawn((MCAM,), rule)[MCAM] for name, rule in rules.items() if name != MCAM}
    return found


def _rows(
    seed: int, target: int, company: bool, found: Mapping[str, Floats], rows: Ints, test: _Test, cast: Cast
) -> list[dict[str, Any]]:
    """Means of the measures over all canvases of a kind, and over those where the head finds the target."""
    boxes = test.drawn.boxes[rows]
    context = boxes[:, 1] if company else None
    right = (test.logits[rows, cast.targets[target]] > 0).numpy()
    measures: dict[str, Measures] = {method: measured(maps, boxes[:, 0], context) for method, maps in found.items()}
    measures[CHANCE] = by_area(boxes[:, 0], context, SIDE)
    where = {"seed": seed, "target": TARGETS[target], "context": "with" if company else "without"}
    return [
        where | {"canvases": name, "method": method, "n": int(chosen.sum())} | measure.take(chosen).means()
        for name, chosen in (("all", np.ones_like(right)), ("right", right))
        for method, measure in measures.items()
    ]


def _shown(
    target: int, found: Mapping[str, Floats], rows: Ints, test: _Test, cast: Cast, memories: Sequence[Memory]
) -> list[Shown]:
    digit = cast.targets[target]
    with torch.no_grad():
        every = (test.logits, *(memory(test.query) for memory in memories))
        answers = [values[rows, digit].sigmoid().tolist() for values in every]
    return [
        Shown(
            f"{TARGETS[target]}: {digit}, with {cast.context}",
            test.drawn.pixels[row],
            test.drawn.boxes[row],
            tuple(answer[place] for answer in answers),
            {method: found[method][place] for method in (*BASELINES, MCAM)},
        )
        for place, row in enumerate(rows.tolist())
    ]


def _answers(
    seed: int,
    name: str,
    logits: Tensor,
    test: _Test,
    cast: Cast,
    figures: Mapping[str, float] | None = None,
    memory: Memory | None = None,
) -> list[dict[str, Any]]:
    """Recall of each target with its context and without, and how often it is seen where only the context is."""
    found, scenes = decisions(logits.detach(), "multi-label").numpy(), test.scenes
    told: dict[str, float] = {}
    for target, digit in enumerate(cast.targets):
        kind = TARGETS[target]
        told[f"recall.{kind}.with"] = found[scenes.where(target, context=True), digit].mean()
        told[f"recall.{kind}.without"] = found[scenes.where(target, context=False), digit].mean()
        told[f"false.{kind}.context"] = found[scenes.where(-1, context=True), digit].mean()
        told[f"false.{kind}.neither"] = found[scenes.where(-1, context=False), digit].mean()
    told["accuracy"] = (found == scenes.labels.astype(bool)).mean()
    if figures is not None and memory is not None:
        head = decisions(test.logits, "multi-label").numpy()
        told["agreement.test"] = (found == head).mean()
        for target, digit in enumerate(cast.targets):
            rows = scenes.where(target, context=True)
            told[f"agreement.{TARGETS[target]}.with"] = (found[rows, digit] == head[rows, digit]).mean()
        told |= {f"fit.{key}": value for key, value in figures.items()}
        told |= _slots(seed, memory, test, cast)
    return [{"seed": seed, "classifier": name, "figure": key, "value": float(value)} for key, value in told.items()]


def _slots(seed: int, memory: Memory, test: _Test, cast: Cast) -> dict[str, float]:
    """Of the targets on canvases with their context: whether the search finds a slot that counts, and the same one."""
    told: dict[str, float] = {}
    for target, digit in enumerate(cast.targets):
        rows = test.scenes.where(target, context=True)
        noise = noise_cosines([f"{seed}-{row}" for row in rows], test.query.shape[1], memory.slots)
        found = find_slots(memory, test.query[rows], noise)
        told[f"slot.steady.{TARGETS[target]}"] = float(found.steady[:, digit].mean())
        told[f"slot.positive.{TARGETS[target]}"] = float(found.positive[:, digit].float().mean())
    return told
