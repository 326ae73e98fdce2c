"""`python -m examples.real.make OUT` gathers real files from installed packages into an archive, with its audit.yaml.

Nothing is downloaded. Files that hold no image are gathered too: an archive has such files, and the audit says so.
"""

import argparse
import shutil
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path, PurePosixPath

_SOURCES = (("pydicom-data", "data_store/data"), ("scikit-image", "skimage/data"))  # distribution, its folder
_CODE = {".py", ".pyi", ".pyc"}


def make(out: Path) -> int:
    """Write the example below `out`; returns the number of files in the archive."""
    copied = sum(_gather(name, folder, out / "archive" / name) for name, folder in _SOURCES)
    here = Path(__file__).parent
    for name in ("efficientnet_lite.py", "audit.yaml"):
        shutil.copyfile(here / name, out / name)
    return copied


def _gather(distribution: str, folder: str, target: Path) -> int:
    """Copy the data files an installed distribution has directly in `folder`."""
    try:
        installed = files(distribution) or []
    except PackageNotFoundError as error:
        raise SystemExit(f"{distribution} is not installed: pip install 'lucency[demo]'") from error
    data = [path for path in installed if path.parent == PurePosixPath(folder) and path.suffix not in _CODE]
    target.mkdir(parents=True, exist_ok=True)
    for path in data:
        shutil.copyfile(str(path.locate()), target / path.name)
    return len(data)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.real.make", description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write into")
    arguments = parser.parse_args()
    count = make(arguments.out)
    print(f"{count} files below {arguments.out / 'archive'}")
    print(f"next: lucency audit {arguments.out / 'audit.yaml'}")


if __name__ == "__main__":
    main()
