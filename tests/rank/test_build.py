"""Laws of what ranks agree on before the first step: equal runs, and options that the model can be trained with."""

from __future__ import annotations

import pytest

from bench.config import AgreedBadInput, RunConfig
from bench.mpi import ALONE
from bench.rank.build import build
from bench.rank.group import agree
from bench.records import PlannedRun
from strategies.group import SingleGroup
from tests.support.worlds import small


class TwoRanks(SingleGroup):
    """Rank 0 of two ranks, of which the other one has given something else."""

    def __init__(self, other: list[PlannedRun], tracing: bool) -> None:
        self.other, self.tracing = other, tracing

    def gather(self, value: object) -> list[object]:
        """Return this rank's value and what the other rank would have sent."""
        theirs: list[object] = []
        agree(Recorder(theirs), self.other, self.tracing)
        return [value, *theirs]


class Recorder(SingleGroup):
    """Keeps what a rank sends."""

    def __init__(self, sent: list[object]) -> None:
        self.sent = sent

    def gather(self, value: object) -> list[object]:
        """Keep the value."""
        self.sent.append(value)
        return [value]


RUN = PlannedRun(config=RunConfig(strategy="ddp", num_workers=2))
OTHER = PlannedRun(config=RunConfig(strategy="ddp", num_workers=2, seed=7))


@pytest.mark.parametrize(
    ("others", "tracing", "said"),
    [
        ([OTHER], False, "seed: rank 0 was given 1337, rank 1 7; start every rank alike"),
        ([RUN], True, "trace: rank 0 was given False, rank 1 True"),
        ([RUN, RUN], False, "number of runs: rank 0 was given 1, rank 1 2"),
        ([PlannedRun(config=RunConfig())], False, "strategy: rank 0 was given 'ddp', rank 1 'local'"),
    ],
)
def test_ranks_that_were_given_different_flags_are_named(others: list[PlannedRun], tracing: bool, said: str) -> None:
    agree(TwoRanks([RUN], tracing=False), [RUN], tracing=False)
    with pytest.raises(AgreedBadInput, match=said):
        agree(TwoRanks(others, tracing), [RUN], tracing=False)


def test_more_messages_than_mpi_has_tags_are_refused() -> None:
    config = small(strategy="mpi_ring", model="gpt-micro", n_embd=128, segment_bytes=64, n_layer=4)
    with pytest.raises(AgreedBadInput, match=r"^mpi_ring: segment_bytes: 64 makes \d+ buckets, more than MPI has tags"):
        build(config, ALONE, SingleGroup())
