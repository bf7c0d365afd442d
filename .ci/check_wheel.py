"""Fail unless a wheel holds exactly the files of the packages, below `callboard/`, and its own metadata.

Usage, at the repository's root: python .ci/check_wheel.py WHEEL
"""

import sys
from pathlib import Path
from zipfile import ZipFile


def expected() -> set[str]:
    """Each file of the packages under the name that it must have in the wheel."""
    files = {
        path
        for folder in ("runtime", "actors", "store")
        for path in Path(folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    facade = Path("actors/facade")
    return {
        str(Path("callboard") / (path.relative_to(facade) if path.is_relative_to(facade) else path)) for path in files
    }


def main(wheel: str) -> int:
    names = {name for name in ZipFile(wheel).namelist() if not name.endswith("/")}
    distribution = "-".join(Path(wheel).name.split("-")[:2])
    ours = {name for name in names if not name.startswith(f"{distribution}.dist-info/")}
    for name in sorted(expected() - ours):
        print(f"missing in the wheel: {name}")
    for name in sorted(ours - expected()):
        print(f"does not belong in the wheel: {name}")
    print(f"{Path(wheel).name}: {len(ours)} files below callboard/, {len(names - ours)} of metadata")
    return ours != expected()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
