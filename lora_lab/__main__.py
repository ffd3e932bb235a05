"""`lora-lab <verb>`, the same commands as `python -m lora_lab.<verb>`."""

from __future__ import annotations

import typer

import lora_lab.doctor
import lora_lab.evaluate
import lora_lab.export
import lora_lab.init
import lora_lab.list
import lora_lab.plan
import lora_lab.report
import lora_lab.serve
import lora_lab.show
import lora_lab.sweep
import lora_lab.ui
from lora_lab.command_line import run_app

app = typer.Typer(
    help="Hyperparameter sweeps for LoRA and QLoRA on one shared base model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("doctor")(lora_lab.doctor.doctor)
app.command("init")(lora_lab.init.init)
app.command("sweep")(lora_lab.sweep.sweep)
app.command("plan")(lora_lab.plan.plan)
app.command("list")(lora_lab.list.list_studies)
app.command("show")(lora_lab.show.show)
app.command("report")(lora_lab.report.report)
app.command("evaluate")(lora_lab.evaluate.evaluate)
app.command("export")(lora_lab.export.export)
app.command("serve")(lora_lab.serve.serve)
app.command("ui")(lora_lab.ui.ui)


def main() -> None:
    """Entry point of the console script."""
    run_app(app)


if __name__ == "__main__":
    main()
