"""`callboard store ...`: looking after a whole store.

| command | while a process writes | changes |
|---|---|---|
| check, stats | works | nothing |
| backup, export | works, as of one moment | makes a new directory or file |
| check --repair, compact, migrate, import, expire, rotate-key | refused, naming the process | the store |

Exit codes: 0, all is well; 1, it is not, or faults are left; 2, the command was not understood.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Annotated, Any, BinaryIO, cast

import typer
from rich.table import Table
from rich.text import Text

from callboard.actors.host import Runtime
from callboard.actors.retention import Retention
from callboard.actors.session_check import SessionFinding, check_sessions, repair_sessions
from callboard.actors.session_manager import SessionManager
from callboard.actors.transfer import (
    Existing,
    StreamsExist,
    Transferred,
    check_export,
    clashes,
    export_store,
    import_store,
)
from callboard.store.contract import Store
from callboard.store.errors import StoreError, WrongKey
from callboard.store.lmdb_check import CheckReport, Finding, check_directory, repair_directory
from callboard.store.lmdb_copy import back_up, compact as compact_store, unchanging
from callboard.store.migration import migrate as migrate_store
from callboard.store.opening import open_store
from callboard.store.sealed_store import SealedStore

from .cli_frame import STORE, JsonOption, StoreOption, console, one_clear_line, print_json, run_async
from .cli_key import MASTER_KEY_VARIABLE, master_key
from .cli_tables import printable

__all__ = ["NEW_KEY_VARIABLE", "store_app"]

NEW_KEY_VARIABLE = "CALLBOARD_NEW_MASTER_KEY"

_COUNTS = ("streams", "rows", "chunks", "entries", "segments", "large_values", "aside")

_EXISTING: dict[str, Existing] = {"refuse": "refuse", "skip": "skip", "replace": "replace"}

store_app = typer.Typer(name="store", no_args_is_help=True, help="Look after a whole store.")


@store_app.command(epilog="Example: callboard store check --store support.lmdb --repair")
def check(
    *,
    store: StoreOption = STORE,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended; nothing is deleted.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Look at every key and every record; exit code 1 where something is wrong, or is left after a repair.

    Of a sealed store without its key, only what lies on disk is checked, not what it means.
    """
    with one_clear_line():
        report, sessions, left = _repaired(store) if repair else _checked(store)
        found: list[Finding | SessionFinding] = [*report.findings, *sessions]
        if as_json:
            print_json({"sound": not found, "left": left, **_counts(report), "findings": list(map(_plain, found))})
        else:
            _print_check(report, found, left=left, repaired=repair)
        if left:
            raise typer.Exit(1)


def _checked(path: Path) -> tuple[CheckReport, list[SessionFinding], int]:
    with unchanging(path) as quiet:
        report = check_directory(quiet)
        sessions = _check_records(quiet)
        return report, sessions, len(report.findings) + len(sessions)


def _repaired(path: Path) -> tuple[CheckReport, list[SessionFinding], int]:
    report, _ = repair_directory(path)
    with _opened(path) as store:
        found = repair_sessions(store) if store is not None else []
    _, _, left = _checked(path)
    return report, found, left


def _check_records(path: Path) -> list[SessionFinding]:
    try:
        with _opened(path, readonly=True) as store:
            return list(check_sessions(store)) if store is not None else []
    except StoreError as error:
        return [SessionFinding("sessions", str(error))]


@contextlib.contextmanager
def _opened(path: Path, *, readonly: bool = False) -> Generator[Store | None]:
    """The store; None where it is sealed and the key is not given."""
    key = master_key()
    store: Store | None = None
    try:
        store = open_store(path, master_key=key, readonly=readonly)
    except WrongKey:
        if key is not None:
            raise
    try:
        yield store
    finally:
        if store is not None:
            store.close()


def _counts(report: CheckReport) -> dict[str, int]:
    return {name: getattr(report, name) for name in _COUNTS}


def _plain(finding: Finding | SessionFinding) -> dict[str, Any]:
    mendable = finding.mend is not None if isinstance(finding, Finding) else finding.batch is not None
    return {"where": finding.where, "reason": finding.reason, "mendable": mendable}


