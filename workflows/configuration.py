"""The one YAML file that describes an audit, checked at the door.

Unknown keys and impossible values are refused before Ray starts, with the path to the key and what
was expected. ``--set a.b=c`` overrides a key before the check, so an override is held to the same rules.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from tasks.cams.names import BASE_METHODS, MethodName
from workflows.configuration_baselines import Baselines
from workflows.configuration_findings import Findings
from workflows.configuration_measures import Measures
from workflows.configuration_memory import Memory
from workflows.sections import Positive as _Positive
from workflows.sections import Section as _Section
from workflows.sections import checked

_Size = tuple[_Positive, _Positive] | tuple[_Positive, _Positive, _Positive]


class Labels(_Section):
    """Where the labels come from: a CSV file, or the names of the folders images lie in."""

    file: str | None = Field(None, description="CSV, path or URL; relative to the configuration file")
    folders: bool = Field(False, description="the innermost folder's name is the label")
    image: str = Field("image", description="CSV column with the path below the root, or a unique file name")
    label: str | None = Field("label", description="CSV column with the label, or several joined by `separator`")
    separator: str = Field("|", description="separates several labels in one cell (NIH: |)")
    classes: list[str] | None = Field(None, description="instead of `label`: one 0/1 column a class, by these names")
    split: str | None = Field(None, description="CSV column that names the split of a row")
    patient: str | None = Field(None, description="CSV column with the patient, where the images do not say")
    healthy: str | None = Field("No Finding", description="a label that means: labelled, and none of the classes")

    @model_validator(mode="after")
    def _one_source(self) -> "Labels":
        if self.file is not None and self.folders:
            raise ValueError("labels come from `file` or from `folders`, not from both")
        if self.file is None and not self.folders:
            raise ValueError("expected `file: labels.csv` or `folders: true`")
        return self


class Boxes(_Section):
    """Where the boxes come from: a CSV file with one box a row."""

    file: str
    image: str = "image"
    label: str = "label"
    columns: tuple[str, str, str, str] = ("x0", "y0", "x1", "y1")
    form: Literal["corners", "size"] = Field("corners", description="x0,y0,x1,y1 or x,y,width,height")


class Key(_Section):
    """The secret under which ids are made; without one, a fresh key is drawn for the run."""

    file: str | None = None
    env: str | None = None


class Caps(_Section):
    """What an archive may cost before it is refused; every excess is a rejection with the reason."""

    members: _Positive = Field(10_000_000, description="files in one container")
    file_bytes: _Positive = Field(4 << 30, description="bytes of one file, unpacked")
    ratio: float = Field(200.0, gt=1, description="unpacked bytes over packed bytes of one member")
    nesting: int = Field(2, ge=0, description="containers inside containers")
    pixels: _Positive = Field(100_000_000, description="rows x columns x samples of one frame")
    frames: _Positive = Field(100_000, description="frames of one file")
    voxels: _Positive = Field(1 << 30, description="slices x rows x columns of one volume, resampled where it is")


class Archive(_Section):
    """What is audited."""

    location: str = Field(description="folder, .zip, .tar, .tar.gz, or object-store URL")
    include: list[str] = Field(["**"], description="globs on the path below the root")
    exclude: list[str] = Field([], description="globs that are not part of the archive (label files)")
    images: Literal["frames", "volumes"] = Field(
        "frames", description="each frame is an image, or each DICOM series, multi-frame or NIfTI file is a volume"
    )
    frames: Literal["all", "middle"] | _Positive = Field("middle", description="all, middle, or n for every n-th")
    uneven: Literal["reject", "resample"] = Field(
        "reject", description="volumes with missing slices or uneven gaps; resample interpolates between slices"
    )
    range: tuple[float, float] | None = Field(
        None, description="of volumes: values (Hounsfield) shown as black and white; none: the middle slice's window"
    )
    labels: Labels | None = None
    boxes: Boxes | None = None
    split: str | None = Field(None, description="audit only this split")
    key: Key = Key()
    caps: Caps = Caps()
    window: int | Literal["widest", "narrowest"] = Field(0, description="which of several windows, by index or width")
    allowed_rejected: float = Field(1.0, ge=0, le=1, description="share of rejects above which the exit code is 3")

    @model_validator(mode="after")
    def _frames_or_volumes(self) -> "Archive":
        if self.range is not None and self.range[0] >= self.range[1]:
            raise ValueError(f"range: expected low < high, got {self.range[0]:g} and {self.range[1]:g}")
        if self.images == "volumes" and (self.boxes is not None or self.frames != "middle"):
            raise ValueError(
                "images: volumes goes with neither boxes nor frames: boxes and frames are of single images"
            )
        if self.images == "frames" and (self.range is not None or self.uneven != "reject"):
            raise ValueError("range and uneven are for images: volumes; single images are shown by their window")
        return self


class Input(_Section):
    """What the model wants to see. Keys left out are taken from the model's own description."""

    resize: _Positive | _Size | None = Field(
        None, description="shorter side, or [height, width], [depth, height, width]"
    )
    crop: _Positive | _Size | None = Field(None, description="centre crop after the resize")
    channels: Literal[1, 3] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None


