"""Writes docs/images/methods/: `python -m docs.make_pictures`, in about a quarter of an hour on one core.

Images and weights are real and come from installed packages; the digits classifier is trained as its example does.
Every map comes from the functions that the two passes run, and every seed is fixed. M-CAM is drawn for digits only: its
memory learns from labelled training images, and those of the photographs' classifier do not come with a package.
"""

import csv
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib import font_manager
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from examples.co_occurrence.memories import fit_memory
from examples.digits import make as digits
from examples.real import make as real
from storage.decode import decode_image
from tasks.cams.names import BASE_METHODS, MEMORY_METHODS, MethodName
from tasks.capture import capturing
from tasks.classifier import Classifier
from tasks.explain import STEPS, ExplainSettings, explain_shard
from tasks.fitting import Recipe
from tasks.memory import Memory
from tasks.profile import ProfileSettings, Truth, profile_shard
from workflows.configuration import Explain, Glas, Perturbation
from workflows.configuration_baselines import Baselines
from workflows.configuration_file import load
from workflows.models import build_classifier, fetch_model
from workflows.rules import rules_of

Array = NDArray[Any]

PICTURES = Path(__file__).parent / "images" / "methods"

_PHOTOGRAPHS = ("coffee.png", "chelsea.png", "camera.png")
_RADIOGRAPH = "RG1_UNCR.dcm"
# A forward for each feature, draw and step, and EfficientNet-Lite0 has 1280 features: for the first photograph only.
_BY_FEATURE = ("score-cam", "ss-cam", "is-cam")
_UNFITTED = tuple(base for base in BASE_METHODS if base not in MEMORY_METHODS)
_OTHERS = tuple(base for base in _UNFITTED if base not in _BY_FEATURE)
_FEWER = Explain(
    perturbation=Perturbation(ss_draws=1, is_steps=2),
    glas=Glas(points=9, iterations=5),
    baselines=Baselines(rise_masks=500, lime_samples=300),
)
_FEWER_SAID = (
    "glas and rglas: 9 x 9 points instead of 15 x 15; rglas: 5 iterations at most instead of 10.",
    "rise: 500 masks instead of 2000; lime: 300 samples instead of 1000.",
)
_FEWEST_SAID = "ss-cam: 1 draw instead of 35; is-cam: 2 steps instead of 10; they and score-cam: first image only."
_LEFT_OUT_SAID = "Left out, for what they cost: score-cam, ss-cam, is-cam."
_SCALE_SAID = "Each map is divided by its own largest magnitude, that of rise after its minimum is taken off."
_BATCH = 8  # on one core the fastest
_DIGIT = "three"
_FORMATS = {".dcm": "dicom", ".png": "png", ".jpg": "jpeg"}


@dataclass(frozen=True, slots=True)
class Case:
    """One image. picture: [H,W,3] uint8 as the classifier sees it; maps: method -> [H,W] of the explained class."""

    name: str
    picture: Array
    category: str
    probability: float
    maps: Mapping[str, Array]


