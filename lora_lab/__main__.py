"""`lora-lab <verb>`, the same commands as `python -m lora_lab.<verb>`."""

from __future__ import annotations

import typer

from lora_lab import report, sweep, ui

app = typer.Typer(
    help="Hyperparameter sweeps for LoRA and QLoRA on one shared base model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("sweep")(sweep.sweep)
app.command("report")(report.report)
app.command("ui")(ui.ui)


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
