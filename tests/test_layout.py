"""The folders at the root install below one name. What goes wrong there goes wrong silently, so it is tested:

mypy skips a module that is not importable as `callboard.…`, a wheel lacks a folder that `packages` does not list, and
an `__init__.py` at the wrong place makes two modules of one file.
"""

import importlib
import importlib.resources
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("runtime", "actors", "store")
FACADE = Path("actors/facade")

pytestmark = pytest.mark.skipif(not (ROOT / "runtime").is_dir(), reason="about the repository's files; not here")


def files() -> list[Path]:
    """Every file of the packages, relative to the root."""
    found = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))
    return sorted(path.relative_to(ROOT) for path in found if path.is_file() and "__pycache__" not in path.parts)


def installed(path: Path) -> Path:
    """Where the file of the packages lies below `callboard`."""
    return path.relative_to(FACADE) if path.is_relative_to(FACADE) else path


def module_name(path: Path) -> str:
    parts = installed(path).with_suffix("").parts
    return ".".join(("callboard", *parts)).removesuffix(".__init__")


def settings() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]


@pytest.mark.parametrize("path", [path for path in files() if path.suffix == ".py"], ids=str)
def test_a_module_is_importable_below_callboard(path: Path) -> None:
    try:
        module = importlib.import_module(module_name(path))
    except ModuleNotFoundError as missing:
        pytest.fail(f"{missing}. For a new file the editable install must be made again: make does it")

    assert module.__file__ is not None
    assert Path(module.__file__).resolve() == ROOT / path


@pytest.mark.parametrize("path", [path for path in files() if path.suffix != ".py"], ids=str)
def test_a_file_that_is_no_module_is_installed_too(path: Path) -> None:
    there = importlib.resources.files("callboard") / installed(path).as_posix()

    assert there.is_file(), f"{path} is not in tool.setuptools.package-data, or the install must be made again"


def test_every_folder_with_modules_is_a_package_that_is_listed() -> None:
    folders = {path.parent for path in files()}
    wanted = {module_name(folder / "__init__.py"): folder.as_posix() for folder in folders}

    assert settings()["package-dir"] == wanted
    assert set(settings()["packages"]) == set(wanted)


def test_every_package_has_an_init_file() -> None:
    folders = {path.parent for path in files()}

    assert [str(folder) for folder in folders if not (ROOT / folder / "__init__.py").is_file()] == []


def test_no_folder_that_is_no_package_has_an_init_file() -> None:
    folders = [ROOT / name for name in ("tests", "benchmarks", "examples")]
    there = [*ROOT.glob("__init__.py"), *(path for folder in folders for path in folder.rglob("__init__.py"))]

    assert there == []


def test_no_folder_at_the_root_hides_the_installed_package() -> None:
    assert not (ROOT / "callboard").exists()
    assert not (ROOT / "callboard.py").exists()
