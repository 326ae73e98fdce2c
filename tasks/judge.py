"""Judges the maps of a shard's images: what is measured of a batch, on forwards that methods and measures share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from tasks.boxes import Boxed, Rectangles
from tasks.cams.scaling import individual
from tasks.cams.variants import Variant
from tasks.measures import located
from tasks.measures.curves import insertion_and_deletion
from tasks.measures.masked import drop, increase
from tasks.measures.names import IOU_THRESHOLDS, MEASURES
from tasks.measures.perturbed import infidelity, max_sensitivity, products
from tasks.measures.settings import MeasureSettings
from tasks.methods import Method
from tasks.paintings import Mixed, Painting, paintings
from tasks.walk import Batch, NotFinite


@dataclass(frozen=True, slots=True)
class _Cases:
    """Some places of a table of images and class columns [B,T]: image, column and class of each, [n]."""

    images: Tensor
    columns: Tensor
    classes: Tensor
    shape: torch.Size

    @classmethod
    def where(cls, chosen: Tensor, classes: Tensor) -> "_Cases":
        images, columns = chosen.nonzero(as_tuple=True)
        return cls(images, columns, classes[images, columns], chosen.shape)

    def __len__(self) -> int:
        return len(self.images)

    def of(self, table: Tensor) -> Tensor:
        """The places' values [n,...] of a table [B,T,...]."""
        return table[self.images, self.columns]

    def table(self, values: Tensor) -> Tensor:
        """Values [n] in their places [B,T] float64, NaN elsewhere."""
        found = values.new_full(self.shape, torch.nan, dtype=torch.float64)
        found[self.images, self.columns] = values.double()
        return found

    def parts(self, step: int) -> Iterator["_Cases"]:
        places = zip(self.images.split(step), self.columns.split(step), self.classes.split(step), strict=True)
        return (replace(self, images=image, columns=column, classes=category) for image, column, category in places)


@dataclass(frozen=True)
class _View:
    """One variant's maps of a batch, for the classes [B,T] that have one."""

    batch: Batch
    painting: Painting
    classes: Tensor
    known: Tensor

    @cached_property
    def signed(self) -> Tensor:
        """At input size, [B,T,*size]."""
        return self.painting.at(self.batch.size)

    @cached_property
    def unit(self) -> Tensor:
        """At input size in [0, 1], each map by itself, 1 where it is highest."""
        return individual(self.signed, axes=len(self.batch.size))

    @cached_property
    def aligned(self) -> Tensor:
        return self.painting.aligned(self.batch.size)

    def cases(self, images: Tensor) -> _Cases:
        """Those of some images [B] bool."""
        return _Cases.where(self.known & images[:, None], self.classes)