def cases_of(
    classifier: Classifier,
    images: Mapping[str, Array],
    explain: Explain,
    *,
    bases: Sequence[str] = BASE_METHODS,
    targets: str | tuple[int] = "predicted",
    limits: Mapping[str, Array] | None = None,
    memory: Memory | None = None,
) -> list[Case]:
    """Explain a class of decoded images, by name: raw, and on the common scale by methods whose limits are given.

    memory: of M-CAM, where it is among the methods.
    """
    limits = limits or {}
    methods = (*map(MethodName, bases), *(MethodName(base, scaled=True) for base in limits))
    done = explain_shard(
        classifier,
        list(images.values()),
        list(images),
        _unlabelled(classifier, len(images)),
        ExplainSettings(methods, targets, map="input", batch=_BATCH, rules=rules_of(explain, bases, memory=memory)),
        limits=limits,
        masks={},
    )
    if done.failures:
        raise SystemExit(f"not explained: {done.failures}")
    seen = classifier.preprocess.picture(list(images.values()), classifier.device)
    return [
        Case(
            name=name,
            picture=(picture.expand(3, -1, -1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy(),
            category=classifier.classes[done.classes[row, 0]],
            probability=float(done.probabilities[row, done.classes[row, 0]]),
            maps={
                method: maps[row, 0].astype(np.float32)
                for method, maps in done.maps.items()
                if not method.endswith(STEPS)
            },
        )
        for row, (name, picture) in enumerate(zip(images, seen, strict=True))
    ]


def _unlabelled(classifier: Classifier, images: int) -> Truth:
    return Truth(np.zeros(images, bool), np.zeros((images, len(classifier.classes)), bool))


def _classifier(folder: Path) -> Classifier:
    """The one that an example's audit.yaml describes."""
    model = load(folder / "audit.yaml").model
    return build_classifier(fetch_model(model, folder=str(folder)), "cpu")


def _decoded(path: Path) -> Array:
    return decode_image(path.read_bytes(), format=_FORMATS[path.suffix])


def paint(picture: Array, saliency: Array, most: float) -> Array:
    """Lay a signed map [H,W] over a picture in grey: red above 0, blue below, clear at 0, strongest at `most`."""
    level = np.clip(saliency / most, -1, 1) if most > 0 else np.zeros_like(saliency)
    grey = 0.15 + 0.7 * (picture @ np.array([0.299, 0.587, 0.114])) / 255
    colours = matplotlib.colormaps["RdBu_r"](0.5 + 0.42 * level)[..., :3]
    opacity = 0.85 * np.abs(level)[..., None]
    return np.asarray(np.round(255 * (grey[..., None] * (1 - opacity) + colours * opacity)), np.uint8)


def _painted(case: Case, method: str) -> Array:
    """On its own scale, but for a map on the common scale: that one from its middle, 0.5. RISE: from its minimum."""
    saliency = case.maps[method]
    if method == "rise":  # all of it lies far above 0, at the mean answer to the masks
        saliency = saliency - saliency.min()
    if MethodName.parse(method).scaled:
        return paint(case.picture, saliency - 0.5, 0.5)
    return paint(case.picture, saliency, float(np.abs(saliency).max()))


@dataclass(frozen=True, slots=True)
class Row:
    """Pictures side by side. heading: a line above; label: left of them; captions: one above each, or none."""

    pictures: Sequence[Array]
    captions: Sequence[str] = ()
    heading: str = ""
    label: str = ""


_GAP, _LINE, _TEXT = 6, 18, 12
_INK, _PAPER = (30, 30, 30), (255, 255, 255)


def sheet(rows: Sequence[Row], notes: Sequence[str], *, side: int, margin: int = _GAP) -> Image.Image:
    """Rows below one another, pictures `side` wide, labels in the margin; the legend and the notes at the end."""
    width = margin + max(len(row.pictures) for row in rows) * (side + _GAP)
    height = _GAP + sum(_height(row, side) for row in rows) + (1 + len(notes)) * _LINE + 2 * _GAP
    image = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(image)
    top = _GAP
    for row in rows:
        if row.heading:
            pen.text((_GAP, top + _GAP), row.heading, _INK, _font(_TEXT + 2))
            top += _LINE + 2 * _GAP
        if row.captions:
            for place, caption in enumerate(row.captions):
                pen.text((margin + place * (side + _GAP), top), caption, _INK, _font(_TEXT))
            top += _LINE
        if row.label:
            pen.text((_GAP, top + side // 2 - _TEXT // 2), row.label, _INK, _font(_TEXT))
        for place, picture in enumerate(row.pictures):
            image.paste(_resized(picture, side), (margin + place * (side + _GAP), top))
        top += side + _GAP
    _legend(image, pen, top + _GAP)
    for number, note in enumerate(notes, 1):
        pen.text((_GAP, top + _GAP + number * _LINE), note, _INK, _font(_TEXT))
    return image


def _height(row: Row, side: int) -> int:
    return (_LINE + 2 * _GAP if row.heading else 0) + (_LINE if row.captions else 0) + side + _GAP


def _resized(picture: Array, side: int) -> Image.Image:
    image = Image.fromarray(picture)
    return image if image.width == side else image.resize((side, side), Image.Resampling.LANCZOS)


def _legend(image: Image.Image, pen: ImageDraw.ImageDraw, top: int) -> None:
    """Against the class, nothing, for the class, as the maps have it over middle grey."""
    left, width = _GAP, 120
    before, after = "against the class", "for the class"
    pen.text((left, top), before, _INK, _font(_TEXT))
    left += round(pen.textlength(before, _font(_TEXT))) + _GAP
    strip = np.repeat(np.linspace(-1, 1, width)[None], _TEXT, axis=0)
    image.paste(Image.fromarray(paint(np.full((*strip.shape, 3), 128, np.uint8), strip, 1.0)), (left, top + 2))
    pen.text((left + width + _GAP, top), after, _INK, _font(_TEXT))


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)


def _save(image: Image.Image, name: str) -> None:
    """With a palette of 256 colours that reaches the rare ones too, such as the blue end of the legend."""
    path = PICTURES / f"{name}.png"
    palette = image.quantize(256, Image.Quantize.MAXCOVERAGE)
    image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def _block(case: Case, remark: str = "", columns: int = 6) -> list[Row]:
    """The image and its maps in rows, each picture with its name, below what was predicted."""
    captions = ["image", *case.maps]
    pictures = [case.picture, *(_painted(case, method) for method in case.maps)]
    starts = range(0, len(captions), columns)
    heading = f"{case.name}: predicted {case.category!r}, probability {case.probability:.2f}{remark}"
    rows = [Row(pictures[at : at + columns], captions[at : at + columns]) for at in starts]
    return [Row(rows[0].pictures, rows[0].captions, heading=heading), *rows[1:]]


def write_real(folder: Path) -> None:
    """The sheets of photographs and of a radiograph, and each method's own picture."""
    real.make(folder)
    classifier = _classifier(folder)
    archive = folder / "archive"
    first, *others = [archive / "scikit-image" / name for name in _PHOTOGRAPHS]
    others.append(archive / "pydicom-data" / _RADIOGRAPH)
    (shown,) = cases_of(classifier, {first.name: _decoded(first)}, _FEWER, bases=_UNFITTED)
    rest = cases_of(classifier, {path.name: _decoded(path) for path in others}, _FEWER, bases=_OTHERS)
    *photographs, radiograph = rest
    model = "EfficientNet-Lite0, ImageNet weights, last spatial layer (7 x 7 cells)."
    rows = [row for case in (shown, *photographs) for row in _block(case)]
    _save(sheet(rows, [model, _SCALE_SAID, *_FEWER_SAID, _FEWEST_SAID], side=144), "photographs")
    notes = [
        "This classifier knows no radiographs: class and places mean nothing here. It shows what the methods do.",
        model,
        _SCALE_SAID,
        *_FEWER_SAID,
        _LEFT_OUT_SAID,
    ]
    _save(sheet(_block(radiograph, " (it knows no radiographs)"), notes, side=144), "radiograph")
    for method in _UNFITTED:
        _save_own(shown, method)


def _save_own(case: Case, method: str) -> None:
    row = Row((case.picture, _painted(case, method)), (case.category, method))
    _save(sheet([row], (), side=192), method)


def write_digits(folder: Path) -> None:
    """The sheet of one digit a class from the test split: what speaks for a three in each, and what against.

    And M-CAM's own picture.
    """
    digits.make(folder)
    classifier = _classifier(folder)
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as file:
        listed = list(csv.DictReader(file))
    images = {row["image"]: _decoded(folder / "archive" / row["image"]) for row in listed}
    truth = _unlabelled(classifier, len(images))
    settings = ProfileSettings(("grad-cam",))
    limits = profile_shard(classifier, list(images.values()), list(images), truth, settings).profile.limits("grad-cam")
    first: dict[str, str] = {}
    for row in listed:
        if row["split"] == "test":
            first.setdefault(row["label"], row["image"])
    chosen = {first[name]: images[first[name]] for name in classifier.classes}
    target = classifier.classes.index(_DIGIT)
    learned = {row["image"]: row["label"] for row in listed if row["split"] == "train"}
    memory, agreement = _memory(classifier, {name: images[name] for name in learned}, list(learned.values()))
    cases = cases_of(classifier, chosen, Explain(), targets=(target,), limits={"grad-cam": limits}, memory=memory)
    captions = [f"p = {case.probability:.2f}" for case in cases]
    rows = [Row([case.picture for case in cases], captions, label="image")]
    rows += [Row([_painted(case, method) for case in cases], label=method) for method in cases[0].maps]
    notes = [
        f"Every map explains the class {_DIGIT!r}; p is its probability. Classifier of examples/digits, 8 x 8 cells.",
        _SCALE_SAID,
        f"Only s-grad-cam is not: it is on the scale of all {len(images)} images "
        "(clear at 0.5, red at 1, blue at 0 and below).",
        f"m-cam explains the classifier of its memory, fitted to the {len(learned)} images of the training split:",
        f"on those that were held out it decides as the network does {agreement:.0%} of the time.",
    ]
    _save(sheet(rows, notes, side=64, margin=168), "digits")
    for method in MEMORY_METHODS:
        _save_own(cases[target], method)


def _memory(classifier: Classifier, images: Mapping[str, Array], labels: Sequence[str]) -> tuple[Memory, float]:
    """Fitted for all epochs to labelled images, and how often it decides as the head does."""
    known = torch.tensor([classifier.classes.index(label) for label in labels])
    one_hot = torch.nn.functional.one_hot(known, len(classifier.classes)).float()
    with capturing(classifier) as capture:
        forwards = [capture(part) for part in classifier.preprocess(list(images.values()), classifier.device).split(64)]
        activation, logits = (
            torch.cat([getattr(forward, part) for forward in forwards]) for part in ("activation", "logits")
        )
    memory, figures = fit_memory(activation, one_hot, logits, classifier.task, Recipe())
    print(f"memory: {dict(figures)}")
    return memory, figures["held-out.agreement"]


def main() -> None:
    torch.set_num_threads(1)
    PICTURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        write_digits(Path(folder, "digits"))
        write_real(Path(folder, "real"))


if __name__ == "__main__":
    main()
