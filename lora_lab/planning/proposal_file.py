"""A proposed study as a study file, with what was found and why a value was chosen beside it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import yaml

from lora_lab.common.sizes import bytes_text
from lora_lab.study.data_settings import DatasetRef

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_lab.planning.proposal import Proposal

N_TRIALS = 24
FINALISTS, SEEDS = 3, 3
MARGIN = 0.01


def file_text(proposal: Proposal, study_name: str) -> str:
    """The file's contents: YAML."""
    return "\n".join((*_head(proposal, study_name), *_sections(proposal, study_name), *_sweep(proposal))) + "\n"


def found_lines(proposal: Proposal) -> list[str]:
    """What was found in base and data, and what a trial needs, a sentence each."""
    rows, linears = proposal.rows, proposal.linears
    base = f"base: {linears.total_parameters / 1e6:,.0f}M parameters in {linears.num_layers} layers"
    data = (
        f"data: {rows.train:,} rows to train on and {rows.eval:,} to evaluate, {rows.kind}; the median row has "
        f"{rows.median:,} tokens, the longest of those looked at {rows.longest:,}"
    )
    return [base, data, *([] if proposal.predicted_bytes is None else [_memory(proposal, proposal.predicted_bytes)])]


def _memory(proposal: Proposal, predicted_bytes: int) -> str:
    beside = "" if proposal.at_once is None else f"; {proposal.at_once} such trials fit side by side"
    lora = proposal.trial.lora
    return (
        f"memory: {bytes_text(predicted_bytes)} for the costliest trial (r {lora.r}, {lora.target_modules}) on "
        f"{proposal.device.name}{beside}"
    )


def _head(proposal: Proposal, study_name: str) -> Iterator[str]:
    yield f"# A first study, written by `lora-lab init`: edit it, then run python -m lora_lab.sweep {study_name}.yaml"
    for line in found_lines(proposal):
        yield f"# {line}"


def _sections(proposal: Proposal, study_name: str) -> Iterator[str]:
    trial, rows = proposal.trial, proposal.rows
    yield f"study_name: {study_name}"
    yield "question: Which rank, modules and learning rate are good enough on these rows?"
    yield "model:"
    yield _line("model_name_or_path", trial.model.model_name_or_path)
    if trial.model.quantization != "none":
        yield _line("quantization", trial.model.quantization, "the base in 4 bits: in full precision it leaves no room")
    yield "data:"
    assert isinstance(rows.settings.train, DatasetRef)
    yield _line("train", rows.settings.train.path)
    if isinstance(rows.settings.eval, DatasetRef):
        own = rows.settings.eval.path == rows.settings.train.path
        yield _line("eval", rows.settings.eval.path, "its validation or test split" if own else "")
    else:
        yield _line("eval", rows.settings.eval, f"{rows.eval} rows are held out; or give a file")
    cut = "longer ones are cut" if rows.longest > rows.settings.max_length else "no row looked at is longer"
    yield _line("max_length", rows.settings.max_length, f"99 of 100 rows have at most {rows.most} tokens; {cut}")
    training = trial.training
    yield "training:"
    yield _line("per_device_train_batch_size", training.per_device_train_batch_size)
    if training.gradient_accumulation_steps > 1:
        whole = training.per_device_train_batch_size * training.gradient_accumulation_steps
        yield _line("gradient_accumulation_steps", training.gradient_accumulation_steps, f"{whole} rows a step")
    if training.gradient_checkpointing:
        yield _line("gradient_checkpointing", True, "activations are computed twice, to save memory")
    why = "a run of several epochs gives the results of fewer, too" if len(proposal.epochs) > 1 else ""
    yield _line("lr_scheduler_type", training.lr_scheduler_type, why)
    yield _line("warmup_steps", training.warmup_steps)
    yield "lora:"
    yield _line("alpha_ratio", 2, "alpha / r; what counts is its product with the learning rate, which is searched")
    for name, values in (("target_modules", proposal.targets), ("r", proposal.ranks)):
        if len(values) == 1:
            yield _line(name, values[0])


def _sweep(proposal: Proposal) -> Iterator[str]:
    low, high = proposal.learning_rates
    several = len(proposal.epochs) > 1
    searched: Mapping[str, Any] = {
        "r": {"values": list(proposal.ranks)},
        "target_modules": {"values": list(proposal.targets)},
        "num_train_epochs": {"values": list(proposal.epochs)},
        "learning_rate": {"min": low, "max": high, "log": True},
    }
    yield "sweep:"
    yield _line("sampler", "tpe", "or grid, random, qmc, gp, nsga2")
    yield _line("pruner", "asha" if several else "none", "ends what is behind after an epoch" if several else "")
    yield _line("n_trials", N_TRIALS)
    yield "  parameters:"
    for name, parameter in searched.items():
        if len(parameter.get("values", (1, 2))) > 1:
            yield f"  {_line(name, parameter)}"
    yield _line("confirm", {"top": FINALISTS, "seeds": SEEDS}, "the best are trained again, with seeds of their own")
    yield _line("verdict", {"margin": MARGIN}, "in nats: a cheaper configuration may be so much worse")


def _line(key: str, value: Any, why: str = "") -> str:
    return f"  {key}: {_flow(value)}" + (f"    # {why}" if why else "")


def _flow(value: Any) -> str:
    """A value on one line, numbers as people write them."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float):
        return str(value) if value >= 1e-3 else f"{value:.1e}"
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").removesuffix("\n")
