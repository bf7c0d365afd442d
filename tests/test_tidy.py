"""The house style as a test: what a reviewer would otherwise have to say again and again.

Each rule is one function over one parsed file; its name is the sentence that holds. With it stand the reason and a
planted violation, and the rule has to catch that: a check that cannot fail is a defect. What may break a rule is listed
in `ALLOWED` with its reason, and an entry that nothing needs any more fails too.
"""

import ast
import functools
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("runtime", "actors", "store")
FOLDERS = (*PACKAGES, "tests", "benchmarks", "examples")

LINES_PER_FILE_MAX = 500
LINES_PER_FUNCTION_MAX = 60
POSITIONAL_PARAMETERS_MAX = 4
FORBIDDEN_WORDS_OF_MODULES = {"utils", "util", "helpers", "helper", "common", "misc"}
FORBIDDEN_ENDS_OF_CLASSES = ("Base", "Impl", "Info", "Data")
UNFINISHED = re.compile(r"\b(TO[D]O|FIX[M]E|X[X]X)\b")

# rule -> file, or file::function -> why it may
ALLOWED: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "an_except_names_what_it_expects": {
            "runtime/committer.py::Committer._commit": "whatever a store raises must reach the callers that wait",
            "runtime/committer.py::Committer._work": "a thread that ended here would leave all callers waiting",
            "actors/host.py": "a model may be the user's own: closing it must not cost others their sessions",
            "runtime/guard.py": "the guard of handlers, loads and children: a crash is for the supervisor to judge",
            "runtime/gate.py::release_all": "an action that raises must not keep back the replies behind it",
            "runtime/runtime.py::Runtime._close": "a closer that raises must not keep the store open",
            "actors/execution.py::Execution._answer": "the run's guard: a tool's or a model's crash must end the turn",
            "actors/execution.py::Execution._system": "a user's function: whatever it raises must end the turn",
            "actors/run_observing.py::_guarded": "a user's observer must not disturb the run that it observes",
            "actors/limits.py::reason_of": "the __str__ of an error is anyone's code, and a reason there must be",
            "actors/tool_calls.py::ToolCalls._ask": "a user's approver: the calls beside it go on to their end",
            "actors/team.py::TeamStream._carry_out": "a user's function: it comes out where the events are read",
            "actors/tools.py::Tool._outcome": "whatever a user's function raises is the tool's answer to the model",
            "actors/tools.py::Tool._given": "the types of a user's parameters raise what they like",
            "actors/tools.py::Tool.needs_approval": "a user's function, which did not say that the call may run",
            "actors/facade/fake_upstream.py::FakeUpstream._step": "a user's script: who asked is told of it",
            "runtime/supervisor.py": "the guard: what a handler raises must never reach a sibling",
            "runtime/activation.py::Activation._load": "the guard: what a load raises is a crash of its actor alone",
            "runtime/workers.py": "the guard of async handlers and loads, and the way of what is thrown into them",
            "runtime/residency.py": "a user's method, asked by a timer or by somebody else's message",
            "runtime/observing.py::Observable.tell": "a user's observer must not disturb what it observes",
            "tests/simulation/soak.py::judge": "whatever a program ends with is its seed's, and the others go on",
            "tests/kill/soak.py::judge": "whatever a round ends with is that round's, and the others go on",
            "tests/kill/kill_nursery.py::_work": "a forked child must never return into the nursery",
            "tests/faults/fault_server.py::in_child": "a forked child must never return into the server",
        },
        "a_task_lives_in_a_task_group": {
            "tests/actors/test_tool_faults.py::awaits_a_cancelled_task": "a user's tool, which does what ours may not",
        },
        "only_the_waking_file_knows_trio_from_asyncio": {
            "runtime/waking.py": "the border: it holds one implementation of waking for each backend",
            "actors/facade/virtual_time.py": "it makes a clock that jumps for each backend",
        },
    }
)

pytestmark = pytest.mark.skipif(not (ROOT / "runtime").is_dir(), reason="about the repository's files; not here")


