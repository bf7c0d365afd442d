"""Who waits for whom: the asks that are under way, as a graph, to see a cycle before it closes. Pure.

An edge leads from the one that asks to the one that is asked. The same two may wait several times over (an actor with
two tasks that ask the same actor), so each edge has a count, and is there while the count is above 0. Before adding
asker -> target, `path(target, asker)` is asked for: where it is not None, the new edge would close a cycle, and the
path is what to show. Asking oneself is the path of one node.

Cost: add and remove are on the path of each nested ask, a few dict operations each; so is a path from somebody who
waits for nobody, which is the usual one.

Source: Chandy, Misra and Haas, "Distributed Deadlock Detection" (ACM TOCS 1(2), 1983), here in one process, where the
wait-for graph is at hand; the search is breadth first.
"""

from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["WaitGraph"]

Node = TypeVar("Node", bound=Hashable)


class WaitGraph(Generic[Node]):
    """The edges, with a count each."""

    __slots__ = ("_targets",)

    def __init__(self) -> None:
        self._targets: dict[Node, dict[Node, int]] = {}  # no inner dict is empty, no count is 0

    def __len__(self) -> int:
        """How many edges there are; each counts once, however often its two ends wait. Cost: all waiters."""
        return sum(map(len, self._targets.values()))

    def add(self, waiter: Node, target: Node) -> None:
        """`waiter` waits for `target`, once more."""
        targets = self._targets.get(waiter)
        if targets is None:
            self._targets[waiter] = {target: 1}
        else:
            targets[target] = targets.get(target, 0) + 1

    def remove(self, waiter: Node, target: Node) -> None:
        """`waiter` waits for `target` once less. There was an `add` for this."""
        targets = self._targets.get(waiter)
        assert targets is not None, f"{waiter} waits for nobody"
        assert target in targets, f"{waiter} does not wait for {target}"
        if targets[target] > 1:
            targets[target] -= 1
            return
        del targets[target]
        if not targets:
            del self._targets[waiter]

    def path(self, start: Node, goal: Node) -> tuple[Node, ...] | None:
        """The shortest chain of waits from `start` to `goal`, both included; None where there is none.

        Cost: at most the edges that can be reached from `start`; nothing where it waits for nobody.
        """
        if start == goal:
            return (start,)
        if start not in self._targets:
            return None
        came_from: dict[Node, Node] = {}
        ring = [start]
        while ring:
            ring = self._next_ring(ring, came_from)
            if goal in came_from:
                return _walk_back(came_from, start, goal)
        return None

    def edges(self) -> list[tuple[Node, Node]]:
        """Each (waiter, target) once, by waiter in the order in which they began to wait."""
        return [(waiter, target) for waiter, targets in self._targets.items() for target in targets]

    def _next_ring(self, ring: list[Node], came_from: dict[Node, Node]) -> list[Node]:
        """The nodes one wait further than `ring` that were not seen before; they are noted in `came_from`."""
        found: list[Node] = []
        for waiter in ring:
            for target in self._targets.get(waiter, ()):
                if target not in came_from:
                    came_from[target] = waiter
                    found.append(target)
        return found


def _walk_back(came_from: dict[Node, Node], start: Node, goal: Node) -> tuple[Node, ...]:
    chain = [goal]
    while chain[-1] != start:
        chain.append(came_from[chain[-1]])
    return tuple(reversed(chain))
