// Sort, filter and shorten the tables. Without scripts every row is there, in reading order.
"use strict";
(() => {
  const FIRST_ROWS = 50;
  const UNITS = { GB: 1e9, MB: 1e6, kB: 1e3, B: 1, s: 1, ms: 1e-3, "µs": 1e-6 };

  // "8,910 (6,460–11,400)" -> 8910, "14.8 ms" -> 0.0148; anything else is a word.
  function numberOf(text) {
    const found = /^(-?[\d,]*\.?\d+(?:e[+-]?\d+)?)(?: ([A-Za-zµ]+))?/.exec(text);
    if (!found) return NaN;
    return Number(found[1].replaceAll(",", "")) * (UNITS[found[2]] ?? 1);
  }

  function compare(a, b) {
    const [x, y] = [numberOf(a), numberOf(b)];
    if (!isNaN(x) && !isNaN(y)) return x - y;
    return isNaN(x) !== isNaN(y) ? (isNaN(x) ? 1 : -1) : a.localeCompare(b);
  }

  function element(tag, properties, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  function upgrade(table, number) {
    const body = table.tBodies[0];
    let rows = [...body.rows];
    let wanted = "";
    let all = rows.length <= FIRST_ROWS;
    const status = element("span", { role: "status" });
    const more = element("button", { type: "button" });

    function show() {
      const fitting = rows.filter((row) => row.textContent.toLowerCase().includes(wanted));
      const shown = new Set(all ? fitting : fitting.slice(0, FIRST_ROWS));
      for (const row of rows) row.hidden = !shown.has(row);
      status.textContent = `${shown.size} of ${rows.length} rows`;
      more.textContent = all ? `Show the first ${FIRST_ROWS}` : `Show all ${fitting.length}`;
      more.hidden = fitting.length <= FIRST_ROWS;
    }

    function sort(column, head) {
      const falling = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const keyed = rows.map((row) => [row.cells[column].textContent, row]);
      keyed.sort(([a], [b]) => (falling ? compare(b, a) : compare(a, b)));
      rows = keyed.map(([, row]) => row);
      body.append(...rows);
      show();
    }

    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = element("button", { type: "button", title: "Sort by this column" }, ...head.childNodes);
      button.addEventListener("click", () => sort(column, head));
      head.append(button);
    });
    if (rows.length > 5) {
      const field = element("input", { type: "search", id: `filter-${number}` });
      field.addEventListener("input", () => { wanted = field.value.trim().toLowerCase(); show(); });
      more.addEventListener("click", () => { all = !all; show(); });
      const label = element("label", { htmlFor: field.id }, "Filter");
      table.parentElement.before(element("div", { className: "tools" }, label, field, status, more));
      show();
    }
  }

  function mark_wide() {
    for (const box of document.querySelectorAll(".scroll")) {
      box.toggleAttribute("data-wide", box.scrollWidth > box.clientWidth + 1);
    }
  }

  document.querySelectorAll("table.sortable").forEach(upgrade);
  mark_wide();
  addEventListener("resize", mark_wide);
})();