@dataclass(frozen=True, slots=True)
class Source:
    """One parsed file. `path` is relative to the repository's root, with slashes."""

    path: str
    text: str
    tree: ast.Module

    @classmethod
    def parse(cls, path: str, text: str) -> "Source":
        return cls(path, text, ast.parse(text, path))

    @property
    def folder(self) -> str:
        return self.path.partition("/")[0]

    @property
    def is_package_code(self) -> bool:
        return self.folder in PACKAGES

    @property
    def is_facade(self) -> bool:
        return self.path.startswith("actors/facade/")

    @property
    def stem(self) -> str:
        return Path(self.path).stem


class Violation(NamedTuple):
    """What breaks a rule: the line from 1, what stands there, and the function around it ("" at module level)."""

    line: int
    what: str
    function: str = ""


Check: TypeAlias = Callable[[Source], Iterator[Violation]]
Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Rule:
    """A check, why it is there, and a file (path and text) that breaks it."""

    check: Check
    reason: str
    planted_path: str
    planted: str

    @property
    def name(self) -> str:
        return self.check.__name__

    def violations(self, source: Source) -> list[Violation]:
        return sorted(self.check(source))


RULES: list[Rule] = []


def rule(reason: str, *, planted: str, at: str = "runtime/planted.py") -> Callable[[Check], Check]:
    """Make a function over a file a rule. `planted` is a text that breaks it when it stands in the file `at`."""

    def register(check: Check) -> Check:
        RULES.append(Rule(check, reason, at, textwrap.dedent(planted)))
        return check

    return register


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def within_functions(tree: ast.AST, around: str = "") -> Iterator[tuple[ast.AST, str]]:
    """Each node with the dotted name of the function or class around it."""
    for child in ast.iter_child_nodes(tree):
        yield child, around
        name = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else ""
        yield from within_functions(child, f"{around}.{name}".strip(".") if name else around)


def imported_modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every absolute import, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module or ""