class Server(_Section):
    """How a served model is asked, by the Open Inference Protocol."""

    token_env: str | None = Field(None, description="environment variable that holds the bearer token")
    plaintext: bool = Field(False, description="send images unencrypted (http://) to another machine")
    timeout: float = Field(60.0, gt=0, description="seconds that an answer to one batch may take")


class Model(_Section):
    """The classifier."""

    source: str = Field(
        description="torchvision:NAME, lucency:t-densenet121, python:module.factory, mlflow:models:/N@ALIAS, "
        "export:FILE.pt2; only answering: torchscript:FILE.pt, onnx:FILE.onnx, https://HOST/v2/models/NAME"
    )
    weights: str | None = Field(None, description="file or URL of a state dict; `DEFAULT` fetches torchvision's")
    classes: list[str] | str | None = Field(None, description="names, or a text file with one a line")
    layer: str = Field("auto", description="target layer by name; auto: the last spatial one; none: only ask the model")
    task: Literal["one-label", "multi-label"] = "one-label"
    input: Input = Input()
    trust: Literal["weights", "pickle"] = Field(
        "weights", description="pickle: its author may run code on this machine"
    )
    output: Literal["logits", "probabilities"] = Field("logits", description="what a model answers that only answers")
    output_name: str | None = Field(None, description="the output that holds the answer, where a model has several")
    server: Server = Server()


class Limits(_Section):
    """The common scale of S-CAM."""

    source: Literal["pixel", "extrema"] = Field("pixel", description="of cells, or of images' extremes")
    low: float = Field(0.10, ge=0, lt=1, description="P10's share")
    high: float = Field(0.90, gt=0, le=1, description="P90's share")
    scale: Literal["tanh", "linear"] = "tanh"
    bits: int = Field(5, ge=1, le=7, description="histogram buckets an octave, as a power of two")

    @model_validator(mode="after")
    def _ordered(self) -> "Limits":
        if self.low >= self.high:
            raise ValueError(f"expected low < high, got {self.low} and {self.high}")
        return self


class Features(_Section):
    """Which features FS-CAM keeps."""

    share: float = Field(0.05, gt=0, le=1, description="rho: share of the features kept a class")
    rank: Literal["value", "absdiff"] = "value"
    importance: Literal["all", "true", "correct"] = "all"


class Perturbation(_Section):
    """How often, and how far, the methods that perturb do so. More draws cost more forwards and give steadier maps."""

    smooth_draws: _Positive = Field(4, description="n of Smooth Grad-CAM++: noisy inputs an image")
    smooth_std: float = Field(0.3, gt=0, description="sigma of that noise, in units of the normalised input")
    ss_draws: _Positive = Field(35, description="N of SS-CAM: noisy masks a feature")
    ss_std: float = Field(2.0, gt=0, description="sigma of that noise; a mask lies in 0 to 1")
    is_steps: _Positive = Field(10, description="N of IS-CAM: masks a feature, in equal parts from nothing to whole")


class Atlas(_Section):
    """Regions that volumes are reported by. All volumes must be registered to its space: same voxels, same spacing."""

    file: str = Field(description="label volume: a NIfTI file of whole numbers, 0 where no region is")
    names: str | None = Field(None, description="CSV with the columns label and name; none: all labels, by number")


