"""`python -m benchmarks.engine`: what Ray costs. Rates as ratios to a plain loop, and peak memory as the archive grows.

Rate: a pass of the audit over an archive (its actors' start and model load included, Ray's own start not) against a
plain one-process loop that reads, decodes and forwards the same images with all cores. Turns are interleaved.
Memory: peak resident bytes of the driver and of each model actor while auditing a small and a ten times larger archive.
Images are seeded noise and weights are random: neither changes the work.
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import ray
import torch
import torchvision
from PIL import Image

from storage.decode import decode_image
from workflows.audit import audit
from workflows.cluster import ray_cluster
from workflows.configuration import Configuration, check
from workflows.models import build_classifier, fetch_model
from workflows.progress import SilentProgress

_CPU = torch.device("cpu")


def write_images(folder: Path, count: int, side: int) -> None:
    """`count` grey PNG files of seeded noise, blocky so that they compress like pictures."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(count):
        blocks = random.integers(0, 256, (-(-side // 8), -(-side // 8)), np.uint8)
        pixels = np.kron(blocks, np.ones((8, 8), np.uint8))[:side, :side]
        Image.fromarray(pixels).save(folder / f"{number:06d}.png", compress_level=1)


def configuration(folder: Path, run: str, archive: Path, source: str) -> Configuration:
    classes = [f"class {index}" for index in range(14)]
    weights = folder / f"{source.removeprefix('torchvision:')}.pt"
    if not weights.exists():
        module = torchvision.models.get_model(source.removeprefix("torchvision:"), num_classes=len(classes))
        torch.save(module.state_dict(), weights)
    return check(
        {
            "run": str(folder / run),
            "archive": {"location": str(archive)},
            "model": {"source": source, "weights": str(weights), "classes": classes},
            "explain": {"methods": ["grad-cam"], "targets": "predicted"},
            "mlflow": {"enabled": False},
            "report": {"pictures": False},
        }
    )


def plain_loop(asked: Configuration, archive: Path) -> float:
    """Seconds of one process that reads, decodes and forwards everything, batch by batch."""
    classifier = build_classifier(fetch_model(asked.model, folder=None), "cpu")
    torch.set_num_threads(psutil.cpu_count(logical=False) or 1)
    paths = sorted(archive.iterdir())
    started = time.perf_counter()
    with torch.inference_mode():
        for start in range(0, len(paths), asked.engine.batch):
            images = [
                decode_image(path.read_bytes(), format="png") for path in paths[start : start + asked.engine.batch]
            ]
            classifier.module(classifier.preprocess(images, _CPU))
    return time.perf_counter() - started


class PeakMemory:
    """Peak resident bytes of this process and of the largest model actor, sampled in a thread."""

    def __enter__(self) -> "PeakMemory":
        self.driver = self.actor = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.25):
            self.driver = max(self.driver, _private(me))
            for child in me.children(recursive=True):
                try:
                    if child.cmdline()[:1] and child.cmdline()[0].startswith("ray::ModelHost"):
                        self.actor = max(self.actor, _private(child))
                except (psutil.Error, IndexError):
                    continue


def _private(process: psutil.Process) -> int:
    """Resident bytes without those of the shared object store, which every process that reads it maps."""
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


def rates(folder: Path, images: int, rounds: int, source: str) -> None:
    archive = folder / "rate"
    write_images(archive, images, 256)
    ratios: dict[str, list[float]] = {"profile": [], "maps": []}
    for turn in range(rounds):
        asked = configuration(folder, f"rate-{turn}", archive, source)
        plain = plain_loop(asked, archive)
        audit(asked, SilentProgress())
        stages = json.loads((folder / f"rate-{turn}" / "run.json").read_text())["stages"]
        for stage, values in ratios.items():
            values.append(plain / stages[stage]["seconds"])
        print(
            f"round {turn}: plain loop {images / plain:.1f} images/s, "
            + ", ".join(f"{stage} {images / stages[stage]['seconds']:.1f}" for stage in ratios),
            flush=True,
        )
    for stage, values in ratios.items():
        print(f"{stage:<10} rate through Ray / plain loop: median {statistics.median(values):.2f} of {values}")


def memory(folder: Path, small: int, large: int) -> None:
    peaks = []
    for count in (small, large):
        archive = folder / f"memory-{count}"
        write_images(archive, count, 64)
        with PeakMemory() as peak:
            audit(
                configuration(folder, f"memory-run-{count}", archive, "torchvision:mobilenet_v3_small"),
                SilentProgress(),
            )
        peaks.append(peak)
        print(f"{count:>8} images: driver {peak.driver / 1e6:.0f} MB, actor {peak.actor / 1e6:.0f} MB", flush=True)
    print(
        f"growth from {small} to {large} images: driver x{peaks[1].driver / peaks[0].driver:.2f}, "
        f"actor x{peaks[1].actor / peaks[0].actor:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--large", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--model", default="torchvision:resnet50")
    parser.add_argument("--only", choices=("rate", "memory"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engine = configuration(folder, "cluster", folder, arguments.model).engine
        with ray_cluster(engine, folder):
            print(f"Ray {ray.__version__}, torch {torch.__version__}, {psutil.cpu_count()} cores; synthetic images")
            if arguments.only != "memory":
                rates(folder, arguments.images, arguments.rounds, arguments.model)
            if arguments.only != "rate":
                memory(folder, arguments.images, arguments.large)


if __name__ == "__main__":
    main()