def imported_relatively(tree: ast.AST, *, levels: tuple[int, ...]) -> Iterator[tuple[int, set[str]]]:
    """Line and first names of every relative import that goes up by one of `levels` dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level in levels:
            targets = [node.module] if node.module else [alias.name for alias in node.names]
            yield node.lineno, {target.partition(".")[0] for target in targets}


def qualified_names(tree: ast.AST) -> Iterator[tuple[ast.AST, str, str]]:
    """Each use of a name from an imported module, as `module.name` however it was imported, and what is around it."""
    modules: dict[str, str] = {}
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node, around in within_functions(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            yield node, f"{modules[node.value.id]}.{node.attr}", around
        elif isinstance(node, ast.Name) and node.id in names:
            yield node, names[node.id], around


def uses_of(wanted: set[str], source: Source) -> Iterator[Violation]:
    for node, name, around in qualified_names(source.tree):
        if name in wanted and isinstance(node, ast.expr):
            yield Violation(node.lineno, name, around)


@rule("a longer file holds two topics", planted="x = 1\n" * (LINES_PER_FILE_MAX + 1))
def a_file_has_at_most_500_lines(source: Source) -> Iterator[Violation]:
    count = len(source.text.splitlines())
    if count > LINES_PER_FILE_MAX:
        yield Violation(count, f"{count} lines")


@rule(
    "a longer function does two things",
    planted="class A:\n    async def f(self):\n" + "        x = 1\n" * LINES_PER_FUNCTION_MAX,
)
def a_function_has_at_most_60_lines(source: Source) -> Iterator[Violation]:
    for function in functions(source.tree):
        count = (function.end_lineno or function.lineno) - function.lineno + 1
        if count > LINES_PER_FUNCTION_MAX:
            yield Violation(function.lineno, f"{function.name} has {count} lines")


@rule(
    "nobody can tell the fifth argument at the call: make options keyword-only",
    planted="class A:\n    def f(self, a, b, /, c, d, e, *, f): ...\n",
)
def a_function_takes_at_most_4_positional_arguments(source: Source) -> Iterator[Violation]:
    for function in functions(source.tree):
        names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
        count = len(names) - (names[:1] in (["self"], ["cls"]))
        if count > POSITIONAL_PARAMETERS_MAX:
            yield Violation(function.lineno, f"{function.name} takes {count}")


@rule("a module is named after what it is about; such a name takes anything in", planted="", at="store/key_utils.py")
def a_module_is_named_after_its_topic(source: Source) -> Iterator[Violation]:
    if FORBIDDEN_WORDS_OF_MODULES & set(source.stem.split("_")):
        yield Violation(1, source.stem)


@rule("the end of the name says nothing: name what it is", planted="class SessionInfo: ...\n")
def a_class_is_named_after_what_it_is(source: Source) -> Iterator[Violation]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ClassDef) and node.name.endswith(FORBIDDEN_ENDS_OF_CLASSES):
            yield Violation(node.lineno, node.name)


@rule(
    "no task lives outside a task group, and asyncio.wait_for can swallow a cancellation",
    planted="""
        import asyncio as aio
        from asyncio import wait_for
        async def f(): aio.create_task(g()); await wait_for(g(), 1)
        """,
)
def a_task_lives_in_a_task_group(source: Source) -> Iterator[Violation]:
    yield from uses_of({"asyncio.create_task", "asyncio.ensure_future", "asyncio.wait_for"}, source)


@rule(
    "a broad except hides bugs: name the errors, or end with a bare `raise`",
    planted="""
        def f():
            try: g()
            except (OSError, BaseException) as error: print(error)
        """,
)
def an_except_names_what_it_expects(source: Source) -> Iterator[Violation]:
    for node, around in within_functions(source.tree):
        if isinstance(node, ast.ExceptHandler) and _is_broad(node) and not _raises_again(node):
            yield Violation(node.lineno, "except " + (ast.unparse(node.type) if node.type else ":"), around)


def _is_broad(handler: ast.ExceptHandler) -> bool:
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    broad = {"Exception", "BaseException"}
    return any(one is None or (isinstance(one, ast.Name) and one.id in broad) for one in caught)


def _raises_again(handler: ast.ExceptHandler) -> bool:
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


@rule(
    "everything else works on both backends because it cannot know which one runs",
    planted="def f():\n    from trio.lowlevel import current_task\n",
)
def only_the_waking_file_knows_trio_from_asyncio(source: Source) -> Iterator[Violation]:
    if source.is_package_code:
        for line, module in imported_modules(source.tree):
            if module.partition(".")[0] in {"trio", "asyncio"}:
                yield Violation(line, f"imports {module}")


@rule(
    "a test that sleeps is slow on a good day and fails on a bad one: wait for what must happen, or use virtual time",
    planted="from time import sleep\ndef test_a(): sleep(1)\n",
    at="tests/test_planted.py",
)
def a_test_does_not_sleep(source: Source) -> Iterator[Violation]:
    if source.folder == "tests":
        yield from uses_of({"time.sleep"}, source)


@rule("work that is left over belongs in an issue, where somebody sees it", planted="x = 1  # XX" + "X later\n")
def nothing_is_left_unfinished(source: Source) -> Iterator[Violation]:
    for number, line in enumerate(source.text.splitlines(), start=1):
        if found := UNFINISHED.search(line):
            yield Violation(number, found.group())


@rule(
    "under a strict editable install a file and its link are two modules, and types of one are not those of the other",
    planted="from callboard.store.errors import StoreError\n",
)
def a_folder_imports_relatively(source: Source) -> Iterator[Violation]:
    if source.is_package_code and not source.is_facade:
        for line, module in imported_modules(source.tree):
            if module.partition(".")[0] in {"callboard", *PACKAGES}:
                yield Violation(line, f"imports {module}")


@rule(
    "type checkers read actors/facade/ where it lies, and beside it there is no .runtime, .actors or .store",
    planted="from .actors.session import Session\n",
    at="actors/facade/planted.py",
)
def the_facade_imports_the_folders_by_their_full_names(source: Source) -> Iterator[Violation]:
    if source.is_facade:
        for line, module in imported_modules(source.tree):
            if module.partition(".")[0] in PACKAGES:
                yield Violation(line, f"imports {module} without callboard")
        for line, modules in imported_relatively(source.tree, levels=(1, 2, 3)):
            if modules & set(PACKAGES):
                yield Violation(line, f"imports {', '.join(modules)} relatively")


@rule(
    "a file of the facade and its link are two modules as well: files side by side see each other relatively",
    planted="from callboard.cli import app\n",
    at="actors/facade/planted.py",
)
def the_facade_imports_its_own_files_relatively(source: Source) -> Iterator[Violation]:
    if source.is_facade:
        for line, module in imported_modules(source.tree):
            first, _, rest = module.partition(".")
            if first == "callboard" and rest and rest.partition(".")[0] not in PACKAGES:
                yield Violation(line, f"imports {module}")


@rule(
    "the facade stands on the folders: they must not know it", planted="from ..cli import app\nfrom .. import testing\n"
)
def only_the_facade_imports_the_facade(source: Source) -> Iterator[Violation]:
    if source.is_package_code and not source.is_facade:
        for line, modules in imported_relatively(source.tree, levels=(2,)):
            if modules - set(PACKAGES):
                yield Violation(line, f"imports {', '.join(modules)} from callboard itself")


@rule("a reader must learn from the first line what the file is about", planted="x = 1\n")
def a_module_says_what_it_is_about(source: Source) -> Iterator[Violation]:
    if source.folder != "tests" and not (ast.get_docstring(source.tree) or "").strip():
        yield Violation(1, "no docstring")


@rule("what is public must be said, and exist", planted="__all__ = ['gone']\n")
def a_module_lists_what_is_public(source: Source) -> Iterator[Violation]:
    if not source.is_package_code:
        return
    listed = _listed(source.tree)
    if listed is None:
        yield Violation(1, "no __all__ that is a list of strings")
        return
    for name in listed:
        if name not in _bound(source.tree):
            yield Violation(1, f"{name!r} is listed in __all__ and is not there")


def _listed(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            try:
                return [str(name) for name in ast.literal_eval(node.value)]
            except ValueError:
                return None
    return None


def _bound(tree: ast.Module) -> set[str]:
    """What the module's top level binds, also in branches such as `if TYPE_CHECKING`."""
    names: set[str] = set()
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop()
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.Import() | ast.ImportFrom():
                names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
            case ast.Assign() | ast.AnnAssign():
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
            case ast.If() | ast.Try():
                pending += [child for child in ast.walk(node) if isinstance(child, ast.stmt) and child is not node]
            case _:
                pass
    return names