class Glas(_Section):
    """Gaussian light and shadow: what is looked at, and how widely."""

    search: Literal["grid", "atlas"] = Field(
        "grid", description="on a grid, or at the centroids of an atlas (then `points` is unused)"
    )
    points: _Positive = Field(15, description="k: search points a side; an image costs 2 k^2 + 1 forwards")
    coarse: _Positive | None = Field(None, description="points a side of a first, coarser look; a divisor of points")
    share: float = Field(0.25, gt=0, le=1, description="part of the coarser cells that a class is then looked for in")
    light: float = Field(5.0, gt=0, description="sigma_l of the light, in `unit`")
    shadow: float = Field(3.0, gt=0, description="sigma_s of the shadow")
    spatial: float = Field(6.0, gt=0, description="sigma_spatial, over which an answer is spread around its point")
    unit: Literal["cell", "pixel", "fraction", "mm"] = Field("cell", description="a cell is a 15th of the side")
    offset: float = Field(1e-5, ge=0, description="lambda, added to the shadow")
    reach: float = Field(0.8, ge=0, le=1, description="t1 of RGLAS: points above this level are done with")
    ratio: float = Field(5.0, gt=0, description="t2 of RGLAS: it stops where the map's root mean over P reaches it")
    iterations: _Positive = Field(10, description="of RGLAS, at most")


def _check_methods(names: Any) -> Any:
    for name in names if isinstance(names, list) else []:
        MethodName.parse(name)
    return names


class Explain(_Section):
    """What is computed."""

    methods: Annotated[list[str], BeforeValidator(_check_methods)] = Field(
        ["grad-cam", "s-grad-cam"],
        min_length=1,
        description=f"[fs-][s-]METHOD with METHOD one of {', '.join(BASE_METHODS)}; each is one stored map",
    )
    targets: Literal["predicted", "labelled", "all"] | Annotated[list[str], Field(min_length=1)] = Field(
        "predicted",
        description="classes to map: of the largest logit (also if multi-label), of the labels, all, listed",
    )
    limits: Limits = Limits()
    features: Features = Features()
    perturbation: Perturbation = Perturbation()
    glas: Glas = Glas()
    atlas: Atlas | None = Field(None, description="volumes only: a table of saliency for each region")
    baselines: Baselines = Baselines()
    memory: Memory = Memory()
    map: Literal["native", "input"] | _Size = Field("native", description="size of stored maps")
    precision: Literal["float32", "bf16"] = "float32"
    border: float = Field(0.1, gt=0, lt=0.5, description="share of each side that counts as border")

    @property
    def bases(self) -> tuple[str, ...]:
        """The base methods asked for, each once."""
        return tuple(dict.fromkeys(MethodName.parse(name).base for name in self.methods))

    @model_validator(mode="after")
    def _no_doubles(self) -> "Explain":
        if self.memory.file is not None and "m-cam" not in self.bases:
            raise ValueError("memory.file: only m-cam has a memory, and it is not among the methods")
        if self.glas.search == "atlas" and self.atlas is None:
            raise ValueError("glas.search: atlas needs explain.atlas")
        if len(set(self.methods)) < len(self.methods):
            raise ValueError("a method is listed twice")
        return self


class Engine(_Section):
    """How the work is cut and where it runs. Shards, batch, threads and kind of processor fix the result to the bit."""

    address: str | None = Field(None, description="Ray cluster to join; none starts one on this machine")
    device: Literal["auto", "cuda", "cpu"] = "auto"
    shard_images: _Positive = Field(256, description="images a shard: unit of work, retry, commit and Zarr shard")
    shard_bytes: _Positive = Field(512 << 20, description="decoded bytes a shard may reach; more halves shard_images")
    batch: _Positive = Field(32, description="images a forward")
    workers: _Positive | None = Field(None, description="model actors at most; none: one a GPU, or one a CPU core")
    threads: _Positive = Field(1, description="torch threads of a CPU actor; another number may change the last bits")
    attempts: _Positive = Field(2, description="tries a shard gets before it is searched for the image that kills it")
    spill: str | None = Field(None, description="where Ray may spill pixels in clear; none: the run's state folder")


class Tracking(_Section):
    """MLflow."""

    enabled: bool = True
    uri: str | None = Field(None, description="MLflow server; none: sqlite in the project's .lucency folder")
    experiment: str = "lucency"


class Report(_Section):
    title: str = "Lucency audit"
    pictures: bool = Field(True, description="show images in the report; they are patient pixels")
    burned_in: bool = Field(False, description="also show images whose DICOM header says they carry burned-in text")


class Configuration(_Section):
    """One audit."""

    run: str = Field(description="run directory, or object-store URL")
    archive: Archive
    model: Model
    explain: Explain = Explain()
    measures: Measures = Measures()
    engine: Engine = Engine()
    mlflow: Tracking = Tracking()
    findings: Findings = Findings()
    report: Report = Report()


def check(tree: dict[str, Any], name: str = "configuration") -> Configuration:
    """Validate a tree of plain values; raises ConfigurationError that lists every fault."""
    return checked(Configuration, tree, name)
