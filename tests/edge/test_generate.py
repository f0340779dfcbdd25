"""Text from a trained model: what is cached changes nothing, a seed decides, and what comes out can be shown."""

from __future__ import annotations

import pytest
import torch

from bench.config import BadInput
from bench.edge.generate import Sampling, decoder, draw, encode, generate
from bench.rank.model import GPT
from bench.shape import GPTShape

SHAPE = GPTShape(n_layer=2, n_head=2, n_embd=16, vocab_size=64, block_size=8)


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    model = GPT(SHAPE)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.5)  # sharper than the initial weights, whose logits are nearly equal
    return model.eval()


@torch.no_grad()
def without_cache(model: GPT, prompt: list[int], length: int) -> list[int]:
    context, found = list(prompt), []
    for _ in range(length):
        if len(context) > SHAPE.block_size:
            context = context[-(SHAPE.block_size // 2) :]
        found.append(int(model.logits(torch.tensor([context]))[0, -1].argmax()))
        context.append(found[-1])
    return found


def test_the_likeliest_tokens_are_those_of_the_whole_context(model: GPT) -> None:
    greedy = Sampling(temperature=0)
    prompt = [3, 1, 4]
    assert list(generate(model, prompt, 3 * SHAPE.block_size, greedy)) == without_cache(model, prompt, 24)


@pytest.mark.parametrize("length", [1, SHAPE.block_size, 3 * SHAPE.block_size])
def test_a_prompt_of_any_length_is_continued(model: GPT, length: int) -> None:
    assert len(list(generate(model, [5] * length, 20, Sampling()))) == 20


def test_a_seed_decides_what_is_drawn(model: GPT) -> None:
    texts = [tuple(generate(model, [1], 30, Sampling(1.0, 64, seed))) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_only_the_likeliest_k_are_drawn_and_as_often_as_their_softmax_says() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0]).repeat(20_000, 1)
    drawn = draw(logits, Sampling(temperature=0.5, top_k=3), torch.Generator().manual_seed(0)).flatten()
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    expected = (torch.tensor([0.0, 1.0, 2.0, -torch.inf]) / 0.5).softmax(0)
    assert torch.allclose(shares, expected, atol=0.02)
    assert shares[3] == 0


def test_bytes_become_text_and_nothing_that_moves_a_cursor() -> None:
    decode = decoder(reads_bytes=True)
    assert "".join(map(decode, "é\n".encode())) == "é\n"
    assert "".join(map(decode, b"\x1b[2J\xff!")) == r"\x1b[2J\xff!"


def test_tokens_that_are_no_bytes_are_numbers() -> None:
    assert encode("12 7", 5000, reads_bytes=False) == [12, 7]
    assert decoder(reads_bytes=False)(12) == "12 "
    for wrong in ("text", "5000", "-1"):
        with pytest.raises(BadInput, match="numbers"):
            encode(wrong, 5000, reads_bytes=False)
