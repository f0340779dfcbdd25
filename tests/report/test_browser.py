"""The page in a real browser: nothing is loaded, nothing complains, tables sort and filter, phones can read it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bench import records
from bench.report.write import write_report
from tests.support.synthetic import demo_records, make_steps

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--dump-dom",
]  # fmt: skip
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on PATH to try the page in")

# Acts on the page as a reader would and leaves what it saw in an attribute, which --dump-dom prints.
PROBE = """<script>
addEventListener("load", () => {
  const tables = [...document.querySelectorAll("table.sortable")];
  const table = tables.find((one) => one.caption.textContent.startsWith("Throughput"));
  const heads = [...table.tHead.rows[0].cells];
  const column = heads.findIndex((head) => head.textContent === "tokens/s");
  const visible = () => [...table.tBodies[0].rows].filter((row) => !row.hidden);
  const read = () => visible().map((row) => row.cells[column].textContent);
  const saw = { before: read(), width: innerWidth, page: document.documentElement.scrollWidth };
  heads[column].querySelector("button").click();
  saw.rising = read(); saw.risingState = heads[column].ariaSort;
  heads[column].querySelector("button").click();
  saw.falling = read(); saw.fallingState = heads[column].ariaSort;
  const tools = table.parentElement.previousElementSibling;
  const field = tools.querySelector("input");
  field.value = "Horovod ring"; field.dispatchEvent(new Event("input"));
  saw.filtered = visible().map((row) => row.cells[0].textContent);
  saw.status = tools.querySelector("[role=status]").textContent;
  saw.label = field.labels[0].textContent;
  const drawn = [...document.querySelectorAll("figure svg")].filter((svg) => svg.getBoundingClientRect().width);
  saw.figures = drawn.map((svg) => svg.getBoundingClientRect().width);
  saw.answer = { width: saw.figures[0], room: drawn[0].parentElement.clientWidth };
  saw.numbers = heads.filter((head) => getComputedStyle(head).textAlign === "right").map((head) => head.textContent);
  saw.cues = tables.filter((one) => one.parentElement.hasAttribute("data-wide")).map((one) => one.caption.textContent);
  saw.nav = getComputedStyle(document.querySelector("nav")).position;
  saw.names = [...document.querySelectorAll("figure svg")].map((svg) => svg.getAttribute("aria-label"));
  saw.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
  saw.wide = tables.filter((one) => one.scrollWidth > one.parentElement.clientWidth + 1)
    .map((one) => one.caption.textContent);
  saw.paper = getComputedStyle(document.body).backgroundColor;
  // What a letter measures on the screen: a figure is drawn smaller or larger than its own units.
  const scale = (svg) => (svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1);
  const words = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  saw.small = [];
  while (words.nextNode()) {
    const [text, one] = [words.currentNode.textContent.trim(), words.currentNode.parentElement];
    if (!text || one.closest("script, style") || !one.getClientRects().length) continue;
    const size = parseFloat(getComputedStyle(one).fontSize) * scale(one.closest("svg"));
    if (size < 11.99) saw.small.push(`${size.toFixed(1)} px: ${text}`);
  }
  saw.unreachable = [...document.querySelectorAll("button, input, .scroll")].filter((one) => one.tabIndex < 0).length;
  document.documentElement.dataset.saw = JSON.stringify(saw);
  parent.postMessage(JSON.stringify(saw), "*");
});
</script></body>"""

# A window is never narrower than 500 px; a frame is.
PHONE = """<!DOCTYPE html><iframe src="PAGE" style="width: 390px; height: 844px; border: 0"></iframe><script>
addEventListener("message", (event) => { document.documentElement.dataset.saw = event.data; });
</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    for run in demo_records(repeats=2):
        if run.config.strategy == "mpi_ring":
            continue  # a table begins with 50 rows, and the laws below are about all of them
        records.append(folder, run)
        if run.summary is not None:
            records.write_steps(folder, run.run_id, make_steps(run))
    write_report(folder)
    probed = folder / "probed.html"
    probed.write_text((folder / "report.html").read_text().replace("</body>", PROBE))
    return probed


