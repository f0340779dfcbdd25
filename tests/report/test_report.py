"""A report says all that its folder holds, loads nothing, and is the same whenever it is rebuilt."""

from __future__ import annotations

import html
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import files, records
from bench.config import BadInput
from bench.output import markdown
from bench.records import LABELS, RunRecord
from bench.report import answer, bounds, cells, duels, loss, modelled, sections, tables
from bench.report.write import coded, environment_of, flatten, inline_svg, write_report
from tests.support.synthetic import demo_records, make_failure, make_record, make_steps

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Checks that every tag is closed in order; collects ids and what would be loaded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loaded: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.loaded += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()


def write_runs(folder: Path, runs: list[RunRecord]) -> Path:
    folder.mkdir(exist_ok=True)
    for run in runs:
        records.append(folder, run)
        if run.summary is not None:
            records.write_steps(folder, run.run_id, make_steps(run))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_runs(tmp_path_factory.mktemp("study"), demo_records(repeats=2))
    files.write_json(folder / "environment.json", {"hosts": {"node0": {"cores": 2}}, "commit": None})
    (folder / "sweep.yaml").write_text("# Held equal: <everything>\ngrid: [{strategy: local}]\n")
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text()


def test_html_is_well_formed_and_loads_nothing(page: str) -> None:
    parsed = Page(page)
    assert parsed.open == []
    assert all(target.startswith("#") for target in parsed.loaded)
    assert not re.search(r"@import|url\((?!#)", page)
    assert not re.search(r"https?://", re.sub(r'xmlns(:\w+)?="[^"]*"', "", page))
    assert not parsed.tags & {"link", "img", "iframe"}
    assert "default-src 'none'" in page


def test_ids_are_unique_and_every_reference_has_its_target(page: str) -> None:
    parsed = Page(page)
    assert len(set(parsed.ids)) == len(parsed.ids)
    targets = re.findall(r"url\(#([^)]+)\)", page) + [target[1:] for target in parsed.loaded]
    assert targets
    assert set(targets) <= set(parsed.ids)


def test_every_cell_and_every_reason_is_in_both_reports(folder: Path, page: str) -> None:
    summary = pd.read_csv(folder / "summary.csv")
    speeds = [tables.interval(row, "tokens_per_s") for row in summary.to_dict("records")]
    reasons = [reason for reason in summary["reason"].dropna() if reason]
    assert len(reasons) == 3
    text = (folder / "report.md").read_text()
    for word in {*speeds, *reasons, *summary["status"], *LABELS.values()}:
        assert html.escape(word, quote=True).replace("&#x27;", "&#39;") in page
        assert markdown(word) in text


def with_limits(table: pd.DataFrame, runs: Sequence[RunRecord]) -> pd.DataFrame:
    summary = cells.summarize(table)
    return bounds.Bounds(summary, {run.cell: run.config for run in runs}).added_to(summary)


def all_sections(*runs: RunRecord) -> list[sections.Section]:
    table = records.frame(runs)
    lines = pd.DataFrame(columns=["run_id", "cell", "step", "elapsed_s", "loss"])
    summary = loss.add_costs(with_limits(table, runs), table, lines)
    return sections.sections(
        summary, duels.precision_effects(table), [], modelled.of_runs(runs), dict.fromkeys(summary["cell"], 25)
    )


def test_tables_of_cells_have_a_row_per_cell() -> None:
    runs = demo_records(repeats=2)
    count = len({run.cell for run in runs})
    found = {table.caption: table for part in all_sections(*runs) for table in part.tables}
    for caption in ("Throughput and held-out loss", "Weak scaling", "Bytes sent per worker per step",
                    "Phases of a step", "Resources", "Loss and equivalence gate"):  # fmt: skip
        assert len(found[caption].rows) == count
    assert all(len(row) == len(table.head) for table in found.values() for row in table.rows)


