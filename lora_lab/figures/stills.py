"""The key figures as PNG files, for places that show pictures but run no page: MLflow's artifacts, a pull request.

Plotly's own export (kaleido) drives a Chrome, which a server does not have. matplotlib is there, because MLflow
depends on it; it draws the same figure object, as far as the report's figures use plotly: points, lines, bars,
heat maps, rules and bands.
"""

from __future__ import annotations

import html
import re
import warnings
from io import BytesIO
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter

from lora_lab.common.files import storage_errors, write_durably

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from lora_lab.figures.style import Panel

KEY_FIGURES = ("loss-by-rank", "rank-and-ratio", "front-trainable-params", "predicted-memory")
"""What is worth a glance in MLflow; the report has the rest."""
INCHES = (8.0, 4.8)
DOTS_PER_INCH = 110
MARKERS = {
    "circle": "o",
    "diamond": "D",
    "square": "s",
    "triangle-up": "^",
    "x": "X",
    "cross": "P",
    "line-ew": "_",
    "star": "*",
}
DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
STEPS = {"hv": "steps-post", "vh": "steps-pre"}
TAG = re.compile(r"<[^>]*>")


def write_stills(folder: Path, panels: Sequence[Panel]) -> list[Path]:
    """Write every panel that has a figure as `<key>.png`, and remove the files of figures that are gone.

    Raises:
        StorageError: a file cannot be written.
    """
    drawn = {panel.key: panel for panel in panels if panel.key in KEY_FIGURES and panel.figure is not None}
    paths = [folder / f"{key}.png" for key in drawn]
    for path, panel in zip(paths, drawn.values(), strict=True):
        write_durably(path, png(panel))
    with storage_errors(folder):
        for key in set(KEY_FIGURES) - set(drawn):
            (folder / f"{key}.png").unlink(missing_ok=True)
    return paths


def png(panel: Panel) -> bytes:
    """A panel's figure under its title, as PNG; dark on white, whatever the reader's theme."""
    assert panel.figure is not None, f"{panel.key} has no figure"
    drawn: dict[str, Any] = panel.figure.to_plotly_json()
    with mpl.rc_context({"text.parse_math": False, "font.size": 10, "axes.grid": True, "grid.color": "#dddddd"}):
        figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(panel.title, loc="left", fontweight="bold")
        axes.set_axisbelow(True)
        _scales(axes, drawn["layout"])
        for trace in drawn["data"]:
            _TRACES[trace["type"]](axes, trace)
        _ranges(axes, drawn["layout"])
        for shape in drawn["layout"].get("shapes", ()):
            _shape(axes, shape)
        for note in drawn["layout"].get("annotations", ()):
            _note(axes, note, drawn["layout"])
        if axes.get_legend_handles_labels()[1]:
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)
        return _encoded(figure)


def _encoded(figure: Figure) -> bytes:
    buffer = BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; the terminal need not hear of it.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _plain(text: str) -> str:
    return html.unescape(TAG.sub(" ", text)).strip()


def _scales(axes: Axes, layout: Mapping[str, Any]) -> None:
    for name, axis, set_scale in (("x", axes.xaxis, axes.set_xscale), ("y", axes.yaxis, axes.set_yscale)):
        settings = layout.get(f"{name}axis", {})
        axis.set_label_text(_plain(settings.get("title", {}).get("text", "")))
        if settings.get("type") == "log":
            set_scale("log")
            axis.set_major_formatter(EngFormatter(sep=""))
            axis.set_minor_formatter(NullFormatter())
        if not settings.get("visible", True):
            axis.set_visible(b=False)


def _ranges(axes: Axes, layout: Mapping[str, Any]) -> None:
    for name, axis, limit in (("x", axes.xaxis, axes.set_xlim), ("y", axes.yaxis, axes.set_ylim)):
        settings = layout.get(f"{name}axis", {})
        if "tickvals" in settings:
            ticks = settings["tickvals"]
            axis.set_ticks(ticks, [_plain(text) for text in settings.get("ticktext", map(str, ticks))])
            axis.set_ticks([], minor=True)
        if "range" in settings:
            low, high = settings["range"]
            limit(*((10**low, 10**high) if settings.get("type") == "log" else (low, high)))
        if settings.get("autorange") == "reversed":
            limit(*reversed(axis.get_view_interval()))


def _color(trace: Mapping[str, Any]) -> Any:
    color = trace.get("marker", {}).get("color") or trace.get("line", {}).get("color") or "#808080"
    return color if isinstance(color, (list, tuple)) else _rgba(color, trace.get("opacity", 1.0))


def _rgba(color: str, opacity: float = 1.0) -> tuple[float, float, float, float]:
    if color.startswith("rgba"):
        red, green, blue, alpha = (float(part) for part in color[5:-1].split(","))
        return red / 255, green / 255, blue / 255, alpha * opacity
    return to_rgba(color, opacity)


def _label(trace: Mapping[str, Any]) -> str | None:
    # matplotlib takes a name that begins with "_" for one that is not to be shown.
    return f" {_plain(trace['name'])}" if trace.get("showlegend", True) and trace.get("name") else None


