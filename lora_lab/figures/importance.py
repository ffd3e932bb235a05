"""Which parameters mattered, by the importance that the search estimates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.analysis.wording import plural
from lora_lab.figures.cells import Table, number_cell, percent_text, text_cell
from lora_lab.figures.style import BLUE, ORANGE, Panel, blank_figure, plot_text, set_height

if TYPE_CHECKING:
    from lora_lab.analysis.importance import Importance


def importance_panel(importance: Importance | None) -> Panel:
    """Shares of importance by parameter and method, with what must be said beside them."""
    key, title = "importance", "Which parameters mattered"
    if importance is None:
        return Panel(key=key, title=title, words="Too few trials have a value to estimate importance.")
    methods = importance.shares
    names = list(next(iter(methods.values())))
    names += [name for shares in methods.values() for name in shares if name not in names]
    figure = blank_figure("share of importance (%)", "")
    for (method, shares), color in zip(methods.items(), (BLUE, ORANGE), strict=False):
        figure.add_bar(
            orientation="h",
            y=list(map(plot_text, names)),
            x=[100 * shares.get(name, 0.0) for name in names],
            name=method,
            marker={"color": color},
            text=[f"{plot_text(name)}, {method}: {percent_text(shares.get(name, 0.0))}" for name in names],
            textposition="none",
            hoverinfo="text",
        )
    figure.update_layout(barmode="group")
    set_height(figure, 140 + (20 + 16 * len(methods)) * len(names))
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    words = f"Over {plural(importance.trials, 'trial')} of the search. {importance.caveat}"
    rows = [
        [text_cell(name), *(number_cell(shares.get(name), percent_text) for shares in methods.values())]
        for name in names
    ]
    table = Table(["parameter", *methods], rows)
    return Panel(key=key, title=title, words=words, figure=figure, table=table)