def test_a_section_is_there_only_where_it_has_something_to_say() -> None:
    alone = [part.title for part in all_sections(make_record())]
    served = [part.title for part in all_sections(make_record(strategy="parameter_server"))]
    assert set(served) - set(alone) == {"Parameter server", "Communication volume"}
    assert "Strong scaling" not in [table.caption for part in all_sections(make_record()) for table in part.tables]


def test_where_links_are_known_the_parts_of_a_step_are_shown() -> None:
    asleep = {"compute": "emulated", "emulated_forward_s": 0.1, "emulated_backward_s": 0.2, "link": "200mbit"}
    runs = [make_record(strategy="ring_allreduce", num_workers=n, **asleep) for n in (2, 4)]
    (shown,) = (one for part in all_sections(*runs) for one in part.tables if one.caption == "Parts of a step")
    row = dict(zip(shown.head, shown.rows[0], strict=True))
    known = modelled.of_runs(runs).explained[runs[0].cell]
    assert row["computing"] == tables.scaled(known.parts["computing"], tables.SECONDS)
    assert row["unexplained"] == f"{100 * known.unexplained_share:.1f} %"
    assert row["hot tensor"] == tables.BLANK
    (meanings,) = (one for part in all_sections(*runs) for one in part.tables if one.caption == "What the parts are")
    explained = [name for name, _ in meanings.rows]
    assert "computing" in explained
    assert "hot tensor" not in explained


def test_the_server_table_shows_what_was_measured_of_servers() -> None:
    run = make_record(strategy="parameter_server", num_workers=2)
    assert run.summary is not None
    found = {"shard_imbalance": 1.5, "longest_wait_s": 0.25, "largest_lead": 3}
    runs = [run.model_copy(update={"summary": run.summary.model_copy(update=found)})]
    summary = with_limits(records.frame(runs), runs)
    shown = sections.server_table(summary, tables.cell_names(summary))
    row = dict(zip(shown.head, shown.rows[0], strict=True))
    assert (row["shard imbalance"], row["longest wait"], row["largest lead"]) == ("1.50", "250 ms", "3.00")
    assert row["sent"] == row["sent, predicted"] != tables.BLANK
    assert "mean staleness" not in row  # not measured in any cell


def test_every_number_that_only_servers_have_is_in_the_server_or_the_resource_table() -> None:
    shown = {field for field, _ in sections.SERVER_FIELDS.values()} | {"server_cpu_s", "server_peak_memory_bytes"}
    redundant = {"predicted", "wire"}  # shown for bytes sent only
    of_servers = {name for name in cells.MEASURED if "server" in name and name.split("_")[-1] not in redundant}
    assert of_servers <= shown


def test_markdown_shows_every_figure_by_a_file_that_is_there(folder: Path) -> None:
    images = re.findall(r"!\[[^]]+\]\(([^)]+)\)", (folder / "report.md").read_text())
    assert len(images) == 9
    assert all((folder / image).is_file() for image in images)


def test_parquet_holds_the_same_as_csv(folder: Path) -> None:
    for name in ("runs", "summary"):
        text, binary = pd.read_csv(folder / f"{name}.csv"), pd.read_parquet(folder / f"{name}.parquet")
        assert list(text.columns) == list(binary.columns)
        for column in set(binary.select_dtypes("number")) & set(text.select_dtypes("number")):
            assert binary[column].astype("float64").to_numpy() == pytest.approx(
                text[column].to_numpy(dtype="float64"), nan_ok=True
            )


def test_the_page_has_a_command_per_cell_and_says_how_to_run_it(page: str) -> None:
    shown = page[page.index('<section id="commands">') :]
    assert shown.count("psring run") >= len({run.cell for run in demo_records(repeats=1)}) - 1  # one is unsupported
    assert "psring cluster shell" in shown


