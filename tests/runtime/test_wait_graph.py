import weakref
from collections import Counter
from itertools import pairwise, permutations

import pytest
from hypothesis import given, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from callboard.runtime.identity import ActorId
from callboard.runtime.wait_graph import WaitGraph

NODES = range(6)
nodes = st.sampled_from(NODES)


def shortest_length(waits: set[tuple[int, int]], start: int, goal: int) -> int | None:
    """How many nodes the shortest chain has, by trying every order of the nodes between the two."""
    if start == goal:
        return 1
    between = [node for node in NODES if node not in (start, goal)]
    for count in range(len(between) + 1):
        for middle in permutations(between, count):
            chain = (start, *middle, goal)
            if waits.issuperset(pairwise(chain)):
                return len(chain)
    return None


class WaitGraphMachine(RuleBasedStateMachine):
    """Against the plainest model: a bag of pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = WaitGraph[int]()
        self.model = Counter[tuple[int, int]]()

    @rule(waiter=nodes, asked=nodes)
    def add(self, waiter: int, asked: int) -> None:
        self.graph.add(waiter, asked)
        self.model[waiter, asked] += 1

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        edge = data.draw(st.sampled_from(sorted(self.model)))
        self.graph.remove(*edge)
        self.model -= Counter([edge])

    @rule(start=nodes, goal=nodes)
    def path(self, start: int, goal: int) -> None:
        path = self.graph.path(start, goal)
        expected = shortest_length(set(self.model), start, goal)
        if path is None:
            assert expected is None
        else:
            assert len(path) == expected
            assert (path[0], path[-1]) == (start, goal)
            assert set(self.model).issuperset(pairwise(path))

    @invariant()
    def it_has_the_edges_of_the_model_each_once(self) -> None:
        assert sorted(self.graph.edges()) == sorted(self.model)
        assert len(self.graph) == len(self.model)


TestWaitGraphAgainstItsModel = WaitGraphMachine.TestCase


@given(waits=st.sets(st.tuples(nodes, nodes)), start=nodes, goal=nodes)
def test_a_path_is_a_shortest_chain_of_waits(waits: set[tuple[int, int]], start: int, goal: int) -> None:
    graph = WaitGraph[int]()
    for waiter, target in sorted(waits):
        graph.add(waiter, target)

    path = graph.path(start, goal)

    assert (len(path) if path else None) == shortest_length(waits, start, goal)
    assert path is None or waits.issuperset(pairwise(path))


@given(asks=st.lists(st.tuples(nodes, nodes), max_size=30))
def test_asking_for_the_path_before_each_wait_keeps_the_graph_free_of_cycles(asks: list[tuple[int, int]]) -> None:
    graph = WaitGraph[int]()
    for asker, target in asks:
        cycle = graph.path(target, asker)
        if cycle is None:
            graph.add(asker, target)

    waits = set(graph.edges())
    while waits:  # without a cycle somebody is always asked who waits for nobody
        answered = {target for _, target in waits} - {waiter for waiter, _ in waits}
        assert answered
        waits = {(waiter, target) for waiter, target in waits if target not in answered}


def test_the_path_shows_the_whole_cycle_that_an_ask_would_close() -> None:
    graph = WaitGraph[ActorId]()
    front, middle, back = (ActorId("agent", name) for name in ("front", "middle", "back"))
    graph.add(front, middle)
    graph.add(middle, back)

    assert graph.path(front, back) == (front, middle, back)
    assert graph.path(back, front) is None


@pytest.mark.parametrize("detour_first", [True, False])
def test_the_shorter_of_two_chains_is_shown_whichever_began_first(detour_first: bool) -> None:
    detour, direct = [("a", "b"), ("b", "c"), ("c", "goal")], [("a", "d"), ("d", "goal")]
    graph = WaitGraph[str]()
    for waiter, target in detour + direct if detour_first else direct + detour:
        graph.add(waiter, target)

    assert graph.path("a", "goal") == ("a", "d", "goal")


def test_asking_oneself_is_a_cycle_though_nobody_waits_yet() -> None:
    assert WaitGraph[str]().path("a", "a") == ("a",)


def test_a_wait_that_was_added_twice_is_there_until_it_is_removed_twice() -> None:
    graph = WaitGraph[str]()
    graph.add("a", "b")
    graph.add("a", "b")

    graph.remove("a", "b")
    after_one = graph.edges(), graph.path("a", "b")
    graph.remove("a", "b")

    assert after_one == ([("a", "b")], ("a", "b"))
    assert (graph.edges(), graph.path("a", "b"), len(graph)) == ([], None, 0)


def test_nothing_is_kept_of_a_waiter_that_waits_no_more() -> None:
    class Somebody:
        pass

    graph = WaitGraph[Somebody]()
    waiter, target = Somebody(), Somebody()
    graph.add(waiter, target)
    graph.remove(waiter, target)

    kept = weakref.ref(waiter), weakref.ref(target)
    del waiter, target

    assert [reference() for reference in kept] == [None, None]


def test_removing_a_wait_that_is_not_there_is_a_broken_invariant() -> None:
    graph = WaitGraph[str]()
    graph.add("a", "b")

    with pytest.raises(AssertionError, match="b waits for nobody"):
        graph.remove("b", "a")
    with pytest.raises(AssertionError, match="a does not wait for c"):
        graph.remove("a", "c")
    assert graph.edges() == [("a", "b")]


def test_a_search_costs_what_the_edges_cost_not_what_the_chains_do() -> None:
    hashed = 0

    class Counted(int):
        def __hash__(self) -> int:
            nonlocal hashed
            hashed += 1
            return int(self)

    graph = WaitGraph[Counted]()
    for waiter in range(32):  # 16 layers of two, each joined to the whole next one: 64 edges, 2**16 chains
        for target in (waiter // 2 * 2 + 2, waiter // 2 * 2 + 3):
            graph.add(Counted(waiter), Counted(target))
    hashed = 0

    assert graph.path(Counted(0), Counted(-1)) is None
    assert hashed < 5 * 64