class Judge:
    """Measures of each map what the settings name. It keeps nothing of batches and maps.

    rectangles: a row for each image of the shard; None: there are no boxes.
    """

    def __init__(self, settings: MeasureSettings, rectangles: Sequence[Rectangles] | None) -> None:
        self._settings = settings
        self._rectangles = rectangles
        self._groups: Mapping[str, Callable[[_View], dict[str, Tensor]]] = {
            "drop": self._drop,
            "inverse": self._inverse,
            "alignment": self._alignment,
            "pointing": self._pointing,
            "iou": self._iou,
            "infidelity": self._infidelity,
            "curves": self._curves,
        }

    def cells(self, batch: Batch) -> int:
        """Of a map that is judged: its size is that of the input. 0: none is."""
        return prod(batch.size) if self._columns else 0

    def columns(self, variants: Sequence[Variant], steps: Sequence[str]) -> list[str]:
        """All that cases have, of variants, and of the iterations of a recursive method."""
        found = [f"{variant.name}.{column}" for variant in variants for column in self._columns]
        overlaps = [column for column in self._columns if column.startswith("iou")]
        return found + [f"{step}.{column}" for step in steps for column in overlaps]

    @property
    def _columns(self) -> list[str]:
        return [measure.column for measure in MEASURES if measure.group in self._settings.groups]

    def of_map(self, batch: Batch, variant: Variant, painting: Painting, classes: Tensor) -> dict[str, Tensor]:
        """`<variant>.<column>` -> float64 [B,T], NaN where it is not measured. classes: [T] or [B,T], -1 for none."""
        return self._named(variant.name, self._groups, batch, painting, classes, variant.missing(classes))

    def of_steps(
        self, batch: Batch, names: Sequence[str], maps: Callable[[], Tensor], classes: Tensor
    ) -> dict[str, Tensor]:
        """The overlap with the boxes of the maps [B,T,R,*size] after each of R iterations, by name; as of_map."""
        found: dict[str, Tensor] = {}
        for name, whole in zip(names, maps().unbind(2), strict=True) if "iou" in self._settings.groups else ():
            found |= self._named(name, {"iou": self._iou}, batch, Mixed(whole), classes, classes < 0)
        return found

    def _named(
        self,
        name: str,
        groups: Mapping[str, Callable[[_View], dict[str, Tensor]]],
        batch: Batch,
        painting: Painting,
        classes: Tensor,
        missing: Tensor,
    ) -> dict[str, Tensor]:
        count = len(batch.rows)
        view = _View(batch, painting, classes.expand(count, -1), ~missing.expand(count, -1))
        found: dict[str, Tensor] = {}
        for group, measure in groups.items():
            if group in self._settings.groups:
                found |= {f"{name}.{column}": values for column, values in measure(view).items()}
        return found

    def _sample(self, batch: Batch, share: float) -> Tensor:
        return torch.from_numpy(self._settings.sampled(batch.probes.names, share)).to(batch.forward.logits.device)

    def _drop(self, view: _View) -> dict[str, Tensor]:
        cases = view.cases(self._sample(view.batch, self._settings.masked))
        before, after = self._before(view, cases), self._behind(view, cases, lambda maps: maps)
        return {"drop": cases.table(drop(before, after)), "increase": cases.table(increase(before, after))}

    def _inverse(self, view: _View) -> dict[str, Tensor]:
        cases = view.cases(self._sample(view.batch, self._settings.masked))
        after = self._behind(view, cases, lambda maps: 1 - maps)
        return {"inverse": cases.table(drop(self._before(view, cases), after))}

    def _before(self, view: _View, cases: _Cases) -> Tensor:
        return view.batch.probes.probabilities[cases.images, cases.classes]

    def _behind(self, view: _View, cases: _Cases, mask: Callable[[Tensor], Tensor]) -> Tensor:
        """The class's probability [n] of each image behind a mask made of its map."""
        probes = view.batch.probes
        answers = [cases.classes.new_zeros(0, dtype=torch.float32)]
        for part in cases.parts(probes.step) if len(cases) else ():
            shown = probes.behind(part.images, mask(part.of(view.unit))[:, None])
            answers.append(probes.predict(shown).gather(1, part.classes[:, None])[:, 0])
        found = torch.cat(answers)
        _check_cases(found, cases.images, view.batch, "the answer behind a map")
        return found

    def _boxed(self, view: _View) -> tuple[_Cases, Boxed]:
        """Cases whose class has boxes in their image, and these boxes: the same for the maps of all methods."""
        every = view.batch.probes.recent(
            "boxes",
            view.classes.tolist(),
            lambda: Boxed.of(self._rectangles, view.batch.rows, view.classes, _plane(view), self._settings.small),
        )
        chosen = view.known & (every.index >= 0)
        cases = _Cases.where(chosen, view.classes)
        return cases, every.take(cases.of(every.index))

    def _alignment(self, view: _View) -> dict[str, Tensor]:
        cases, boxed = self._boxed(view)
        iobb, ior = located.alignment(cases.of(view.aligned), boxed.regions) if len(cases) else _nothing(view, 2)
        return {"iobb": cases.table(iobb), "ior": cases.table(ior)}

    def _pointing(self, view: _View) -> dict[str, Tensor]:
        cases, boxed = self._boxed(view)
        (hit,) = _nothing(view, 1)
        if len(cases):
            hit = located.pointing(cases.of(view.unit), boxed.rectangles, self._settings.level)
        of_small = torch.where(boxed.small, hit.double(), torch.nan)
        return {"pointing": cases.table(hit), "pointing small": cases.table(of_small)}

    def _iou(self, view: _View) -> dict[str, Tensor]:
        cases, boxed = self._boxed(view)
        columns = list(_nothing(view, len(IOU_THRESHOLDS)))
        if len(cases):
            columns = list(located.iou(cases.of(view.unit), boxed.regions, IOU_THRESHOLDS).T)
        return {f"iou {share:g}": cases.table(column) for share, column in zip(IOU_THRESHOLDS, columns, strict=True)}

    def _infidelity(self, view: _View) -> dict[str, Tensor]:
        cases = view.cases(self._sample(view.batch, self._settings.perturbed))
        if not len(cases):
            return {"infidelity": cases.table(_nothing(view, 1)[0])}
        # Of the whole sample, whichever of it has a map here: so the forwards are the same for all methods and classes.
        (sample,) = self._sample(view.batch, self._settings.perturbed).nonzero(as_tuple=True)
        places = torch.searchsorted(sample, cases.images)
        maps, ours, changes = cases.of(view.signed), [], []
        for noise, change in view.batch.probes.shaken(sample.tolist(), self._settings.draws, self._settings.noise):
            _check_cases(change, sample, view.batch, "the answer under noise")
            ours.append(products(noise, maps, places))
            changes.append(change[places, cases.classes])
        return {"infidelity": cases.table(infidelity(torch.stack(ours), torch.stack(changes)))}

    def _curves(self, view: _View) -> dict[str, Tensor]:
        cases = view.cases(self._sample(view.batch, self._settings.perturbed))
        if not len(cases):
            return dict.fromkeys(("insertion", "deletion"), cases.table(_nothing(view, 1)[0]))
        inserted, deleted = insertion_and_deletion(
            view.batch.probes, cases.of(view.unit), cases.images, cases.classes, steps=self._settings.steps
        )
        _check_cases(inserted + deleted, cases.images, view.batch, "an answer to insertion or deletion")
        return {"insertion": cases.table(inserted), "deletion": cases.table(deleted)}

    def of_noise(
        self, batch: Batch, targets: Tensor, variants: Sequence[Variant], rules: Mapping[str, Method]
    ) -> dict[str, Tensor]:
        """Max-sensitivity of all variants' native maps, as of_map: the noisy forwards serve them all."""
        if "sensitivity" not in self._settings.groups:
            return {}
        classes = targets.expand(len(batch.rows), -1)
        sample = self._sample(batch, self._settings.perturbed)
        (images,) = sample.nonzero(as_tuple=True)
        found = {
            f"{variant.name}.sensitivity": torch.full_like(classes, torch.nan, dtype=torch.float64)
            for variant in variants
        }
        noisy = list(self._noisy(batch, images)) if len(images) else []
        for columns, originals in _native(batch, targets, variants, rules) if noisy else ():
            chosen = classes[images][:, columns]
            largest = {name: chosen.new_zeros(chosen.shape, dtype=torch.float64) for name in originals}
            for other in noisy:
                for part, maps in _native(other, chosen, variants, rules):
                    for name, changed in maps.items():
                        original = originals[name][images][:, part]
                        change = max_sensitivity(original.flatten(0, 1), [changed.flatten(0, 1)])
                        _check_cases(change.unflatten(0, changed.shape[:2]), images, batch, f"the noisy map of {name}")
                        worst = torch.maximum(largest[name][:, part], change.unflatten(0, changed.shape[:2]))
                        largest[name][:, part] = worst
            for variant in variants:
                known = ~variant.missing(chosen)
                values = torch.where(known, largest[variant.name], torch.nan)
                found[f"{variant.name}.sensitivity"][images[:, None], _places(columns, classes)] = values
        return found

    def _noisy(self, batch: Batch, images: Tensor) -> Iterator[Batch]:
        """The same images under each draw of noise."""
        rows = batch.rows[images.cpu().numpy()]
        for probes in batch.probes.nudged(images.tolist(), self._settings.draws, self._settings.radius):
            yield Batch(rows, probes.forward, batch.head, probes, batch.size)


