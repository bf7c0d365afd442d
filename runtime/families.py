"""Which actors supervise which: a tree over the cells, made by `context.supervise`. Pure.

A family belongs to the parent's activation: it is dissolved when that ends, and the next one founds it anew. That of a
parent that has failed is kept until it is resumed, since they are resumed with it.

| strategy of the parent's kind | restarted with the child that crashed |
|---|---|
| one_for_one | none |
| one_for_all | every other child |
| rest_for_one | the children that were supervised after it |

Source: Erlang/OTP design principles, "Supervisor Behaviour", restart strategy.
"""

from .cell import Cell

__all__ = ["adopt", "children_of", "dissolve", "parent_of", "restarted_with"]


def parent_of(cell: Cell) -> Cell | None:
    """The cell's supervisor."""
    return cell.ties.parent if cell.ties is not None else None


def children_of(cell: Cell) -> list[Cell]:
    """Whom the cell supervises, in order."""
    return list(cell.ties.children) if cell.ties is not None else []


def adopt(parent: Cell, child: Cell) -> None:
    """Put `child` after the other children of `parent`; does nothing where it is one already.

    Raises:
        ValueError: it has another parent, or stands above this one.
    """
    present = parent_of(child)
    if present is parent:
        return
    if present is not None:
        raise ValueError(f"{child.id} is supervised by {present.id} already; an actor has one supervisor")
    above: Cell | None = parent
    while above is not None:
        if above is child:
            raise ValueError(f"{child.id} stands above {parent.id}, or is the same: it cannot be supervised by it")
        above = parent_of(above)
    child.bonds.parent = parent
    parent.bonds.children.append(child)


def dissolve(parent: Cell) -> list[Cell]:
    """Part the children from their parent; who they were, in order."""
    if parent.ties is None:
        return []
    children, parent.ties.children = parent.ties.children, []
    for child in children:
        child.bonds.parent = None
    return children


def restarted_with(cell: Cell) -> list[Cell]:
    """The siblings that restart because this one has crashed, see the table."""
    parent = parent_of(cell)
    if parent is None or parent.kind.restart.strategy == "one_for_one":
        return []
    children = parent.bonds.children
    begin = children.index(cell) if parent.kind.restart.strategy == "rest_for_one" else 0
    return [child for child in children[begin:] if child is not cell]