def _print_check(report: CheckReport, found: list[Finding | SessionFinding], *, left: int, repaired: bool) -> None:
    terminal = console()
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in _counts(report).items() if count)
    terminal.print(Text(f"looked at {counts or 'an empty store'}"))
    for finding in found:
        terminal.print(Text(printable(f"{finding.where}: {finding.reason}"), "yellow"))
    if not found:
        terminal.print(Text("all is sound", "green"))
    elif repaired:
        terminal.print(Text(f"{len(found)} faults were found, {left} are left", "red" if left else "green"))
    else:
        terminal.print(Text(f"{len(found)} faults: --repair mends what can be mended, without loss", "red"))


@store_app.command(epilog="Example: callboard store backup /backup/support-monday.lmdb --store support.lmdb")
def backup(
    *,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A new directory; it is a store itself.")],
    store: StoreOption = STORE,
) -> None:
    """Copy the store, also while a process writes to it: all that was acknowledged before, checked, or nothing."""
    with one_clear_line():
        copied = back_up(store, target)
        typer.echo(f"{target}: {copied.report.streams} streams, {copied.after_bytes} bytes, checked")


@store_app.command(epilog="Example: callboard store compact --store support.lmdb")
def compact(*, store: StoreOption = STORE) -> None:
    """Write the store anew without its free space, in its place."""
    with one_clear_line():
        _check_there(store)
        copied = compact_store(store)
        typer.echo(f"{store}: {copied.before_bytes} bytes before, {copied.after_bytes} now")


@store_app.command(epilog="Example: callboard store migrate --store support.lmdb")
def migrate(*, store: StoreOption = STORE) -> None:
    """Bring a store of an older callboard to the present format. The old file is kept beside the new one."""
    with one_clear_line():
        _check_there(store)
        copied = migrate_store(store)
        if copied is None:
            typer.echo(f"{store}: has the present format already")
        else:
            typer.echo(
                f"{store}: {copied.report.streams} streams migrated and checked; the old file is in data-format-*.mdb, "
                "remove it when all is well"
            )


@store_app.command(epilog="Example: callboard store stats --store support.lmdb --json")
def stats(*, store: StoreOption = STORE, as_json: JsonOption = False) -> None:
    """How large the store is, and what it holds."""
    with one_clear_line():
        opened = open_store(store, master_key=master_key(), readonly=True)
        try:
            told = opened.statistics()
        finally:
            opened.close()
        file_bytes = (store / "data.mdb").stat().st_size
        facts = {
            "streams": told.streams,
            "file_bytes": file_bytes,
            "used_bytes": told.size_bytes,
            "log_bytes": told.log_bytes,
            "damaged": told.damaged,
        }
        if as_json:
            print_json(facts)
            return
        table = Table(box=None, show_header=False, pad_edge=False)
        for name, fact in facts.items():
            table.add_row(name.replace("_", " "), str(fact))
        console().print(table)


@store_app.command("export", epilog="Example: callboard store export --store support.lmdb -o support.jsonl")
def export_(
    *,
    store: StoreOption = STORE,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file to be written; else standard output.")
    ] = None,
) -> None:
    """Write everything as JSON lines: all sessions with their runs, reminders, and the state of your own actors.

    A store that is in use is exported as it is now, from a copy beside it. What is sealed is exported readable.
    """
    with one_clear_line(), unchanging(store) as quiet:
        opened = open_store(quiet, master_key=master_key(), readonly=True)
        try:
            told = Transferred()
            lines = export_store(opened, told)
            if output is None:
                sys.stdout.buffer.writelines(lines)
                sys.stdout.buffer.flush()
            else:
                _write_lines(output, lines)
                typer.echo(f"{output}: {told.streams} streams, {told.rows} rows, {told.entries} index entries")
            for damage in opened.damage.list():
                typer.echo(f"callboard: left out: {printable(damage.where)}: {printable(damage.reason)}", err=True)
            if opened.damage.count:
                raise typer.Exit(1)
        finally:
            opened.close()


def _write_lines(output: Path, lines: Iterable[bytes]) -> None:
    """The file is there whole, or as it was before."""
    part = output.with_name(f".{output.name}.part-{os.getpid()}")
    try:
        with part.open("wb") as file:
            os.chmod(file.fileno(), 0o600)  # conversations are for nobody else
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        part.rename(output)
    finally:
        part.unlink(missing_ok=True)