def browse(page: Path, profile: Path, width: int, *flags: str) -> dict[str, Any]:
    """What the probe saw in a window of that width; no console message is tolerated."""
    assert CHROMIUM is not None
    argv = [CHROMIUM, *QUIET, f"--user-data-dir={profile}", f"--window-size={width},900", *flags, page.as_uri()]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in ended.stderr
    found = re.search(r'data-saw="([^"]*)"', ended.stdout)
    assert found, "the probe did not get to its end"
    saw: dict[str, Any] = json.loads(html.unescape(found.group(1)))
    return saw


@pytest.fixture(scope="module")
def desktop(page: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return browse(page, tmp_path_factory.mktemp("profile"), 1280)


def leading_number(text: str) -> float:
    return float(text.split(" ")[0].replace(",", "")) if text[0].isdigit() else float("inf")


def test_nothing_is_loaded_and_every_figure_is_there(desktop: dict[str, Any]) -> None:
    assert desktop["requests"] == []
    assert len(desktop["figures"]) == 9
    assert all(width > 300 for width in desktop["figures"])
    assert all(desktop["names"])


def test_a_click_sorts_by_number_and_a_second_one_turns_it_round(desktop: dict[str, Any]) -> None:
    rising = [leading_number(text) for text in desktop["rising"]]
    assert rising == sorted(rising)
    assert sorted(desktop["before"]) == sorted(desktop["rising"])
    falling = [leading_number(text) for text in desktop["falling"] if text[0].isdigit()]
    assert falling == sorted(falling, reverse=True)
    assert (desktop["risingState"], desktop["fallingState"]) == ("ascending", "descending")


def test_a_filter_keeps_the_rows_that_fit_and_says_how_many(desktop: dict[str, Any]) -> None:
    assert desktop["filtered"]
    assert all("Horovod ring" in name for name in desktop["filtered"])
    assert desktop["status"].startswith(f"{len(desktop['filtered'])} of {len(desktop['before'])}")
    assert desktop["label"] == "Filter"
    assert desktop["unreachable"] == 0  # from the keyboard


def test_no_table_scrolls_sideways_on_a_desktop(desktop: dict[str, Any]) -> None:
    assert [caption for caption in desktop["wide"] if not caption.startswith("Tokens per second by")] == []


@pytest.fixture(scope="module")
def phone(page: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    framed = page.with_name("phone.html")
    framed.write_text(PHONE.replace("PAGE", page.name))
    return browse(framed, tmp_path_factory.mktemp("profile"), 500)


def test_a_phone_scrolls_figures_and_tables_but_never_the_page(phone: dict[str, Any]) -> None:
    assert phone["width"] == 390
    assert phone["page"] <= 390
    assert phone["wide"]  # else nothing was there to scroll


def test_a_phone_gets_the_figure_of_the_answer_drawn_narrow_and_a_cue_where_a_table_goes_on(
    desktop: dict[str, Any], phone: dict[str, Any]
) -> None:
    assert phone["answer"]["width"] <= phone["answer"]["room"] < desktop["answer"]["width"]
    assert phone["cues"] == phone["wide"]
    assert desktop["cues"] == desktop["wide"]


def test_numbers_stand_on_the_right_and_the_contents_stay_in_view(desktop: dict[str, Any]) -> None:
    assert {"workers", "tokens/s", "per worker"} <= set(desktop["numbers"])
    assert "strategy" not in desktop["numbers"]
    assert desktop["nav"] == "sticky"


def test_a_phone_shows_no_letter_smaller_than_12_pixels(phone: dict[str, Any]) -> None:
    assert phone["small"] == []


def test_dark_readers_get_a_dark_page(page: Path, tmp_path: Path, desktop: dict[str, Any]) -> None:
    dark = browse(page, tmp_path, 1280, "--blink-settings=preferredColorScheme=0")
    assert desktop["paper"] == "rgb(255, 255, 255)"
    assert sum(map(int, re.findall(r"\d+", dark["paper"]))) < 150