def test_markdown_tables_are_rectangular(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


@pytest.mark.parametrize(
    "text", ["![x](http://a/b.png)", "[x][y]", "`a` | b", "<img src=x>", "\\![x](y)", "&#33;[x](y)"]
)
def test_a_reason_loads_nothing_and_opens_nothing_in_markdown(text: str) -> None:
    assert not re.search(r"(?<!\\)(\\\\)*[\[\]`|<]|&#", markdown(text))
    assert html.unescape(re.sub(r"\\(.)", r"\1", markdown(text))) == text  # and all of it can be read


def test_environment_and_sweep_are_shown(folder: Path, page: str) -> None:
    for text in (page, (folder / "report.md").read_text()):
        assert "hosts.node0.cores" in text
    assert "# Held equal: &lt;everything&gt;" in page


def test_a_report_is_rebuilt_equal(tmp_path: Path) -> None:
    runs = [make_record(), make_record(strategy="parameter_server", num_workers=2)]
    contents = []
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
        folder = write_runs(tmp_path / parent / "study", runs)
        contents.append({path.name: path.read_bytes() for path in write_report(folder).files})
    assert contents[0] == contents[1]
    expected = {
        "runs.csv",
        "summary.csv",
        "runs.parquet",
        "summary.parquet",
        "report.html",
        "report.md",
        "overview.svg",
    }
    assert expected <= set(contents[0])


def test_a_folder_of_failures_still_reports_them(tmp_path: Path) -> None:
    write_report(write_runs(tmp_path, [make_failure("failed", "killed | by <9>")]))
    assert "killed | by &lt;9&gt;" in (tmp_path / "report.html").read_text()
    assert "killed \\| by &lt;9>" in (tmp_path / "report.md").read_text()


def test_mixed_environments_are_refused_then_named(tmp_path: Path) -> None:
    write_runs(tmp_path, [make_record(environment="e0"), make_record(batch_size=4, environment="e1")])
    with pytest.raises(BadInput, match="2 environments"):
        write_report(tmp_path)
    write_report(tmp_path, allow_mixed=True)
    assert "Mixed environments" in (tmp_path / "report.html").read_text()


@given(st.floats(min_value=1e-12, max_value=1e12))
def test_numbers_keep_three_digits(value: float) -> None:
    assert float(tables.number(value).replace(",", "")) == pytest.approx(value, rel=0.005)


def test_blanks_are_dashes_and_units_fit() -> None:
    assert tables.number(None) == tables.scaled(float("nan"), tables.BYTES) == tables.BLANK
    assert [tables.number(x) for x in (12345, 12.345, 0.0012345, 1.0)] == ["12,300", "12.3", "0.00123", "1.00"]
    assert [tables.scaled(x, tables.BYTES) for x in (0, 1, 999, 1e3, 1.5e7)] == [
        "0", "1.00 B", "999 B", "1.00 kB", "15.0 MB",
    ]  # fmt: skip
    assert tables.scaled(0.0123, tables.SECONDS) == "12.3 ms"


def test_a_table_shows_once_what_every_row_has_and_never_a_blank_column() -> None:
    rows = [[name, "fp32", tables.BLANK, str(n), "3"] for n, name in enumerate(("local", "ring", "server"))]
    made = tables.compact(tables.Table("t", ["strategy", "precision", "wire", "workers", "n"], rows))
    assert (made.head, made.note) == (["strategy", "workers"], "In every row: precision fp32, n 3.")
    assert made.rows == [["local", "0"], ["ring", "1"], ["server", "2"]]
    assert tables.compact(made._replace(rows=rows[:1], head=["a", "b", "c", "d", "e"])).head == ["a", "b", "d", "e"]


def test_a_wide_table_has_one_column_for_its_setting() -> None:
    head = ["strategy", "workers", "precision", "batch", *(f"number {n}" for n in range(tables.WIDE))]
    rows = [["local", str(n), precision, str(n), *(f"{n}.{k}" for k in range(tables.WIDE))]
            for n, precision in enumerate(("fp32", "bf16"))]  # fmt: skip
    made = tables.compact(tables.Table("t", head, rows))
    assert made.head[:3] == ["strategy", "workers", "setting"]
    assert [row[:4] for row in made.rows] == [
        ["local", "0", "fp32, batch 0", "0.0"],
        ["local", "1", "bf16, batch 1", "1.0"],
    ]


@pytest.mark.parametrize(
    ("column", "numeric"),
    [
        (["1,230", "12.3 (11.9–12.8)", tables.BLANK], True),
        (["14.8 ms", "3.37 MB", "0", "8.15e-05"], True),
        (["2 workers", "1"], False),
        (["yes", "no"], False),
    ],
)
def test_a_column_of_numbers_is_known(column: list[str], numeric: bool) -> None:
    assert tables.Table("t", ["x"], [[cell] for cell in column]).numeric == [numeric]


def test_the_faster_side_of_a_comparison_is_marked() -> None:
    colocated = {"placement": "colocated", "num_servers": 0}
    table = records.frame([
        make_record(strategy=strategy, num_workers=2, repeat=repeat, tokens_per_s=speed, **more)
        for strategy, speed, more in (("ring_allreduce", 300.0, {}), ("parameter_server", 100.0, colocated))
        for repeat in range(3)
    ])  # fmt: skip
    rows = {str(row["cell"]): row for row in cells.summarize(table).to_dict("records")}
    made = tables.compact(answer.duel_table(duels.duels(table).assign(setting=""), rows))
    assert made.best == {(0, "ring")}
    assert "| **2 workers, Horovod's ring** |" in in_template("table.md.j2", made)
    assert '<td class="best">2 workers, Horovod&#39;s ring</td>' in in_template("table.html.j2", made)


def in_template(name: str, table: tables.Table) -> str:
    """The table as that template writes it."""
    return str(environment_of(name).get_template(name).make_module({"most_rows": 60}).show(table))  # type: ignore[attr-defined]


def test_a_table_of_dashes_is_left_out() -> None:
    slept = {"compute": "emulated", "emulated_forward_s": 0.1, "emulated_backward_s": 0.2}
    run = make_record(strategy="mpi_ring", num_workers=2, **slept)
    assert run.summary is not None
    blank = dict.fromkeys(("first_loss", "final_loss", "held_out_loss", "equivalence_error", "equivalence_bound"))
    found = all_sections(run.model_copy(update={"summary": run.summary.model_copy(update=blank)}))
    assert "Loss and equivalence gate" not in [table.caption for part in found for table in part.tables]


def test_an_environment_is_flattened() -> None:
    nested = json.loads('{"a": {"b": [1, 2], "c": null}, "d": [{"e": 1}]}')
    assert flatten("", nested) == [("a.b", "1, 2"), ("a.c", tables.BLANK), ("d.0.e", "1")]


def test_an_inlined_figure_is_xml_in_the_colours_of_the_page(folder: Path) -> None:
    text = inline_svg((folder / "figures" / "throughput.svg").read_text(), "throughput", "a figure")
    root = ElementTree.fromstring(text)
    assert root.get("role") == "img"
    assert root.get("aria-label")
    assert "currentColor" in text


def test_a_study_that_trained_nothing_has_blanks_for_losses(tmp_path: Path) -> None:
    slept = {"compute": "emulated", "emulated_forward_s": 0.1, "emulated_backward_s": 0.2, "num_workers": 2}
    runs = []
    for strategy in ("ring_allreduce", "parameter_server"):
        run = make_record(strategy=strategy, labels=("emulated_compute",), **slept)
        assert run.summary is not None
        blank = dict.fromkeys(("first_loss", "final_loss", "held_out_loss", "equivalence_error", "equivalence_bound"))
        runs.append(run.model_copy(update={"summary": run.summary.model_copy(update=blank)}))
        assert "ms a step" in runs[-1].describe()
    folder = write_runs(tmp_path / "study", runs)
    write_report(folder)
    text = (folder / "report.md").read_text()
    assert "Emulated compute (every cell here)" in text
    assert "— : —" not in text  # no column for a loss that neither topology has
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)
    assert pd.read_csv(folder / "summary.csv")["final_loss"].isna().all()


def test_backticks_are_code_and_what_a_folder_is_called_stays_text() -> None:
    assert coded("2 % by `psring <x>`") == "2\u00a0% by <code>psring &lt;x&gt;</code>"
    assert coded("one ` alone <b>") == "one ` alone &lt;b&gt;"
