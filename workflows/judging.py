"""What of an audit's explanations is measured: the configuration, held against the archive and the model."""

import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from math import ceil
from typing import Any

from storage.objects import Objects
from tasks.explain import ExplainSettings
from tasks.measures.names import GROUPS, MEASURES, Group
from tasks.measures.settings import MeasureSettings
from tasks.methods import GlasMap, Method, Painter
from tasks.profile import ProfileSettings
from tasks.sanity import SanitySettings
from workflows.configuration_measures import Measures
from workflows.models import ModelDescription


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something that was asked for and could not be measured. category: a class's name; None: of all."""

    measure: str
    category: str | None
    reason: str


def write_left_out(run: Objects, left: Sequence[LeftOut], others: Sequence[Mapping[str, Any]]) -> None:
    """Write left_out.json: what is not measured for want of boxes, labels or features, and others as listed."""
    listed = [{"measure": item.measure, "class": item.category, "reason": item.reason} for item in left]
    run.put("left_out.json", json.dumps([*listed, *others], indent=1).encode())


_REASONS = {
    "boxes": "no image of the archive has a box of a class: archive.boxes gives them",
    "labels": "no image of the archive has a label: archive.labels gives them",
    "features": "the model only answers (a black box): it has no features to look at",
}


_OF_IMAGES = {"features": "accuracy.principal", "concepts": "concepts.disjoint", "performance": "probability"}
# Of groups that do not judge cases: a metric that is there wherever any of theirs is.


def unmeasured(groups: AbstractSet[str], measured: AbstractSet[str]) -> list[LeftOut]:
    """Of groups that archive and model allow: those without any of their measures, for nothing that was explained has
    what they look at, and single measures that are missing."""
    left = []
    for group in (GROUPS[name] for name in GROUPS if name in groups):
        names = [item.name for item in MEASURES if item.group == group.name] or [_OF_IMAGES[group.name]]
        missing = [name for name in names if name not in measured]
        told = missing if len(missing) < len(names) else [group.name]
        left += [LeftOut(name, None, _nothing_to_measure(name, group)) for name in told]
    return left


def _nothing_to_measure(name: str, group: Group) -> str:
    reasons = {
        "features": "no method of explain.methods has principal features, or no explained image with a label is in the "
        "sample",
        "concepts": "no explained image has a box in the model's input",
        "performance": "no explained image has a label",
        "pointing game small": "no explained case has small boxes alone: measures.small says what is small",
    }
    if group.sampled != "all":
        return f"no explained image is in the sample: measures.{group.sampled}_images makes it larger"
    boxes = "no explained case has a box of its class; explain.targets: labelled explains the classes of labels"
    return reasons.get(name, boxes)


def measures_of(
    asked: Measures, *, images: int, boxed: int, labelled: int, features: int
) -> tuple[MeasureSettings, list[LeftOut]]:
    """The groups of measures that archive and model allow, and those that they do not, with the reason."""
    there = {"boxes": boxed > 0, "labels": labelled > 0, "features": features > 0}
    groups, left = set(), []
    for name in asked.include:
        missing = [need for need in GROUPS[name].needs if not there[need]]
        groups |= {name} if not missing else set()
        left += [LeftOut(name, None, _REASONS[need]) for need in missing]
    settings = MeasureSettings(
        groups=frozenset(groups),
        masked=min(1.0, asked.masked_images / max(1, images)),
        perturbed=min(1.0, asked.perturbed_images / max(1, images)),
        seed=asked.seed,
        draws=asked.draws,
        noise=asked.noise,
        radius=asked.radius,
        steps=asked.steps,
        level=asked.level,
        concept=asked.concept,
        small=asked.small,
    )
    return settings, left


def sanity_settings(measures: Measures) -> SanitySettings:
    return SanitySettings(frozenset(measures.sanity.checks), measures.sanity.steps, measures.seed)


def judging_forwards(profile: ProfileSettings, explain: ExplainSettings, model: ModelDescription) -> dict[str, float]:
    """Forwards an image of each group of measures beyond those of the maps, at most; groups without any are absent.

    With features masked, the head alone sees a row for each mask, and the model as many forwards as they make batches.
    """
    settings, rules, columns = explain.measures, explain.rules, explain.columns
    variants = len({(method.base, method.selected) for method in explain.methods})
    maps = variants * columns
    masked = len(profile.featured) * ceil((2 * len(model.classes) + 2) / explain.batch)
    costs = {
        "drop": settings.masked * maps,
        "inverse": settings.masked * maps,
        "features": settings.perturbed * masked if model.head == "autograd" else 0.0,
        "infidelity": settings.perturbed * settings.draws,
        "sensitivity": settings.perturbed * settings.draws * (1 + further_forwards(rules, rules, model, columns)),
        "curves": settings.perturbed * maps * 2 * (settings.steps - 1),
    }
    return {group: costs[group] for group in GROUPS if group in settings.groups and costs.get(group, 0.0)}


def further_forwards(
    rules: Mapping[str, Method], bases: Sequence[str] | Mapping[str, Method], model: ModelDescription, columns: int
) -> int:
    """Forwards an image beyond the first, at most. The maps of GLAS share theirs, and all classes a coarse look."""
    costs: dict[object, int] = {}
    for base in bases:
        rule = rules[base]
        if isinstance(rule, GlasMap):
            first = rule.settings.coarser.forwards
            costs[rule.settings] = first + columns * (rule.settings.forwards - first)
        else:
            times = columns if isinstance(rule, Painter) and rule.by_class else 1
            costs[base] = times * rule.forwards(model.features, model.head)
    return sum(costs.values())
