"""How fast headers are catalogued, beside the loop everybody writes first.

    python -m benchmarks.catalogue [--archive FOLDER] [--copies 20] [--rounds 5]

Ours lists the files, reads the headers, and makes the rows with their keyed ids; the loop is
``dcmread(path, stop_before_pixels=True)`` and throws the result away. Both run in one process on one core, in turn.
Without ``--archive``, the archive is the real DICOM files that come with pydicom and pydicom-data.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from storage.archive import Archive, ArchiveFile
from storage.catalogue import catalogue_files
from storage.identity import Identity
from storage.quiet import quiet

_PACKAGES = {"pydicom": "data/test_files", "data_store": "data"}


def main() -> None:
    """Print files per second of both, and the ratio of the medians."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.catalogue")
    parser.add_argument("--archive", type=Path, help="folder of DICOM files; without it, pydicom's own")
    parser.add_argument("--copies", type=int, default=20, help="how often pydicom's files are copied")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each")
    options = parser.parse_args()
    with quiet("pydicom"), _archive(options.archive, options.copies) as folder:
        paths = _readable(folder)
        print(f"{len(paths)} DICOM files, {options.rounds} rounds, one process, one core")
        seconds = _interleaved(
            {"catalogue": lambda: _ours(folder), "dcmread loop": lambda: _loop(paths)}, options.rounds
        )
    rates = {name: len(paths) / statistics.median(rounds) for name, rounds in seconds.items()}
    for name, rate in rates.items():
        print(f"{name:<14}{rate:10.0f} files/s of CPU time")
    print(f"{'ratio':<14}{rates['catalogue'] / rates['dcmread loop']:10.2f}")


@contextmanager
def _archive(given: Path | None, copies: int) -> Iterator[Path]:
    """A folder with nothing but DICOM files that the loop can read too."""
    with tempfile.TemporaryDirectory() as temporary:
        if given is None:
            given = Path(temporary) / "sources"
            for package, below in _PACKAGES.items():
                spec = find_spec(package)
                if spec is None or not spec.submodule_search_locations:
                    raise SystemExit(f"{package} is not installed; it comes with the `demo` extra")
                shutil.copytree(Path(spec.submodule_search_locations[0]) / below, given / package)
        folder = Path(temporary) / "archive"
        folder.mkdir()
        for number, source in enumerate(_readable(given)):
            for copy in range(copies):
                shutil.copyfile(source, folder / f"{copy:03d}-{number:06d}")
        yield folder


def _readable(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path for path in paths if _opens(path)]


def _opens(path: Path) -> bool:
    try:
        dcmread(path, stop_before_pixels=True)
    except (InvalidDicomError, OSError, EOFError, ValueError, NotImplementedError, AttributeError):
        return False  # the loop would end here, and with it the comparison
    return True


def _ours(folder: Path) -> None:
    archive = Archive.open(str(folder))
    files = [found for found in archive.files() if isinstance(found, ArchiveFile)]
    catalogue_files(archive, files, identity=Identity.load())


def _loop(paths: list[Path]) -> None:
    for path in paths:
        dcmread(os.fspath(path), stop_before_pixels=True)


def _interleaved(contenders: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each contender, in turn, after one round that warms the file cache."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, contender in contenders.items():
            begun = time.process_time()
            contender()
            if turn:
                seconds[name].append(time.process_time() - begun)
    return seconds


if __name__ == "__main__":
    main()
