"""Which kinds of actor there are, and the one cell of each id."""

from collections.abc import Iterator

from .cell import ActorKind, Cell
from .errors import UnknownActor
from .identity import ActorId, checked_id, checked_key
from .lifecycle import Event

__all__ = ["Registry"]


_SHRINK_MIN = 1024


class Registry:
    """A dict in front of which ids are checked. Cells are made on first use: an idle id costs nothing."""

    def __init__(self) -> None:
        self._kinds: dict[str, ActorKind] = {}
        self._cells: dict[ActorId, Cell] = {}
        self._closed = False
        self._forgotten = 0

    def __iter__(self) -> Iterator[Cell]:
        return iter(list(self._cells.values()))

    def __len__(self) -> int:
        return len(self._cells)

    def add(self, kind: ActorKind) -> None:
        """Make a kind known.

        Raises:
            ValueError: the name is taken, or is no good for an id.
        """
        checked_id(kind.name, "x")
        if kind.name in self._kinds:
            raise ValueError(f"a kind named {kind.name!r} is registered already; choose another name")
        self._kinds[kind.name] = kind

    def cell(self, kind: str, key: str) -> Cell:
        """The one cell of this id.

        Raises:
            UnknownActor: no such kind.
            TypeError, ValueError: see `identity.checked_id`.
        """
        cell = self._cells.get(ActorId(kind, key))
        return cell if cell is not None else self.at(self.check(kind, key))

    def at(self, id: ActorId) -> Cell:
        """The one cell of an id that was checked."""
        cell = self._cells.get(id)
        if cell is None:
            cell = self._cells[id] = Cell(id, self._kinds[id.kind])
            if self._closed:
                cell.happen(Event.STOP)
        return cell

    def close(self) -> None:
        """Cells that are made from now on are stopped: a last commit may still send to an actor that never was."""
        self._closed = True

    def forget(self, cell: Cell) -> None:
        """Let go a cell that is ABSENT and that nobody needs; the next use of its id makes a new one."""
        cell.happen(Event.FORGET)
        del self._cells[cell.id]
        self._forgotten += 1
        if self._forgotten >= _SHRINK_MIN and self._forgotten > len(self._cells):
            self._forgotten = 0
            self._cells = dict(self._cells)  # a dict keeps the room of what was deleted

    @property
    def kinds(self) -> list[ActorKind]:
        """The kinds that are known."""
        return list(self._kinds.values())

    def kind(self, name: str) -> ActorKind:
        """The kind of this name, which is known."""
        return self._kinds[name]

    def check(self, kind: str, key: str) -> ActorId:
        """The id, where its cell could be made.

        Raises: as `cell`.
        """
        if kind not in self._kinds:
            checked_id(kind, key)
            known = ", ".join(sorted(self._kinds)) or "none"
            raise UnknownActor(f"no kind of actor is named {kind!r}; registered: {known}. Use Runtime.register")
        return ActorId(kind, checked_key(key))

    def find(self, id: ActorId) -> Cell | None:
        """The cell of this id if there is one already."""
        return self._cells.get(id)
