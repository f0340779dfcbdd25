"""Damaged and hostile settings files, drawn from a seed."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from bench.config import RunConfig
from bench.durations import forward_flops
from bench.shape import GPTShape

EXAMPLES = Path(__file__).parents[2] / "examples"
SWEEPS = sorted((Path(__file__).parents[2] / "bench/sweeps").glob("*.yaml"))
# Values that are not what the place where they are put expects.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**41, 10**400, 1e300, -1e300, 1e-320, float("inf"),
    float("nan"), "", " ", "yes", "on", "010", "1:30", "0x_", "2020-13-45", "1e-4", "1e400", "inf", "nan", "none",
    "null", "a" * 5000, "\0",
    "a\nb", "\x1b[31m", "Größe", "\ud800", "-x", "$(touch PWNED)", "eth0,x;touch PWNED", "../../etc/passwd",
    "/dev/zero", "%s%n",
    "{0}", "${HOME}", "[red]", "$a$b", [], {}, [[]], [1, [2]], {"a": {"b": 1}}, [1] * 3000, list(range(200)),
)  # fmt: skip
# Pieces of text that YAML, JSON or a host file may take for something.
PIECES = (
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"\t", b"!!int abc", b"!!python/object/apply:os.system [x]", b"0x_",
    b"*x",
    b"&a [*a]", b"<<: *a\n", b"1:30", b"010", b"2020-13-45", b"{" * 50, b"[" * 2000, b"- " * 2000, b"---\n", b"...\n",
    b"%YAML 9\n",
    b"? ", b": ", b"# ", b"'", b'"', b"|", b">", b"9" * 5000, b".inf", b"NaN", b"Infinity", b"grid: []\n",
    b"\xe2\x80\xa8", b"=",
    b"&a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n",
)  # fmt: skip


def sweep_file(draw: random.Random) -> bytes:
    """A sweep file: a shipped one with some values, keys or bytes changed."""
    content = yaml.safe_load(draw.choice(SWEEPS).read_text(encoding="utf-8"))
    if draw.random() < 0.2:
        content["exclude"] = [{draw.choice(list(RunConfig.model_fields)): draw.choice(VALUES)}]
    return _damage(draw, content, lambda value: yaml.dump(value, Dumper=_Dumper, allow_unicode=True))


def tuned_file(draw: random.Random) -> bytes:
    """A file of psring tune."""
    content = {"ddp": {"knobs": {"bucket_bytes": 1 << 20}, "rounds": 5}, "mpi_ring": {"knobs": {"segment_bytes": 4096}}}
    return _damage(draw, content, lambda value: yaml.dump(value, Dumper=_Dumper))


def calibration_file(draw: random.Random) -> bytes:
    """A file of psring calibrate."""
    config = RunConfig()
    layers = dict.fromkeys(forward_flops(config.gpt), 1e-4)
    content = {
        "shape": config.gpt.model_dump(), "batch_size": 8, "gradient_accumulation": 1, "precision": "fp32",
        "num_threads": 1, "optimizer": "adamw", "measured_on": "a CPU", "steps": 3, "forward_s": layers,
        "backward_s": layers, "optimizer_s": 1e-3,
    }  # fmt: skip
    return _damage(draw, content, json.dumps)


def costs_file(draw: random.Random) -> bytes:
    """A calibration of a prediction: what hosts and links cost."""
    content = {
        "link": "1gbit", "bytes_per_s": 1e8, "latency_s": 1e-4, "duplex_factor": 1.1, "speed_factors": [1.0, 0.5],
        "intervals": {"latency_s": [1e-5, 1e-3]}, "measured_nodes": [2, 4], "compute_cv": 0.1, "source": "a test",
    }  # fmt: skip
    return _damage(draw, content, json.dumps)


def prediction_file(draw: random.Random) -> bytes:
    """A file of psring predict --out: a row per strategy."""
    columns = ["cell", "strategy", "num_workers", "num_servers", "tokens_per_s_low", "tokens_per_s",
               "tokens_per_s_high", "extrapolated"]  # fmt: skip
    rows = []
    for knobs in ({"strategy": "ring_allreduce"}, {"strategy": "parameter_server", "num_servers": 1}):
        config = RunConfig(num_workers=2, **knobs)
        rows.append([config.digest(), config.strategy, "2", str(config.num_servers), "900", "1000.5", "1.1e3", ""])
    draw.shuffle(columns if draw.random() < 0.1 else [])
    if draw.random() < 0.6:
        draw.choice(rows)[draw.randrange(len(columns))] = str(draw.choice(VALUES))[:6000]
    text = "".join(",".join(line) + "\n" for line in (columns, *rows)).encode("utf-8", "surrogatepass")
    return _damage_text(draw, text, draw.choice((0, 1)))


def published_file(draw: random.Random) -> bytes:
    """Others' measurements: the example with some values, keys or bytes changed."""
    content = yaml.safe_load((EXAMPLES / "published.yaml").read_text(encoding="utf-8"))
    return _damage(draw, content, lambda value: yaml.dump(value, Dumper=_Dumper, allow_unicode=True))