def _scatter(axes: Axes, trace: Mapping[str, Any]) -> None:
    line, marker = trace.get("line", {}), trace.get("marker", {})
    mode, symbol, color = trace.get("mode", "lines"), marker.get("symbol", "circle"), _color(trace)
    open_symbol = isinstance(symbol, str) and symbol.endswith("-open")
    if trace.get("fill") in ("toself", "tonexty"):
        axes.fill(list(trace["x"]), list(trace["y"]), color=_rgba(trace["fillcolor"]), linewidth=0, label=_label(trace))
        return
    style = {
        "color": color if isinstance(color, tuple) else color[0],
        "linestyle": DASHES[line.get("dash", "solid")] if "lines" in mode else "none",
        "linewidth": line.get("width", 2.0),
        "drawstyle": STEPS.get(line.get("shape", ""), "default"),
        "marker": MARKERS[str(symbol).removesuffix("-open")] if "markers" in mode else "none",
        "markersize": 0.75 * (marker["size"] if isinstance(marker.get("size"), (int, float)) else 8),
        "markerfacecolor": "none" if open_symbol else None,
        "label": _label(trace),
    }
    errors = {
        f"{side}err": _both_ways(trace[f"error_{side}"])
        for side in ("x", "y")
        if "array" in trace.get(f"error_{side}", {})
    }
    axes.errorbar(list(trace["x"]), list(trace["y"]), capsize=3, elinewidth=1.2, **errors, **style)


def _both_ways(error: Mapping[str, Any]) -> Any:
    up = list(error["array"])
    return [list(error.get("arrayminus", up)), up]


def _bar(axes: Axes, trace: Mapping[str, Any]) -> None:
    lying = trace.get("orientation") == "h"
    places, lengths = (trace["y"], trace["x"]) if lying else (trace["x"], trace["y"])
    starts = list(trace["base"]) if trace.get("base") is not None else [0.0] * len(lengths)
    style = {"color": _color(trace), "label": _label(trace)}
    if lying:
        axes.barh(list(places), list(lengths), left=starts, **style)
    else:
        axes.bar(list(places), list(lengths), bottom=starts, **style)


def _heat_map(axes: Axes, trace: Mapping[str, Any]) -> None:
    scale = [(float(place), color) for place, color in trace["colorscale"]]
    map_ = LinearSegmentedColormap.from_list("scale", scale)
    if trace.get("reversescale"):
        map_ = map_.reversed()
    rows = [[float("nan") if value is None else value for value in row] for row in trace["z"]]
    image = axes.imshow(rows, cmap=map_, aspect="auto", origin="lower")
    axes.set_xticks(range(len(trace["x"])), list(trace["x"]))
    axes.set_yticks(range(len(trace["y"])), list(trace["y"]))
    axes.grid(visible=False)
    middle = sum(image.get_clim()) / 2
    for y, texts in enumerate(trace.get("text", ())):
        for x, text in enumerate(texts):
            bright = (rows[y][x] > middle) != bool(trace.get("reversescale"))
            axes.text(x, y, _plain(text), ha="center", va="center", color="black" if bright else "white", fontsize=9)
    assert axes.figure is not None
    axes.figure.colorbar(image, ax=axes, label=_plain(trace.get("colorbar", {}).get("title", {}).get("text", "")))


_TRACES = {"scatter": _scatter, "bar": _bar, "heatmap": _heat_map}


def _shape(axes: Axes, shape: Mapping[str, Any]) -> None:
    across, along = "domain" in shape.get("xref", "x"), "domain" in shape.get("yref", "y")
    line = shape.get("line", {})
    style = {
        "color": _rgba(line.get("color", "#808080")),
        "linewidth": line.get("width", 1.0),
        "linestyle": DASHES[line.get("dash", "solid")],
    }
    if shape["type"] == "rect" and across:
        axes.axhspan(shape["y0"], shape["y1"], color=_rgba(shape["fillcolor"], shape.get("opacity", 1.0)), linewidth=0)
    elif shape["type"] == "line" and across:
        axes.axhline(shape["y0"], **style)
    elif shape["type"] == "line" and along:
        axes.axvline(shape["x0"], **style)
    elif shape["type"] == "line":
        axes.plot([shape["x0"], shape["x1"]], [shape["y0"], shape["y1"]], **style)


def _note(axes: Axes, note: Mapping[str, Any], layout: Mapping[str, Any]) -> None:
    """Words at a place of the figure; plotly gives places on a logarithmic axis as exponents."""

    def place(name: str) -> tuple[Any, bool]:
        inside = "domain" in note.get(f"{name}ref", name) or note.get(f"{name}ref") == "paper"
        logarithmic = layout.get(f"{name}axis", {}).get("type") == "log"
        return (10 ** note[name] if logarithmic and not inside else note[name]), inside

    (x, x_inside), (y, y_inside) = place("x"), place("y")
    transform = {
        (True, True): axes.transAxes,
        (True, False): axes.get_yaxis_transform(),
        (False, True): axes.get_xaxis_transform(),
        (False, False): axes.transData,
    }[x_inside, y_inside]
    side = note.get("xanchor", "center")
    axes.text(
        x,
        y,
        _plain(note["text"]),
        transform=transform,
        ha=side if side != "auto" else "center",
        va="bottom",
        fontsize=9,
    )
