"""Laws of volumes: counts add up, what is unknown stays unknown, and a mean needs every rank."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from strategies.volume import Volume, mean_volume

counts = st.builds(Volume, *([st.integers(0, 10**9)] * 4))


@given(counts, counts)
def test_a_difference_of_counts_is_what_was_added(before: Volume, moved: Volume) -> None:
    after = Volume(*vars(before).values())
    after.add(*vars(moved).values())
    assert after - before == moved


@given(counts)
def test_what_is_unknown_stays_unknown(volume: Volume) -> None:
    volume.add(None, 1, None, 1)
    assert (volume.bytes_sent, volume.messages_sent) == (None, None)
    volume.add(5, 5, 5, 5)
    assert (volume.bytes_sent, volume.messages_sent) == (None, None)
    assert volume.bytes_received is not None
    assert (volume / 2).bytes_received == volume.bytes_received / 2
    assert (volume - Volume()).bytes_sent is None


def test_a_mean_is_unknown_where_one_ranks_count_is() -> None:
    assert mean_volume([]) is None
    assert mean_volume([Volume(2, 4, 6, None), Volume(4, 8, 10, 3)]) == Volume(3, 6, 8, None)
