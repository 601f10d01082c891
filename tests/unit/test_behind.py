"""How late a follower of the log is, by looks at where it and the head stand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streamtrain.behind import Behind


def test_a_follower_that_works_is_not_late_though_it_is_one_behind_at_every_look() -> None:
    behind = Behind()
    assert [behind.see(epoch, epoch - 1, float(epoch)) for epoch in range(1, 20)] == [0.0] * 19


def test_one_that_stands_still_is_as_late_as_its_next_epoch_is_old() -> None:
    behind = Behind()
    assert behind.see(5, 5, 0.0) == 0
    assert [behind.see(5 + i, 5, float(i)) for i in range(1, 5)] == [0, 1, 2, 3]
    # It moves, but not to the head: what it lacks now became durable at 3.
    assert behind.see(9, 7, 5.0) == 2
    assert behind.see(9, 9, 6.0) == 0


def test_one_that_stands_still_for_very_long_is_remembered_in_bounded_memory() -> None:
    behind = Behind()
    assert [behind.see(i + 1, 0, float(i)) for i in range(5000)][-1] == 4999
    assert len(behind._marks) <= 1024


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=50))
def test_it_tells_since_which_look_the_next_epoch_has_been_there(moves: list[tuple[int, int]]) -> None:
    behind, head, done = Behind(), 0, 0
    seen: list[int] = []
    for now, (more, worked) in enumerate(moves):
        head, done = head + more, min(head + more, done + worked)
        seen.append(head)
        late = behind.see(head, done, float(now))
        since = next((look for look, epoch in enumerate(seen) if epoch > done), now)
        assert late == now - since