def _native(
    batch: Batch, targets: Tensor, variants: Sequence[Variant], rules: Mapping[str, Method]
) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Signed maps [B,t,*native] by variant, some columns of targets at a time."""
    native = tuple(batch.forward.activation.shape[2:])
    for columns, evidence in batch.evidence(targets, prod(native)):
        painted = paintings(rules, variants, evidence, targets[..., columns])
        yield columns, {variant.name: painting.at(native) for variant, painting in painted}


def _places(columns: slice, classes: Tensor) -> Tensor:
    return torch.arange(*columns.indices(classes.shape[1]), device=classes.device)


def _check_cases(values: Tensor, images: Tensor, batch: Batch, what: str) -> None:
    """Refuse the images [n] of the batch whose values [n,...] are not all finite."""
    finite = torch.isfinite(values).flatten(1).all(1) if values.ndim > 1 else torch.isfinite(values)
    if not bool(finite.all()):
        good = torch.ones(len(batch.rows), dtype=torch.bool, device=values.device)
        good[images[~finite]] = False
        raise NotFinite(good, what)


def _plane(view: _View) -> tuple[int, int]:
    """Boxes are of images, not of volumes."""
    height, width = view.batch.size
    return height, width


def _nothing(view: _View, columns: int) -> list[Tensor]:
    """No values, of each of some columns."""
    return [torch.zeros(0, dtype=torch.float64, device=view.known.device)] * columns
