"""What runs in Ray's actors: shells around functions of the compute floor.

An actor returns what it computed and keeps none of it: a retry would count twice.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from storage.errors import LucencyError
from storage.records import Rejection
from tasks.classifier import Classifier
from tasks.explain import Explained, ExplainSettings, explain_shard
from tasks.methods import placed
from tasks.profile import ProfileSettings, profile_shard
from workflows.commits import guarded, packed, shard_result
from workflows.images import Images
from workflows.models import ModelPackage, build_classifier
from workflows.scales import Scales

ShardWorker = Callable[[pa.Table], pa.Table]
"""What a stage makes of a decoded shard: the row of `shard_result`."""


def rejections_of(images: Images, failures: Mapping[int, str], stage: str = "explain") -> list[Rejection]:
    """Images that could not be decoded, and those that failed in a stage, by their place in the shard."""
    decode = [Rejection(identifier, "decode", reason) for identifier, reason in images.rejected.items()]
    return decode + [Rejection(images.ids[index], stage, reason) for index, reason in sorted(failures.items())]


def repeatable(device: str, threads: int) -> None:
    """float32 means float32 on a GPU too, and the same work gives the same bits on the same kind of device: on a GPU as
    far as its kernels are deterministic."""
    if device == "cpu":
        torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


class ModelHost:
    """Builds the classifier once per process, and what a stage makes of it when that stage's first shard comes.

    package: None where no stage needs a model.
    """

    def __init__(self, package: ModelPackage | None, device: str, threads: int) -> None:
        repeatable(device, threads)
        self.device = device
        self._built = None if package is None else _built(package, device)
        self._asked: tuple[Any, ...] = ()
        self._worker: ShardWorker | None = None

    def ready(self) -> None:
        """Returns when the process is there."""

    def work(
        self, worker: Callable[..., ShardWorker], arguments: Sequence[Any], block: pa.Table
    ) -> tuple[pa.Table, None]:
        """A shard of a stage: worker(host, *arguments) is made with its first, and what the stage before held goes.

        Beside the result comes nothing, by which who waits for it hears of its end without the bytes.
        """

        def done(block: pa.Table) -> pa.Table:
            asked = (worker, *arguments)
            if self._worker is None or asked != self._asked:
                self._forget()
                self._asked, self._worker = asked, worker(self, *arguments)
            return self._worker(block)

        return guarded(done, block), None

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(host, *arguments); what the stage before it held goes."""
        self._forget()
        return function(self, *arguments)

    def _forget(self) -> None:
        self._asked, self._worker = (), None

    @property
    def classifier(self) -> Classifier:
        """Raises what building it raised. A shard's fault reaches the user in words, an actor's death does not."""
        if self._built is None:
            raise LucencyError("this pool holds no model")
        if isinstance(self._built, LucencyError):
            raise self._built
        return self._built


def _built(package: ModelPackage, device: str) -> Classifier | LucencyError:
    """What the driver could do and this machine cannot (a server out of reach, no ONNX Runtime) is kept for later."""
    try:
        return build_classifier(package, device)
    except LucencyError as error:
        return error


class ProfileWorker:
    """Pass 1 on one device."""

    def __init__(self, host: ModelHost, settings: "ray.ObjectRef[ProfileSettings]") -> None:
        self.host = host
        asked: ProfileSettings = ray.get(settings)
        self.settings = replace(asked, rules=placed(asked.rules, torch.device(host.device)))

    def __call__(self, block: pa.Table) -> pa.Table:
        return guarded(self._profile, block)

    def _profile(self, block: pa.Table) -> pa.Table:
        images = Images.of(block, self.host.classifier.classes)
        done = profile_shard(
            self.host.classifier, images.pixels, images.ids, images.truth, self.settings, spacings=images.spacing
        )
        return shard_result(
            images.shard,
            len(images.ids) - len(done.failures),
            done.profile.to_bytes(),
            rejections_of(images, done.failures),
            done.notes,
        )


class ExplainWorker:
    """Pass 2 on one device."""

    def __init__(
        self, host: ModelHost, settings: "ray.ObjectRef[ExplainSettings]", scales: "ray.ObjectRef[Scales]"
    ) -> None:
        self.host = host
        asked: ExplainSettings = ray.get(settings)
        self.settings = replace(asked, rules=placed(asked.rules, torch.device(host.device)))
        self.scales: Scales = ray.get(scales)

    def __call__(self, block: pa.Table) -> pa.Table:
        return guarded(self._explain, block)

    def _explain(self, block: pa.Table) -> pa.Table:
        images = Images.of(block, self.host.classifier.classes)
        done = explain_shard(
            self.host.classifier,
            images.pixels,
            images.ids,
            images.truth,
            self.settings,
            limits=self.scales.limits,
            masks=self.scales.masks,
            thresholds=self.scales.thresholds,
            spacings=images.spacing,
        )
        return shard_result(
            images.shard,
            len(images.ids) - len(done.failures),
            _pack(images, done),
            rejections_of(images, done.failures),
            done.notes,
        )


def _pack(images: Images, done: Explained) -> bytes:
    """The explained shard, for its commit."""
    arrays = {
        "rows": images.rows,
        "ids": np.array(images.ids, "U32"),
        "labelled": images.truth.labelled,
        "positive": images.truth.positive,
        "failed": np.array(sorted(done.failures), np.int64),
        "classes": done.classes,
        "logits": done.logits,
        "probabilities": done.probabilities,
    }
    arrays |= {f"maps/{name}": values for name, values in done.maps.items()}
    arrays |= {f"sums/{name}": values for name, values in done.sums.items()}
    arrays |= {f"remembered/{name}": values for name, values in done.remembered.items()}
    arrays |= {f"measures/{name}": values for name, values in done.measures.items()}
    arrays |= {f"images/{name}": values for name, values in done.images.items()}
    if done.concepts is not None:
        found = done.concepts
        arrays |= {
            "concepts/position": found.rows,
            "concepts/class": found.classes,
            "concepts/disjoint": found.disjoint,
            "concepts/unique": found.unique,
            "detectors": np.frombuffer(found.detectors.of_rows(images.rows).to_bytes(), np.uint8),
        }
    return packed(arrays)
