"""The frame of the report: style sheet, script and head of one HTML page that asks the network for nothing.

The content policy allows exactly the two scripts written here, by their hash: a script that came in with a
name or a message would not run even if its escaping were forgotten.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import TYPE_CHECKING

from plotly.offline import get_plotlyjs

from lora_lab.common.files import write_durably
from lora_lab.figures.cells import folded, html_table

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from lora_lab.figures.style import Panel

STYLE = """
:root { color-scheme: light dark; --bg: #ffffff; --fg: #1c2430; --dim: #5a6472; --line: #d9dee5;
  --card: #f4f6f9; --accent: #005f96; --warn: #a34700; }
@media (prefers-color-scheme: dark) {
  :root { --bg: #14181d; --fg: #e6e9ee; --dim: #a2abb8; --line: #333b46; --card: #1d232b;
    --accent: #6cc0f0; --warn: #f0a35e; }
  .plot .scatterlayer, .plot .legend .layers { filter: brightness(1.35); }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--fg); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 32px 0 4px; }
h3 { font-size: 1rem; margin: 16px 0 4px; overflow-wrap: anywhere; }
p, ul { margin: 4px 0 12px; overflow-wrap: anywhere; }
.dim { color: var(--dim); }
.lead { font-size: 1.08rem; font-weight: 600; }
.cards { display: grid; gap: 10px; margin: 16px 0;
  grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }
.card, pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px; }
.card b { display: block; font-size: 1.15rem; overflow-wrap: anywhere; }
.card span { color: var(--dim); font-size: .86rem; }
.warn li { border-left: 3px solid var(--warn); padding-left: 10px; list-style: none; margin: 0 0 8px; }
.warn { padding: 0; }
.contents { columns: 240px; padding-left: 20px; font-size: .9rem; }
a { color: var(--accent); }
.scroll { overflow-x: auto; }
.wide { min-width: 760px; }
.grid { display: grid; gap: 8px 28px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.breakout { width: min(1340px, calc(100vw - 32px)); margin-left: 50%; transform: translateX(-50%); }
table { border-collapse: collapse; width: 100%; font-size: .84rem; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 7px; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  white-space: nowrap; }
th { background: var(--card); white-space: normal; vertical-align: bottom; }
td.n, th.n { text-align: right; }
td.reason { min-width: 200px; max-width: 420px; white-space: normal; overflow-wrap: break-word; }
td.wrap { white-space: normal; }
.fixed th:first-child, .fixed td:first-child { position: sticky; left: 0; z-index: 1; background: var(--bg); }
td.wrap { white-space: normal; }
.fixed th:first-child { background: var(--card); }
tr.choice td { font-weight: 600; background: var(--card); }
summary { cursor: pointer; color: var(--accent); }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
@media (scripting: none) { .needs-script { display: none; } }
code, pre { font: .88rem/1.5 ui-monospace, monospace; overflow-wrap: anywhere; white-space: pre-wrap; }
.plot { min-height: 240px; }
.plot .xtick text, .plot .ytick text, .plot .xtitle, .plot .ytitle, .plot .legendtext, .plot .cbaxis text,
.plot .cbtitle text { fill: var(--fg) !important; }
.plot .annotation-text { fill: var(--fg) !important; paint-order: stroke; stroke: var(--bg);
  stroke-width: 4px; }
@media print {
  :root { --bg: #fff; --fg: #000; --dim: #444; --line: #bbb; --card: #f4f6f9; --warn: #a34700; }
  main { max-width: none; padding: 0; }
  section, tr, .card { break-inside: avoid; }
  section.long { break-inside: auto; }
  .plot { zoom: .62; }
  .scroll { overflow: visible; }
  .breakout { width: auto; margin: 0; transform: none; }
  td, th { padding: 2px 4px; }
  td:not(.n) { white-space: normal; }
  td.reason { min-width: 80px; }
  @page wide { size: A4 landscape; }
  #trials, #evidence { page: wide; }
  table { font-size: .6rem; }
  .contents, .needs-script { display: none; }
  details::details-content { content-visibility: visible; block-size: auto; }
  .modebar { display: none !important; }
}
"""

SCRIPT = """
"use strict";
const settings = { responsive: true, displaylogo: false,
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };
for (const plot of document.querySelectorAll(".plot")) {
  const drawn = JSON.parse(plot.nextElementSibling.textContent);
  Plotly.newPlot(plot, drawn.data, drawn.layout, settings);
}
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), body = head.closest("table").tBodies[0];
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => row.cells[head.cellIndex].dataset.sort;
    const compare = (a, b) => {
      if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === "");
      const order = head.classList.contains("n") ? key(a) - key(b) : key(a).localeCompare(key(b));
      return up ? order : -order;
    };
    body.append(...[...body.rows].sort(compare));
  });
}
"""


def section(panel: Panel) -> str:
    """A panel as a section that the table of contents can point to."""
    drawing = ""
    numbers = "" if panel.table is None else html_table(panel.table) if panel.figure is None else folded(panel.table)
    if panel.figure is not None:
        # "<" would end the data block early; in JSON it can only stand inside strings.
        data = panel.figure.to_json().replace("<", "\\u003c")
        width = ' class="wide"' if panel.wide else ""
        drawing = (
            f'<div class="scroll"><div{width}><div class="plot" id="{panel.key}" role="img" '
            f'aria-label="{escape(panel.title)}"></div>'
            f'<script type="application/json">{data}</script></div></div>\n'
        )
    return (
        f'<section id="about-{panel.key}"><h2>{escape(panel.title)}</h2>\n'
        f'<p class="dim">{escape(panel.words)}</p>\n{drawing}{numbers}</section>'
    )


def not_drawn(panels: Iterable[Panel]) -> str:
    """Which figures are missing, and why; empty where none is."""
    items = "".join(f"<li>{escape(p.title)}: {escape(p.words)}</li>" for p in panels if not p.is_shown)
    return (
        f'<section id="not-drawn"><h2>Not drawn, and why</h2>\n<ul class="dim">{items}</ul></section>' if items else ""
    )


def contents(titles: Iterable[tuple[str, str]]) -> str:
    """Links to the sections of the page: ids and titles."""
    items = "".join(f'<li><a href="#{escape(key)}">{escape(title)}</a></li>' for key, title in titles)
    return f'<nav><ul class="contents">{items}</ul></nav>'


def write_page(path: Path, title: str, body: str) -> None:
    """Write a whole page, replacing the file as a whole.

    Raises:
        StorageError: the file cannot be written.
    """
    write_durably(path, page(title, body))


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def page(title: str, body: str) -> str:
    """A whole document around `body`, which is HTML with everything foreign already escaped."""
    # A browser hashes the text as it parsed it, with its line ends normalized.
    plotly = get_plotlyjs().replace("\r\n", "\n").replace("\r", "\n")
    policy = (
        f"default-src 'none'; script-src 'sha256-{_hash(plotly)}' 'sha256-{_hash(SCRIPT)}'; "
        "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n"
        "<noscript><p>The figures need JavaScript; the words and tables do not.</p></noscript>\n</main>\n"
        f"<script>{plotly}</script>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )
