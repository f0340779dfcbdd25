"""Laws of tensor parallelism that need no ranks: how layers are divided, and which sums a step takes.

tests/sweep/test_launched.py runs real ranks.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor.debug import CommDebugMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from bench.config import RunConfig
from bench.durations import durations
from bench.ledger import predict
from bench.rank.asleep import SleepSchedule
from bench.rank.build import build_training, load_data
from bench.rank.train import build_model, train
from strategies import create, process_group
from strategies.group import SingleGroup
from strategies.tensor_parallel import Division, TensorParallel
from tests.support.worlds import CPU, assert_equivalent, corpus, small, trained

KNOBS: dict[str, dict[str, object]] = {
    "plain": {},
    "decay": {"optimizer": "sgd", "weight_decay": 0.1, "learning_rate": 0.1},
    "accumulation, clipping": {"gradient_accumulation": 2, "clip_norm": 0.1},
    "divided tokens": {"sequence_parallel": True},
}


def divided(**values: object) -> RunConfig:
    return small(**{"strategy": "tensor_parallel", "num_workers": 4, "n_head": 4, **values})


@pytest.mark.parametrize("knobs", KNOBS.values(), ids=KNOBS)
def test_one_rank_trains_the_reference_model(knobs: dict[str, object]) -> None:
    config = divided(num_workers=1, **knobs)
    assert_equivalent(config, trained(config, create("tensor_parallel", SingleGroup(), config)))


@pytest.mark.parametrize(("how", "dim"), [("3 columns", 0), ("columns", 0), ("rows", 1)])
def test_the_parts_of_a_layer_are_joined_to_the_layer(how: str, dim: int) -> None:
    weight = torch.randn(12, 8)
    division = Division(how, 2)
    sorted_rows = division.contiguous(weight) if division.is_columns else weight
    assert torch.equal(division.joined(sorted_rows.chunk(2, dim)), weight)


def test_a_rank_has_its_share_of_queries_keys_and_values() -> None:
    weight = torch.arange(12).view(12, 1)  # 4 rows each of q, k and v
    first = Division("3 columns", 2).contiguous(weight)[:6]
    assert first.flatten().tolist() == [0, 1, 4, 5, 8, 9]


class FirstOf(SingleGroup):
    """Rank 0 of a group whose other ranks only seem to be there."""

    def __init__(self, size: int) -> None:
        self.size = size


@pytest.fixture
def seeming_ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Process groups whose collectives leave tensors as they are."""

    def start(group: SingleGroup, _: torch.device) -> None:
        dist.init_process_group("fake", store=FakeStore(), rank=group.rank, world_size=group.size)

    monkeypatch.setattr(process_group, "start", start)
    yield
    dist.destroy_process_group()


def counted_collectives(config: RunConfig) -> tuple[int, TensorParallel]:
    """What torch itself counts in one step, by the calls that reach its dispatcher."""
    strategy = TensorParallel(FirstOf(config.num_workers), config)
    module: nn.Module = strategy.prepare(*build_training(config, strategy, CPU))
    batches = corpus(config) if config.compute == "real" else load_data(config)
    with CommDebugMode() as seen:
        for _ in train(config, module, strategy, batches, CPU):
            pass
    return seen.get_total_counts(), strategy


# CommDebugMode's own, on layers whose inputs need no gradient
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")


@pytest.mark.usefixtures("seeming_ranks")
@pytest.mark.parametrize("compute", ["real", "none"])
def test_a_block_takes_four_sums_in_each_step_and_counts_them(compute: str) -> None:
    config = divided(steps=1, compute=compute)
    found, strategy = counted_collectives(config)
    assert found == 4 * config.gpt.n_layer
    assert strategy.observe().moved.bytes_sent == predict(config).worker.bytes_sent


@pytest.mark.usefixtures("seeming_ranks")
def test_with_divided_tokens_a_block_takes_eight_halves_of_sums_and_counts_them() -> None:
    config = divided(steps=1, sequence_parallel=True)
    found, strategy = counted_collectives(config)
    assert found == 8 * config.gpt.n_layer + 2 + 1  # all tokens for the head and the embedding; the norms' gradients
    assert strategy.observe().moved.bytes_sent == pytest.approx(predict(config).worker.bytes_sent)


def test_divided_tokens_take_as_many_bytes_but_for_gloos_reduce_scatter() -> None:
    plain, tokens = (predict(divided(sequence_parallel=each)).worker.bytes_sent or 0 for each in (False, True))
    config = divided()
    activations = 4 * config.batch_size * config.gpt.block_size * config.gpt.n_embd
    norms = 2 * 4 * (2 * config.gpt.n_layer + 1) * 2 * config.gpt.n_embd
    assert tokens == pytest.approx(3 / 4 * (12 * config.gpt.n_layer * activations + 2 * activations + norms))
    assert plain == pytest.approx(3 / 4 * 8 * config.gpt.n_layer * activations)


@pytest.mark.usefixtures("seeming_ranks")
def test_layers_that_sleep_are_divided_and_all_others_sleep_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    config = divided(steps=1, compute="emulated", emulated_forward_s=1.0, emulated_backward_s=2.0)
    slept: list[float] = []
    monkeypatch.setattr(SleepSchedule, "_sleep", lambda _, __, seconds: slept.append(seconds))
    _, strategy = counted_collectives(config)
    times = durations(config)
    layers = times.forward_s.keys()
    shares = {name: 1 / 4 if name.endswith(("qkv", "proj", "fc")) else 1.0 for name in layers}
    of_passes = sum(shares[name] * (times.forward_s[name] + times.backward_s[name]) for name in layers)
    held = sum(parameter.numel() for parameter in strategy._parameters) / config.gpt.num_parameters
    assert sum(slept) == pytest.approx(of_passes + held * times.optimizer_s)
    assert of_passes < 2
    assert held < 1


def test_the_volume_is_that_of_four_rings_per_block_and_of_copies() -> None:
    config = divided(model_parallel_size=2)
    activations = 4 * config.batch_size * config.gpt.block_size * config.gpt.n_embd
    sums = 4 * config.gpt.n_layer * activations  # a ring of two sends each vector once
    whole = sum(p.numel() for p in build_model(config, CPU).parameters())
    held = 4 * (whole - config.gpt.n_layer * (12 * config.gpt.n_embd**2 + 7 * config.gpt.n_embd) / 2)
    assert predict(config).worker.bytes_sent == pytest.approx(sums + held)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"n_head": 2}, "2 heads (n_head) do not divide among 4 ranks; choose one of 1, 2"),
        ({"num_workers": 3, "model_parallel_size": 2}, "2 does not divide num_workers: 3"),
        ({"precision": "bf16"}, "partial sums to bf16"),
        ({"sequence_parallel": True, "block_size": 18}, "18 tokens (block_size) do not divide among 4 ranks"),
        ({"sequence_parallel": True, "compute": "none"}, "use compute: real"),
    ],
)
def test_what_cannot_be_divided_is_unsupported(knobs: dict[str, object], said: str) -> None:
    assert said in (divided(**knobs).unsupported() or "")


def test_micro_batches_are_a_pipelines() -> None:
    with pytest.raises(ValueError, match="num_micro_batches: tensor_parallel does not read it"):
        divided(num_micro_batches=2)
