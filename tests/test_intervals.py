"""Sets of intervals, and what a device did in a window."""

from smoldiag.model import intervals


def test_parts_of_a_window() -> None:
    found = intervals.busy([(0, 4), (3, 6)], [(5, 9), (1, 2)], [(12, 13)], window=(0, 14))
    assert (found.compute, found.communication, found.memory) == (6, 5, 1)
    assert found.exposed_communication == 3
    assert found.idle == 14 - 9 - 1


def test_unions_and_overlaps() -> None:
    assert intervals.union([(3, 4), (1, 2), (2, 3), (7, 7)]) == [(1, 4)]
    assert intervals.length([]) == 0
    assert intervals.overlap([(0, 10)], [(2, 3), (5, 12)]) == 6
    assert intervals.overlap([(0, 1), (2, 3)], [(1, 2)]) == 0
