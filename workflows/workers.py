"""What runs in Ray's actors: shells around functions of the compute floor.

An actor returns what it computed and keeps none of it: a retry would count twice.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from storage.errors import LucencyError
from storage.records import Rejection
from tasks.classifier import Classifier
from tasks.explain import Explained, ExplainSettings, explain_shard
from tasks.profile import ProfileSettings, profile_shard
from workflows.commits import guarded, shard_result
from workflows.images import Images
from workflows.models import ModelPackage, build_classifier


def _rejections(images: Images, failures: Mapping[int, str]) -> list[Rejection]:
    decode = [Rejection(identifier, "decode", reason) for identifier, reason in images.rejected.items()]
    return decode + [Rejection(images.ids[index], "explain", reason) for index, reason in sorted(failures.items())]


class _ModelWorker:
    """Builds the classifier once per actor."""

    def __init__(self, package: "ray.ObjectRef[ModelPackage]", device: str, threads: int) -> None:
        if device == "cpu":
            torch.set_num_threads(threads)
        # float32 means float32 on a GPU too, and the same shard gives the same bits on the same kind of device.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        self._built = _built(ray.get(package), device)

    @property
    def classifier(self) -> Classifier:
        """Raises what building it raised. A shard's fault reaches the user in words, an actor's death does not."""
        if isinstance(self._built, LucencyError):
            raise self._built
        return self._built


def _built(package: ModelPackage, device: str) -> Classifier | LucencyError:
    """What the driver could do and this machine cannot (a server out of reach, no ONNX Runtime) is kept for later."""
    try:
        return build_classifier(package, device)
    except LucencyError as error:
        return error


class ProfileWorker(_ModelWorker):
    """Pass 1 on one device."""

    def __init__(
        self, package: "ray.ObjectRef[ModelPackage]", device: str, threads: int, settings: ProfileSettings
    ) -> None:
        super().__init__(package, device, threads)
        self.settings = settings

    def __call__(self, block: pa.Table) -> pa.Table:
        return guarded(self._profile, block)

    def _profile(self, block: pa.Table) -> pa.Table:
        images = Images.of(block, self.classifier.classes)
        done = profile_shard(
            self.classifier, images.pixels, images.ids, images.truth, self.settings, spacings=images.spacing
        )
        return shard_result(
            images.shard,
            len(images.ids) - len(done.failures),
            done.profile.to_bytes(),
            _rejections(images, done.failures),
            done.notes,
        )


@dataclass(frozen=True, slots=True)
class Scales:
    """What pass 1 left for pass 2, by base method: limits [C, 2] and feature masks [F, C]."""

    limits: Mapping[str, np.ndarray[Any, Any]]
    masks: Mapping[str, np.ndarray[Any, Any]]


class ExplainWorker(_ModelWorker):
    """Pass 2 on one device."""

    def __init__(
        self,
        package: "ray.ObjectRef[ModelPackage]",
        device: str,
        threads: int,
        settings: ExplainSettings,
        scales: "ray.ObjectRef[Scales]",
    ) -> None:
        super().__init__(package, device, threads)
        self.settings = settings
        self.scales: Scales = ray.get(scales)

    def __call__(self, block: pa.Table) -> pa.Table:
        return guarded(self._explain, block)

    def _explain(self, block: pa.Table) -> pa.Table:
        images = Images.of(block, self.classifier.classes)
        done = explain_shard(
            self.classifier,
            images.pixels,
            images.ids,
            images.truth,
            self.settings,
            limits=self.scales.limits,
            masks=self.scales.masks,
            spacings=images.spacing,
        )
        return shard_result(
            images.shard,
            len(images.ids) - len(done.failures),
            _pack(images, done),
            _rejections(images, done.failures),
            done.notes,
        )


def _pack(images: Images, done: Explained) -> bytes:
    """The explained shard as one npz: it crosses to the commit task without pickle."""
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
    sink = io.BytesIO()
    np.savez(sink, **arrays)  # type: ignore[arg-type]  # numpy's stub takes any keyword for allow_pickle
    return sink.getvalue()
