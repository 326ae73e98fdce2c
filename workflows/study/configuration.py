"""The one YAML file that describes an imbalance study, in the words of an audit's wherever it means the same."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from workflows.configuration import Archive, Engine, Explain, Report, Tracking
from workflows.configuration_measures import Measures
from workflows.sections import Positive, Section

_Share = Annotated[float, Field(gt=0, lt=1)]


class Split(Section):
    """Who is learned from, who ends the training, who is audited. All images of a patient are in one part."""

    train: str | None = Field(None, description="split of the label file that is learned from; null: drawn here")
    validation: _Share | str = Field(0.1, description="share of the patients that `train` and this have, or a split")
    test: _Share | str = Field(0.2, description="share of all patients; a split where `train` is one")
    seed: int = Field(0, ge=0, description="of what is drawn")

    @model_validator(mode="after")
    def _named_together(self) -> "Split":
        if isinstance(self.test, str) != (self.train is not None):
            raise ValueError("`train` and `test` are names of splits both, or neither")
        if isinstance(self.validation, str) and self.train is None:
            raise ValueError("`validation` is a name of a split only where `train` and `test` are")
        if self.train is not None and len({self.train, self.validation, self.test}) < 3:
            raise ValueError("expected three different splits")
        return self


class Losses(Section):
    """What the losses leave open."""

    alpha: float = Field(0.25, gt=0, lt=1, description="alpha of Focal: weight of positives, 1 - alpha of negatives")
    gamma: float = Field(2.0, ge=0, description="gamma of Focal and CB-Focal: how little decided cases count")
    beta: float = Field(0.9999, gt=0, lt=1, description="beta of CB-Focal: a class weighs (1 - beta) / (1 - beta^n)")


class Architecture(Section):
    """A classifier that is trained."""

    name: str | None = Field(None, pattern=r"^[\w.-]+$", description="in tables; none: what the source calls it")
    source: str = Field(description="torchvision:NAME, lucency:t-densenet121 or python:module.factory")
    weights: str | None = Field(
        "DEFAULT", description="that training begins with: a file or URL, DEFAULT for ImageNet's; null: drawn"
    )
    layer: str = Field("auto", description="target layer of the audits, as in model.layer")
    concept: float = Field(0.01, gt=0, lt=1, description="q: as measures.concept, of this classifier's features")
    trust: Literal["weights", "pickle"] = Field("weights", description="as model.trust")

    @property
    def called(self) -> str:
        return self.name or self.source.partition(":")[2]


class Augmentation(Section):
    """By how much an image is changed, by chance, each time it is learned from."""

    crop: float = Field(0.7, gt=0, le=1, description="least share of the area that a random crop keeps; 1: no crop")
    flip: float = Field(0.5, ge=0, le=1, description="how often left and right are swapped")
    brightness: float = Field(0.2, ge=0, lt=1, description="factor within 1 - this and 1 + this")
    contrast: float = Field(0.2, ge=0, lt=1, description="factor within 1 - this and 1 + this")


class Training(Section):
    """How each classifier is trained: the recipe of the paper, and what it leaves open."""

    epochs: Positive = Field(50, description="at most")
    batch: Positive = Field(512, description="images a step, over all workers")
    micro: Positive = Field(
        64, description="images a forward on one worker: gradients add up to a batch; batch norm sees so many at once"
    )
    rate: float = Field(4e-4, gt=0, allow_inf_nan=False, description="first learning rate of Adam; falls as a cosine")
    decay: float = Field(1e-6, ge=0, allow_inf_nan=False, description="weight decay")
    patience: Positive | None = Field(10, description="epochs without a better `criterion` that end it; null: none do")
    criterion: Literal["auroc", "average precision", "loss"] = Field(
        "auroc", description="on the validation images; the weights of the best epoch are kept"
    )
    precision: Literal["float32", "bf16"] = Field("float32", description="bf16: mixed precision")
    side: Positive = Field(224, description="height and width that the classifiers see")
    stored: Positive = Field(256, description="height and width in which pictures are kept for training")
    mean: list[float] = Field([0.485, 0.456, 0.406], min_length=3, max_length=3, description="a channel, in [0, 1]")
    std: list[float] = Field([0.229, 0.224, 0.225], min_length=3, max_length=3)
    augmentation: Augmentation = Augmentation()
    mixed: Positive = Field(4, description="shards whose images are shuffled together")
    workers: Positive | None = Field(
        None, description="processes that train one classifier together, and read all of it each; none: one"
    )
    at_once: Positive | None = Field(None, description="classifiers trained at once; none: as many as have room")

    @model_validator(mode="after")
    def _stored_large_enough(self) -> "Training":
        if self.stored < self.side:
            raise ValueError(f"stored: {self.stored} is less than side: {self.side}")
        return self


def _resnet_and_densenet() -> list[Architecture]:
    return [
        Architecture(source="torchvision:resnet50", concept=0.04),
        Architecture(source="lucency:t-densenet121", concept=0.01),
    ]


# What sections of an audit say in a study where the file is silent, also about one key of a section that it has.
_SAID: dict[str, dict[str, Any]] = {
    "explain": {"methods": ["grad-cam"], "targets": "labelled"},
    "measures": {"include": ["alignment", "concepts", "performance", "pointing"], "sanity": {"checks": []}},
    "report": {"title": "Imbalance study"},
}


def _merged(said: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    inner = {key: _merged(said[key], value) for key, value in given.items() if isinstance(said.get(key), dict)}
    return said | given | inner


class Study(Section):
    """One study of what losses against imbalance do to what classifiers look at."""

    run: str = Field(description="directory of the study, or object-store URL")
    archive: Archive
    split: Split = Split()
    classes: list[str] | None = Field(None, min_length=1, description="labels that are learned; none: all there are")
    tasks: list[Literal["multi-label", "binary"]] = Field(
        ["multi-label", "binary"], min_length=1, description="binary: any label at all, against archive.labels.healthy"
    )
    models: list[Architecture] = Field(default_factory=_resnet_and_densenet, min_length=1)
    losses: list[Literal["bce", "wbce", "focal", "cb-focal"]] = Field(
        ["bce", "wbce", "focal", "cb-focal"], min_length=1
    )
    loss: Losses = Losses()
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        [0, 1, 2], min_length=1, description="a trial each: of drawn weights, the order of images and their changes"
    )
    training: Training = Training()
    explain: Explain = Explain.model_validate(_SAID["explain"])
    measures: Measures = Measures.model_validate(_SAID["measures"])
    engine: Engine = Engine()
    mlflow: Tracking = Tracking()
    report: Report = Report.model_validate(_SAID["report"])

    @model_validator(mode="before")
    @classmethod
    def _say_what_is_not_said(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        given = {name: tree[name] for name in _SAID if isinstance(tree.get(name), dict)}
        return tree | {name: _merged(_SAID[name], section) for name, section in given.items()}

    @model_validator(mode="after")
    def _can_be_studied(self) -> "Study":
        archive, named = self.archive, self.split.train is not None
        if archive.labels is None:
            raise ValueError("archive.labels: missing; classifiers are trained from labels")
        if archive.split is not None:
            raise ValueError("archive.split: leave it out; `split` says which images are for what")
        if archive.images == "volumes":
            raise ValueError("archive.images: the study trains classifiers of single images, not of volumes")
        if named and archive.labels.split is None:
            raise ValueError("split: names of splits need archive.labels.split, the column that has them")
        if "grad-cam" not in self.explain.methods:
            raise ValueError("explain.methods: expected grad-cam among them; classifiers are compared by it")
        if "m-cam" in self.explain.bases:
            raise ValueError("explain.methods: m-cam needs a memory of each classifier; audit these one by one")
        if self.explain.targets not in ("labelled", "all"):
            raise ValueError("explain.targets: expected labelled or all; else each classifier is judged on other maps")
        if self.measures.concept != Measures.model_fields["concept"].default:
            raise ValueError("measures.concept: give it to each of `models`, whose layers differ")
        lists: dict[str, Sequence[object]] = {
            "classes": self.classes or (),
            "tasks": self.tasks,
            "models": [model.called for model in self.models],
            "losses": self.losses,
            "seeds": self.seeds,
        }
        for name, values in lists.items():
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: one is listed twice")
        return self
