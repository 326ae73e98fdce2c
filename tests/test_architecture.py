"""What holds the house together, beyond the import contracts in pyproject.toml."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
_TYPES_ONLY = {"_typeshed"}  # known to type checkers, never imported when the code runs
_ROOMS = ("storage", "tasks", "workflows")
_PROJECT = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _import_all(room: str, hidden: set[str]) -> "subprocess.CompletedProcess[str]":
    """Import every module of a room in a process where some packages are as if they were not installed."""
    code = (
        "import importlib, pkgutil, sys\n"
        f"hidden = {hidden!r}\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in hidden:\n"
        "            raise ImportError(f'{name} is hidden')\n"
        "sys.meta_path.insert(0, Refuse())\n"
        f"room = importlib.import_module({room!r})\n"
        "for module in pkgutil.walk_packages(room.__path__, room.__name__ + '.'):\n"
        "    importlib.import_module(module.name)\n"
    )
    return subprocess.run([sys.executable, "-c", code], cwd=_ROOT, capture_output=True, text=True, check=False)


def test_the_compute_floor_runs_with_torch_and_numpy_alone() -> None:
    others = {"ray", "mlflow", "pyarrow", "zarr", "obstore", "pydicom", "PIL", "pandas", "click", "rich", "pydantic"}
    done = _import_all("tasks", others | {"torchvision", "yaml", "matplotlib", "jinja2", "scipy", "captum", "sklearn"})
    assert done.returncode == 0, done.stderr


def test_storage_runs_without_torch_and_ray() -> None:
    done = _import_all("storage", {"torch", "torchvision", "ray", "mlflow", "pydantic", "click"})
    assert done.returncode == 0, done.stderr


def test_hiding_a_package_would_show() -> None:
    assert "numpy is hidden" in _import_all("tasks", {"numpy"}).stderr


def test_every_package_of_the_rooms_is_shipped() -> None:
    there = {
        ".".join(path.parent.relative_to(_ROOT).parts)
        for room in _ROOMS
        for path in (_ROOT / room).rglob("__init__.py")
    }
    assert there == set(_PROJECT["tool"]["setuptools"]["packages"])


def test_every_file_beside_the_code_is_shipped() -> None:
    shipped = {
        file
        for package, patterns in _PROJECT["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
        for file in (_ROOT / package.replace(".", "/")).glob(pattern)
    }
    files = {path for room in _ROOMS for path in (_ROOT / room).rglob("*") if path.is_file()}
    assert {path for path in files if path.suffix not in (".py", ".pyc")} - shipped == set()


@pytest.mark.parametrize("room", _ROOMS)
def test_modules_are_short(room: str) -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (_ROOT / room).rglob("*.py")}
    assert {str(path): length for path, length in lengths.items() if length > 320} == {}


def _imported(folder: str) -> set[str]:
    """Top-level names of what the modules of a folder import that is neither ours nor Python's."""
    names: set[str] = set()
    for path in (_ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {*_ROOMS, "benchmarks", "docs", "examples", "tests"}


def _declared(*extras: str) -> set[str]:
    project = _PROJECT["project"]
    lines = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    return {_normal(re.split(r"[\[<>=~!; ]", line)[0]) for line in lines}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("storage", ()),
        ("tasks", ("baselines",)),
        ("workflows", ("onnx",)),
        ("examples", ("demo",)),
        ("docs", ()),
        ("benchmarks", ("baselines", "demo", "test")),
        ("tests", ("baselines", "demo", "test")),
    ],
)
def test_what_is_imported_is_declared(folder: str, extras: tuple[str, ...]) -> None:
    providers = packages_distributions()
    declared = _declared(*extras)
    undeclared = {
        name for name in _imported(folder) if not declared & {_normal(item) for item in providers.get(name, [])}
    }
    assert undeclared <= _TYPES_ONLY


def test_every_dependency_says_why_it_is_there() -> None:
    lines = (_ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[project.scripts]")[0].splitlines()
    dependencies = [line for line in lines if line.startswith('    "') and ("=" in line or "types-" in line)]
    assert dependencies
    assert [line for line in dependencies if "#" not in line and "types-" not in line] == []


def test_constraints_are_versions_and_nothing_else() -> None:
    lines = (_ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.count("==") != 1 or "/" in line or "@" in line or "+" in line] == []