@store_app.command("import", epilog="Example: callboard store import support.jsonl --store new.lmdb")
def import_(
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `store export` wrote; - reads standard input.")],
    store: StoreOption = STORE,
    existing: Annotated[
        str, typer.Option("--existing", help="refuse, skip or replace what is there under the same name.")
    ] = "refuse",
) -> None:
    """Store an export. Every line is checked before anything is written, and what is there is left alone.

    Each stream is there whole or not at all. One that was cut off goes on with --existing skip.
    """
    with one_clear_line():
        choice = _EXISTING.get(existing)
        if choice is None:
            raise ValueError(f"--existing is refuse, skip or replace, not {existing!r}")
        with _seekable(file) as lines:
            check_export(lines)
            opened = open_store(store, master_key=master_key())
            try:
                if choice == "refuse":
                    _refuse_clashes(opened, lines)
                lines.seek(0)
                told = import_store(opened, lines, existing=choice)
            finally:
                opened.close()
        skipped = f", {told.skipped} were there already" if told.skipped else ""
        typer.echo(f"{store}: {told.streams} streams, {told.rows} rows, {told.entries} index entries{skipped}")


def _refuse_clashes(store: Store, lines: BinaryIO) -> None:
    there: list[str] = []
    lines.seek(0)
    check_export(lines, lambda name: there.append(name) if clashes(store, name) else None)
    if there:
        raise StreamsExist(store.location, there)


@contextlib.contextmanager
def _seekable(file: Path) -> Generator[BinaryIO]:
    """The file, or all of standard input in a temporary one: it is read more than once."""
    if str(file) != "-":
        with file.open("rb") as lines:
            yield lines
        return
    with tempfile.TemporaryFile() as spooled:
        for line in sys.stdin.buffer:
            spooled.write(line)
        spooled.seek(0)
        yield cast("BinaryIO", spooled)


@store_app.command(epilog="Example: callboard store expire --tag trial --older-than 30 --store support.lmdb")
def expire(
    *,
    older_than: Annotated[float, typer.Option("--older-than", metavar="DAYS", help="Days since the last change.")],
    store: StoreOption = STORE,
    tag: Annotated[str | None, typer.Option("--tag", help="Only sessions with this tag.")] = None,
    every_class: Annotated[bool, typer.Option("--all", help="Sessions with any tag or none.")] = False,
) -> None:
    """Delete the sessions that have not changed for so long. What an earlier process left running is ended first."""
    with one_clear_line():
        if (tag is None) is not every_class:
            raise ValueError("say which sessions: --tag TAG, or --all")
        _check_there(store)
        policy = Retention(tag, older_than)

        async def run() -> None:
            async with Runtime(store, master_key=master_key()) as runtime:
                expiry = await SessionManager(runtime).expire([policy])
            typer.echo(f"{store}: {expiry.deleted} sessions deleted")
            for session_id, reason in expiry.failed.items():
                typer.echo(f"callboard: {printable(session_id)} is still there: {printable(reason)}", err=True)
            if expiry.failed:
                raise typer.Exit(1)

        run_async(run)


@store_app.command("rotate-key", epilog=f"Example: {NEW_KEY_VARIABLE}=... callboard store rotate-key")
def rotate_key(
    *,
    store: StoreOption = STORE,
    rewrite: Annotated[
        bool, typer.Option("--rewrite", help="Also make new keys beneath it, and seal everything with them again.")
    ] = False,
) -> None:
    """Give a sealed store another master key: CALLBOARD_NEW_MASTER_KEY in place of CALLBOARD_MASTER_KEY."""
    with one_clear_line():
        new_key = os.environ.get(NEW_KEY_VARIABLE)
        if not new_key or master_key() is None:
            raise ValueError(f"set {MASTER_KEY_VARIABLE} to the present key and {NEW_KEY_VARIABLE} to the new one")
        _check_there(store)
        opened = open_store(store, master_key=master_key())
        try:
            assert isinstance(opened, SealedStore), "a key was given"
            opened.rotate(new_key)
            typer.echo(f"{store}: opens with the new key from now on, and with the old one no more")
            if rewrite:
                opened.renew()
                typer.echo(f"{store}: {opened.rewrite()} streams sealed again")
        finally:
            opened.close()


def _check_there(store: Path) -> None:
    if not (store / "data.mdb").exists():
        raise ValueError(f"there is no store at {str(store)!r}: check the path and its permissions")
