"""The report of `psring compress`: a row per variant, and which of them are on the front of loss, latency and size."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench import files
from bench.config import BadInput
from bench.edge import results
from bench.edge.recipe import ORIGINAL
from bench.edge.results import Launch, Variant
from bench.intervals import median_interval
from bench.report import edge_figure, tables, write
from bench.report.figures import write_figures
from bench.report.loss import pareto
from bench.report.tables import BYTES, SECONDS, Columns, Row, Table, interval, number
from bench.report.verdicts import ABOVE, BELOW, EQUIVALENT, MARGIN, NO_VERDICT, UNDECIDED, Ratio, judge, paired

MEASURED = [name for name in Launch.model_fields if name not in ("variant", "repeat")]
WORDS = {ABOVE: "faster", BELOW: "slower", EQUIVALENT: "equivalent", UNDECIDED: "undecided", NO_VERDICT: "no verdict"}
FRONT = ["loss", "token_s_p50", "size_bytes"]
MAX_LOSS = 0.02  # a variant is as good as the original if its loss is higher by at most this share


def write_report(folder: Path) -> str:
    """Write variants.csv, figures/, report.md and report.html into a folder of psring compress; return the answer."""
    options = _options(folder)
    table = summarize(folder, bool(options.get("reads_bytes")))
    figures = {"pareto": False, "pareto_narrow": True} if table["on_front"].any() else {}
    drawn = write_figures({name: edge_figure.pareto_figure(table, narrow) for name, narrow in figures.items()}, folder)
    answer = answer_of(table)
    context = {
        "name": folder.resolve().name,
        "answer": answer,
        "tables": [quality(table), speed(table), loading(table), failures(table)],
        "drawn": drawn,
        "description": edge_figure.DESCRIPTION,
        "method": method(options),
        "environment": write.read_environment(folder / "environment.json"),
    }
    pictures = {
        name: write.inline_svg(write.read_text(folder / "figures" / f"{name}.svg"), name, edge_figure.DESCRIPTION)
        for name in drawn
    }
    files.write_whole(folder / "variants.csv", table.drop(columns="losses").to_csv(index=False))
    files.write_whole(folder / "report.html", write.render("edge.html.j2", pictures=pictures, **context))
    files.write_whole(folder / "report.md", write.render("edge.md.j2", most_rows=write.MAX_ROWS, **context))
    return "\n".join([answer, "", tables_as_text(table)])


def _options(folder: Path) -> dict[str, Any]:
    path = folder / results.OPTIONS
    if not path.exists():
        return {}
    try:
        found = files.read_json(path)
    except ValueError as error:
        raise BadInput(f"{path}: cannot be read ({error}); restore or remove it") from None
    return found if isinstance(found, dict) else {}


def summarize(folder: Path, reads_bytes: bool) -> pd.DataFrame:
    """Return a row per variant, in the order they were made: medians over launches, and ratios to the original.

    Of two lines of a variant, or of a launch, the later holds. Columns of `speed` are tokens_per_s at batch 1 over the
    original's of the same repeat; of `loss_ratio`, the loss over the original's on the same held-out batches.
    """
    variants = {line.name: line for line in results.read(folder, results.VARIANTS, Variant)}
    if not variants:
        raise BadInput(f"{folder}: holds no variants; psring compress FILE --out {folder} makes some")
    timed = {(line.variant, line.repeat): line.model_dump() for line in results.read(folder, results.LAUNCHES, Launch)}
    launches = pd.DataFrame(list(timed.values()), columns=list(Launch.model_fields))
    rows = [_row(variant, variants.get(ORIGINAL), launches, reads_bytes) for variant in variants.values()]
    _add_verdicts(rows, launches)
    table = pd.DataFrame(rows)
    table["on_front"] = False
    rivals = table[FRONT].notna().all(axis=1)
    if rivals.any():
        table.loc[rivals, "on_front"] = pareto(table.loc[rivals, FRONT].to_numpy(dtype="float64"))
    return table


def _row(variant: Variant, original: Variant | None, launches: pd.DataFrame, reads_bytes: bool) -> dict[str, Any]:
    own = launches[launches["variant"] == variant.name] if variant.status == "ok" else launches.iloc[:0]
    row: dict[str, Any] = {**variant.model_dump(), "n": len(own)}
    for name in MEASURED:
        found = median_interval(own[name].astype(float))
        row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    losses = variant.losses if variant.status == "ok" else []
    row["loss"] = float(np.mean(losses)) if losses else math.nan
    row["perplexity"] = math.exp(min(row["loss"], 700))
    row["bits_per_byte"] = row["loss"] / math.log(2) if reads_bytes else math.nan
    before = original.losses if original else []
    _put(row, "loss_ratio", paired(dict(enumerate(losses)), dict(enumerate(before))))
    row["size_ratio"] = (row["size_bytes"] or math.nan) / ((original.size_bytes if original else None) or math.nan)
    return row


def _put(row: dict[str, Any], name: str, ratio: Ratio) -> None:
    found = ratio.interval
    row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def _add_verdicts(rows: list[dict[str, Any]], launches: pd.DataFrame) -> None:
    """Add the columns of `speed` and `verdict`; the original is not compared with itself."""
    rates = {row["name"]: dict(launches.loc[launches["variant"] == row["name"], ["repeat", "tokens_per_s"]].to_numpy())
             for row in rows if row["n"]}  # fmt: skip
    ratios = {name: paired(found, rates.get(ORIGINAL, {})) for name, found in rates.items() if name != ORIGINAL}
    words = dict(zip(ratios, judge(list(ratios.values()), MARGIN), strict=True))
    for row in rows:
        name = row["name"]
        _put(row, "speed", ratios.get(name, Ratio(math.nan, math.nan, 0, math.nan)))
        row["verdict"] = WORDS[words[name].word] if name in words else ""


def answer_of(table: pd.DataFrame) -> str:
    """Return which variants are fastest and smallest among those as good as the original, in one or two sentences."""
    good = table[(table["loss_ratio"] <= 1 + MAX_LOSS) & (table["name"] != ORIGINAL) & table["speed"].notna()]
    if good.empty:
        return f"No variant keeps the held-out loss within {MAX_LOSS:.0%} of the original's."
    rows = good.to_dict("records")
    fastest, smallest = max(rows, key=lambda row: row["speed"]), min(rows, key=lambda row: row["size_ratio"])
    lines = [f"Fastest with at most {100 * MAX_LOSS:g} % more loss: {_told(fastest)}"]
    if smallest["name"] != fastest["name"]:
        lines.append(f"Smallest: {_told(smallest)}")
    return " ".join(f"{line}." for line in lines)


def _told(row: Row) -> str:
    change = 100 * (row["loss_ratio"] - 1)
    open_ = f" ({row['verdict']})" if row["verdict"] in (WORDS[UNDECIDED], WORDS[NO_VERDICT]) else ""
    return (
        f"{row['name']}, {interval(row, 'speed')}× the original's tokens per second{open_}, "
        f"{number(row['size_ratio'])}× its size, {abs(change):.2f} % {'lower' if change < 0 else 'higher'} loss"
    )


def _percent(name: str, row: Row) -> str:
    ratios = (row[column] for column in (name, f"{name}_low", f"{name}_high"))
    value, low, high = (round(100 * (ratio - 1), 2) + 0.0 for ratio in ratios)  # + 0.0: no -0.00
    if pd.isna(value):
        return tables.BLANK
    return f"{value:+.2f}" + ("" if pd.isna(low) else f" ({low:+.2f} to {high:+.2f})")


NAMES: Columns = {"variant": lambda row: str(row["name"])}
QUALITY: Columns = {
    "loss": lambda row: number(row["loss"]) if pd.isna(row["loss"]) else f"{row['loss']:.4f}",
    "loss change, %": lambda row: _percent("loss_ratio", row) if row["name"] != ORIGINAL else tables.BLANK,
    **tables.plain(perplexity="perplexity", bits_per_byte="bits_per_byte"),
    "parameters": lambda row: tables.BLANK if pd.isna(row["num_parameters"]) else f"{int(row['num_parameters']):,}",
    "not zero": lambda row: (
        tables.BLANK if pd.isna(row["nonzero_parameters"]) else f"{int(row['nonzero_parameters']):,}"
    ),
    **tables.in_units(BYTES, size="size_bytes"),
    "size ÷ original": lambda row: number(row["size_ratio"]),
    "reload error": lambda row: number(row["reload_error"]),
}
SPEED: Columns = {
    "tokens/s": lambda row: interval(row, "tokens_per_s"),
    "÷ original": lambda row: interval(row, "speed") if row["name"] != ORIGINAL else tables.BLANK,
    "verdict": lambda row: str(row["verdict"]) or tables.BLANK,
    "tokens/s, batch 8": lambda row: interval(row, "tokens_per_s_batch_8"),
    **tables.in_units(SECONDS, token_p50="token_s_p50", token_p95="token_s_p95", prefill="prefill_s"),
    "n": lambda row: str(row["n"]),
}
LOADING: Columns = {
    **tables.in_units(SECONDS, load="load_s"),
    **tables.in_units(BYTES, peak_memory="peak_memory_bytes"),
}


def quality(table: pd.DataFrame) -> Table:
    """Return loss and size per variant."""
    return _table(table[table["status"] == "ok"], "Loss and size", QUALITY)


def speed(table: pd.DataFrame) -> Table:
    """Return speed per variant."""
    return _table(table[table["n"] > 0], "Speed", SPEED)


def loading(table: pd.DataFrame) -> Table:
    """Return the time to load and the memory per variant."""
    return _table(table[table["n"] > 0], "Loading and memory", LOADING)


def failures(table: pd.DataFrame) -> Table:
    """Return the variants without numbers, and why."""
    columns: Columns = {"status": lambda row: str(row["status"]), "reason": lambda row: str(row["reason"])}
    return _table(table[table["status"] != "ok"], "Without numbers", columns)


def _table(rows: pd.DataFrame, caption: str, columns: Columns) -> Table:
    return tables.table(rows.to_dict("records"), caption, columns, NAMES)


def tables_as_text(table: pd.DataFrame) -> str:
    """Return the figures that matter most as lines of text for a terminal."""
    columns: Columns = {
        "variant": NAMES["variant"], "loss": QUALITY["loss"], "change, %": QUALITY["loss change, %"],
        "size": QUALITY["size"], "tokens/s": SPEED["tokens/s"], "÷ original": SPEED["÷ original"],
        "token p50": SPEED["token p50"],
    }  # fmt: skip
    lines = [list(columns), *([cell(row) for cell in columns.values()] for row in table.to_dict("records"))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def method(options: dict[str, Any]) -> list[str]:
    """Return how the numbers were found, a sentence each."""
    get = options.get
    return [
        f"{get('num_threads')} CPU threads, {get('repeats')} repeats; each repeat times every variant once, in another "
        "order, in a process of its own. Values are medians over launches with 95 % intervals; with fewer than 6 "
        "launches the interval is their range.",
        "÷ original: tokens per second at batch 1, paired by repeat, with a 95 % t interval of the mean log ratio; "
        f"the verdict has a margin of {MARGIN:.0%} and Holm's correction for the number of variants.",
        f"Loss: mean cross-entropy of {get('eval_batches')} held-out batches of {get('batch_size')} sequences, nats "
        "per token, the same for all; its change is paired by batch.",
        f"Speed: a prompt of {get('prompt_tokens')} tokens, then as many tokens as fit the context, at most 64, one by "
        "one with a KV cache. Loading and warm-up are not counted.",
        "Peak memory: most resident memory while loading and generating, over that of a process with all libraries "
        "imported.",
        f"distilled and pruned variants are trained for {get('steps')} steps: {get('distillation_share')} · T² · KL "
        f"of the original's and their own softened distributions (T = {get('temperature')}), the rest cross-entropy. "
        "They have seen more data than the original, and may have a lower loss where its training ended early. "
        "Only matrices in blocks are pruned and quantised; the embedding, which is also the output head, stays fp32 "
        "(onnx int8 quantises the head's product, too).",
        f"pruned: {get('sparsity')} of the weights are zero; dense kernels compute with the zeros, so it is smaller "
        "on disk and not faster. structured: that share of heads and MLP neurons is gone.",
        "int8_dynamic, int8_weight_only and int4_weight_only: torchao in eager mode. onnx: the same model in "
        "onnxruntime; its int8_dynamic is onnxruntime's own.",
        "Every file is read again in another process; reload error is the largest difference of a logit.",
    ]