def repository() -> list[str]:
    """The paths of all files, relative to the root."""
    return sorted(path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


@functools.cache
def findings() -> list[tuple[str, str, Violation]]:
    """What each rule says of each file: its name, the path, the violation. Parsing takes longest: it is done once."""
    found: list[tuple[str, str, Violation]] = []
    for path in repository():
        source = Source.parse(path, (ROOT / path).read_text("utf-8"))
        found += [(rule.name, path, violation) for rule in RULES for violation in rule.violations(source)]
    return found


def allowed_by(rule: str, path: str, violation: Violation) -> str | None:
    """The entry of ALLOWED that covers the violation, or None."""
    entries = ALLOWED.get(rule, {})
    return next((key for key in (path, f"{path}::{violation.function}") if key in entries), None)


by_rule = pytest.mark.parametrize("rule", [pytest.param(one, id=one.name) for one in RULES])


@by_rule
def test_every_file_keeps_the_rule(rule: Rule) -> None:
    broken = [
        f"{path}:{violation.line}: {violation.what}" + (f" (in {violation.function})" if violation.function else "")
        for name, path, violation in findings()
        if name == rule.name and allowed_by(name, path, violation) is None
    ]

    assert not broken, f"{rule.name}: {rule.reason}\n" + "\n".join(broken)


@by_rule
def test_the_rule_catches_a_planted_violation(rule: Rule) -> None:
    planted = Source.parse(rule.planted_path, rule.planted)

    assert rule.violations(planted)


def test_no_rule_finds_fault_with_good_code() -> None:
    text = '''
        """A greeting."""

        import anyio

        from ..store.contract import Batch

        __all__ = ["greet"]


        async def greet(name: str, *, batch: Batch, times: int, delay_s: float, loudly: bool) -> None:
            try:
                await anyio.sleep(delay_s)
            except BaseException:
                batch.undo()
                raise
        '''
    source = Source.parse("runtime/greeting.py", textwrap.dedent(text))

    assert [one.name for one in RULES if one.violations(source)] == []


def test_the_rules_see_every_folder() -> None:
    seen = {path.partition("/")[0] for path in repository()}

    assert seen >= {*PACKAGES, "tests"}


def test_every_exception_to_a_rule_is_still_needed() -> None:
    used = {
        (name, key) for name, path, violation in findings() if (key := allowed_by(name, path, violation)) is not None
    }

    assert {(name, key) for name, entries in ALLOWED.items() for key in entries} == used