def weights_file(draw: random.Random) -> bytes:
    """Weights of --save-parameters whose metadata, tensors or bytes are damaged."""
    import torch

    from bench.rank.model import GPT

    shape = GPTShape(n_layer=1, n_head=2, n_embd=8, vocab_size=16, block_size=4)
    state = GPT(shape).state_dict()
    about = {"psring": {"shape": shape.model_dump(), "data": "stdlib"}}
    if draw.random() < 0.5:
        _damage_value(draw, about)
    if draw.random() < 0.5:
        name = draw.choice(list(state))
        state[name] = draw.choice(
            [state[name].to(torch.int32), state[name].to_sparse(), state[name][:1], state[name] / 0]
        )
    state._metadata = {"": about}
    content = io.BytesIO()
    torch.save(state, content)
    return _damage_bytes(draw, content.getvalue(), draw.choice((0, 0, 1)))


def host_file(draw: random.Random) -> bytes:
    """A host file."""
    lines = [b"localhost slots=2", b"127.0.0.1:4", b"localhost", b"# none", b"", b"host slots = 1 max_slots=2"]
    return _damage_text(draw, b"\n".join(draw.choices(lines, k=4)), draw.randrange(4))


def data_file(draw: random.Random) -> bytes:
    """A file for --data."""
    kinds = [draw.randbytes(4000), b"\x93NUMPY" + draw.randbytes(100), b"text " * 1000, bytes(4000)]
    return _damage_text(draw, draw.choice(kinds), draw.randrange(3))


def results_folder(draw: random.Random, folder: Path) -> None:
    """Damage one or two files of a results folder: their values, their bytes, or what they are."""
    for path in draw.sample(sorted(path for path in folder.rglob("*") if path.is_file()), draw.choice((1, 1, 2))):
        kind = draw.randrange(8)
        if kind == 0:
            path.unlink()
            draw.choice((lambda: None, path.mkdir, lambda path=path: path.symlink_to("/dev/zero")))()
        elif kind < 4 and path.suffix in (".jsonl", ".json"):
            lines = path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            at = draw.randrange(len(lines))
            content = json.loads(lines[at])
            _damage_value(draw, content)
            lines[at] = json.dumps(content)
            path.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass"))
        else:
            path.write_bytes(_damage_text(draw, path.read_bytes(), draw.choice((1, 1, 3))))


class _Dumper(yaml.SafeDumper):
    """Writes every value, also those that no YAML file should have, without aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _damage(draw: random.Random, content: Any, write: Callable[[Any], str]) -> bytes:
    """Change values and keys of a document, write it, then change its bytes."""
    for _ in range(draw.randrange(3)):
        _damage_value(draw, content)
    text = write(content).encode("utf-8", "surrogatepass")
    return _damage_text(draw, text, draw.choice((0, 0, 1)))


def _damage_value(draw: random.Random, content: Any) -> None:
    """Walk to a random place of a document; replace, remove or rename what is there."""
    place = content
    while isinstance(place, (dict, list)) and place:
        key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
        inner = place[key]
        if not isinstance(inner, (dict, list)) or not inner or draw.random() < 0.3:
            break
        place = inner
    else:
        return
    action = draw.randrange(4)
    if action == 0:
        del place[key]
    elif action == 1 and isinstance(place, dict):
        place[str(draw.choice(VALUES))[:6000]] = place.pop(key)
    else:
        place[key] = draw.choice(VALUES)


def _damage_bytes(draw: random.Random, content: bytes, times: int) -> bytes:
    for _ in range(times):
        at = draw.randrange(len(content))
        content = draw.choice([content[:at], content[:at] + draw.randbytes(20) + content[at + 20 :]])
    return content


def _damage_text(draw: random.Random, text: bytes, times: int) -> bytes:
    for _ in range(times):
        at, size = draw.randrange(len(text) + 1), draw.randrange(1, 40)
        lines = text.splitlines(keepends=True) or [b""]
        text = draw.choice([
            text[:at] + draw.choice(PIECES) + text[at:],
            text[:at] + text[at + size :],
            text[:at],
            text + draw.choice(lines),
            text.replace(b": ", b": " + draw.choice(PIECES), 1),
            text.replace(b"\n", b"\r\n"),
        ])  # fmt: skip
    return text
