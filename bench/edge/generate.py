"""Text from a trained GPT, token by token."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.config import BadInput
from bench.rank.model import GPT


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: from softmax(logits / temperature) over the `top_k` likeliest; 0: the likeliest."""

    temperature: float = 0.8
    top_k: int = 40
    seed: int = 0


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Return the next token of every sequence: (B, vocab_size) -> (B, 1)."""
    if sampling.temperature == 0:
        return logits.argmax(-1, keepdim=True)
    if not torch.isfinite(logits).all():
        raise BadInput(
            "the model's logits are not finite: its weights are too large; train with a lower --learning-rate"
        )
    likeliest, tokens = logits.topk(min(sampling.top_k, logits.shape[-1]))
    drawn = torch.multinomial((likeliest / sampling.temperature).softmax(-1), 1, generator=generator)
    return tokens.gather(-1, drawn)


@torch.no_grad()
def generate(model: GPT, prompt: Sequence[int], max_tokens: int, sampling: Sampling) -> Iterator[int]:
    """Yield the tokens that follow a prompt.

    When the context is full, it begins again with its newer half: learned positions end at block_size.
    """
    generator = torch.Generator().manual_seed(sampling.seed)
    context = list(prompt[-model.shape.block_size :])
    caches, new = model.caches(1), context
    for _ in range(max_tokens):
        if len(context) > model.shape.block_size:
            context = context[-max(1, model.shape.block_size // 2) :]
            caches, new = model.caches(1), context
        token = int(draw(model.next_logits(torch.tensor([new]), caches), sampling, generator))
        yield token
        context.append(token)
        new = [token]


def encode(prompt: str, vocab_size: int, reads_bytes: bool) -> list[int]:
    """Return a prompt's tokens: its bytes in UTF-8, or the numbers that it lists where tokens are no bytes."""
    if reads_bytes:
        try:
            return list(prompt.encode("utf-8", errors="surrogateescape"))
        except UnicodeEncodeError as error:
            raise BadInput(f"--prompt: character {error.start} is half of a surrogate pair; leave it out") from None
    words = prompt.split()
    if not all(re.fullmatch("[0-9]{1,9}", word) and int(word) < vocab_size for word in words):
        raise BadInput(
            f"--prompt: this model's tokens are no bytes, and psring has no tokenizer; "
            f"give their numbers, 0 to {vocab_size - 1}: --prompt '12 7'"
        )
    return [int(word) for word in words]


def decoder(reads_bytes: bool) -> Callable[[int], str]:
    """Return a function that turns tokens, one after the other, into text that a terminal shows.

    Half a character waits for its other half; what is no text is escaped. Tokens that are no bytes become numbers.
    """
    if not reads_bytes:
        return lambda token: f"{token} "
    decode = codecs.getincrementaldecoder("utf-8")(errors="backslashreplace").decode
    return lambda token: "".join(map(_shown, decode(bytes([token]))))


def _shown(letter: str) -> str:
    return letter if letter.isprintable() or letter in "\n\t" else ascii(letter)[1:-1]
