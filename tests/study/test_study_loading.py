# ruff: noqa: E501 - messages are compared whole, one line each
from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from lora_lab.common.errors import StorageError, StudyFileError
from lora_lab.study.file.loading import load_spec_json, load_study

if TYPE_CHECKING:
    from pathlib import Path


def refusal(path: Path, *overrides: str) -> list[str]:
    """The lines of the message, without the folder."""
    with pytest.raises(StudyFileError) as refused:
        load_study(path, overrides)
    return str(refused.value).replace(f"{path.parent.parent}/", "").splitlines()


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def test_a_study_with_a_sweep_file_loads(study_file: Path) -> None:
    spec = load_study(study_file)
    assert spec.study_name == "rank_alpha"
    assert spec.training.learning_rate == 2e-3
    assert spec.data.train.path == "builtin/stdlib-code"
    assert list(spec.sweep.parameters) == [
        "r",
        "alpha_ratio",
        "target_modules",
        "learning_rate",
        "weight_decay",
    ]
    assert spec.sweep.parameters["target_modules"].values == ("attention", ("q_proj", "v_proj"))
    assert spec.sweep.parameters["learning_rate"].min == 1e-4
    assert spec.sweep.metric[0].name == "eval_loss"


def test_an_inline_sweep_equals_a_sweep_file(study_file: Path, sweep_file: Path) -> None:
    from_file = load_study(study_file)
    inline = "sweep:\n" + "".join(f"  {line}\n" for line in sweep_file.read_text().splitlines())
    edit(study_file, "sweep: ../sweeps/rank_alpha.yaml\n", inline)
    assert load_study(study_file) == from_file


def test_a_spec_survives_json(study_file: Path) -> None:
    spec = load_study(
        study_file,
        ["data.train={path: a/b, split: train}", "lora.layers=[0, 2]", "sweep.parameters.layers=null"],
    )
    assert load_spec_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize("text", ["{", "[]", '{"study_name": "x"}', ""])
def test_a_damaged_stored_spec_is_a_storage_error(text: str) -> None:
    with pytest.raises(StorageError, match="stored study settings cannot be read"):
        load_spec_json(text)


MISTAKES = [
    ("lora: {lora_dropout: 0.0}", "lora: {lora_dropout: 1.5}", "13: lora.lora_dropout: must be less than 1, but is 1.5"),
    ("lora: {lora_dropout: 0.0}", "lora: {lora_dropuot: 0.0}", "13: lora.lora_dropuot: unknown key; did you mean lora_dropout?"),
    ("lora: {lora_dropout: 0.0}", "lora: {lora_r: 8}", "13: lora.lora_r: unknown key; did you mean r?"),
    ("lora: {lora_dropout: 0.0}", "lora: {use_rslora: yes}", "13: lora.use_rslora: must be true or false, but is 'yes'; write true"),
    ("lora: {lora_dropout: 0.0}", "lora: {layers: frist_half}", "13: lora.layers: must be one of all, first_half, last_half, every_2nd or a list, but is 'frist_half'; did you mean first_half?"),
    ("lora: {lora_dropout: 0.0}", "lora: {layers: [0, -1]}", "13: lora.layers[1]: must be at least 0, but is -1"),
    ("lora: {lora_dropout: 0.0}", "lora: {target_modules: [q, 3]}", "13: lora.target_modules[1]: must be text, but is 3; write it in quotes"),
    ("lora: {lora_dropout: 0.0}", "lora: {init_lora_weights: pisa}", "13: lora.init_lora_weights: must be true or false or one of gaussian, orthogonal, pissa, olora, loftq, but is 'pisa'; did you mean pissa?"),
    ("lora: {lora_dropout: 0.0}", "lora: {target_parameters: expert}", "13: lora.target_parameters: must be one of none, experts or a list, but is 'expert'; did you mean experts?"),
    ("lora: {lora_dropout: 0.0}", "lora: {target_modules: none}", "13: lora.target_modules: none leaves nothing to adapt without target_parameters; set one"),
    ("lora: {lora_dropout: 0.0}", "lora: {target_parameters: experts, lora_dropout: 0.1}", "13: lora.lora_dropout: must be 0 with target_parameters, which peft adapts without dropout, but is 0.1"),
    ("lora: {lora_dropout: 0.0}", "lora: {target_parameters: experts, use_dora: true}", "13: lora.use_dora: must be false with target_parameters, which peft adapts without DoRA; set one of them to its default"),
    ("lora: {lora_dropout: 0.0}", "lora: {target_parameters: experts, init_lora_weights: pissa}", "13: lora.init_lora_weights: must be true, false or gaussian with target_parameters, but is pissa, which peft cannot compute from the weights of experts"),
    ("lora: {lora_dropout: 0.0}", "lora:", "13: lora: is empty; give its keys, or remove the line"),
    ("lora: {lora_dropout: 0.0}", "lora: {r: 3, init_lora_weights: orthogonal}", "13: lora.init_lora_weights: orthogonal needs an even r, but r is 3"),
    ("lora: {lora_dropout: 0.0}", "lora: {r: 8.0}", "13: lora.r: must be a whole number, but is 8.0; write 8"),
    ("lora: {lora_dropout: 0.0}", "lora: {r: '8'}", "13: lora.r: must be a whole number, but is '8'; write it without quotes"),
    ("  eval: 0.1", "  eval: 1.5", "7: data.eval: must be less than 1, but is 1.5"),
    ("  eval: 0.1", "  eval: {pth: x}", "7: data.eval.path: is missing; add this key"),
    ("  eval: 0.1", "  eval: true", "7: data.eval: must be a number or the name of a dataset, but is true"),
    ("  eval: 0.1", "  columns: {promt: question}", "7: data.columns.promt: unknown key; did you mean prompt?"),
    ("  eval: 0.1", "  columns: {prompt: q, completion: q}", "7: data.columns: each name must be a column of its own, but got q, q"),
    ("  eval: 0.1", "  columns: [q]", "7: data.columns: must be a mapping of keys, but is ['q']"),
    ("  train: builtin/stdlib-code", "  train: {path: a, weight: 2}", "6: data.train.weight: is of the datasets in a list under data.train; remove it"),
    ("  train: builtin/stdlib-code", "  train: [a, {path: b, wieght: 2}]", "6: data.train[1].wieght: unknown key; did you mean weight?"),
    ("  train: builtin/stdlib-code", "  train: [a, {path: b, weight: 0}]", "6: data.train[1].weight: must be greater than 0, but is 0"),
    ("  train: builtin/stdlib-code", "  train: []", "6: data.train: must not be empty"),
    ("  train: builtin/stdlib-code", "  train: 5", "6: data.train: must be the name of a dataset or a list, but is 5"),
    ("  eval: 0.1", "  eval: {path: b, weight: 2}", "7: data.eval.weight: is of the datasets in a list under data.train; remove it"),
    ("  eval: 0.1", "  skip_invalid: yes", "7: data.skip_invalid: must be true or false, but is 'yes'; write true"),
    ("  train: builtin/stdlib-code\n", "", "5: data.train: is missing; add this key"),
    ("  learning_rate: 2e-3", "  learning_rate: 0", "11: training.learning_rate: must be greater than 0, but is 0"),
    ("  learning_rate: 2e-3", "  learning_rate: fast", "11: training.learning_rate: must be a number, but is 'fast'"),
    ("  learning_rate: 2e-3", "  warmup_ratio: 0.1", "10: training.lr_scheduler_type: lr_scheduler_type constant has no warm-up; use constant_with_warmup, or drop the warm-up"),
    ("  learning_rate: 2e-3", "  early_stopping_patience: 3", "11: training.early_stopping_patience: needs load_best_model_at_end: true; set that, or remove early_stopping_patience"),
    ("  learning_rate: 2e-3", "  metric_for_best_model: perplexity", "11: training.metric_for_best_model: needs load_best_model_at_end: true; set that, or remove metric_for_best_model"),
    ("  learning_rate: 2e-3", "  load_best_model_at_end: true\n  metric_for_best_model: perplexity", "12: training.metric_for_best_model: perplexity is measured only where evaluation.metrics asks for it; add it there"),
    ("  learning_rate: 2e-3", "  load_best_model_at_end: true\n  early_stopping_threshold: 0.1", "12: training.early_stopping_threshold: needs early_stopping_patience; set that, or remove the threshold"),
    ("  learning_rate: 2e-3", "  load_best_model_at_end: true\n  early_stopping_patience: 0", "12: training.early_stopping_patience: must be at least 1, but is 0"),
    ("  learning_rate: 2e-3", "  patience: 3", "11: training.patience: unknown key; did you mean early_stopping_patience?"),
    ("  model_name_or_path: builtin/tiny-llama", "  model_name_or_path: 7", "4: model.model_name_or_path: must be text, but is 7; write it in quotes"),
    ("  model_name_or_path: builtin/tiny-llama", "  model_name_or_path: m\n  quantization: nf5", "5: model.quantization: must be one of none, int8, nf4, fp4, but is 'nf5'; did you mean nf4?"),
    ("  model_name_or_path: builtin/tiny-llama", "  model_name_or_path: m\n  double_quant: true", "5: model.double_quant: double_quant needs quantization nf4 or fp4, but quantization is none"),
    ("question: How do rank and alpha trade off?", "learning_rate: 1", "2: learning_rate: unknown key here; did you mean training.learning_rate?"),
    ("sweep: ../sweeps/rank_alpha.yaml", "sweep: [1]", "14: sweep: must be a mapping of keys, but is [1]"),
    ("sweep: ../sweeps/rank_alpha.yaml", "sweep: ../sweeps/rank.yaml", "14: sweep: sweeps/rank.yaml: no such file; its folder has rank_alpha.yaml (a sweep is a mapping, or a path from studies)"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), MISTAKES)
def test_a_mistake_in_the_study_file(old: str, new: str, message: str, study_file: Path) -> None:
    edit(study_file, old, new)
    assert refusal(study_file)[0] == f"studies/rank_alpha.yaml:{message}"


def test_the_best_checkpoint_needs_its_metric_at_every_evaluation(study_file: Path) -> None:
    chosen = ["training.load_best_model_at_end=true", "training.metric_for_best_model=perplexity"]
    measured = [*chosen, "evaluation.metrics=[perplexity]"]
    assert refusal(study_file, *measured)[0].endswith(
        "training.metric_for_best_model: perplexity must be measured at every evaluation; set evaluation.at to evaluations"
    )
    spec = load_study(study_file, [*measured, "evaluation.at=evaluations"])
    assert spec.training.metric_for_best_model == "perplexity"


def test_the_best_checkpoint_is_the_best_by_what_is_measured(study_file: Path) -> None:
    chosen = ["training.load_best_model_at_end=true", "training.metric_for_best_model=loss"]
    [message] = refusal(study_file, *chosen)
    assert message.startswith("--set: training.metric_for_best_model: must be one of eval_loss, perplexity, ")
    assert message.endswith("but is 'loss'; did you mean eval_loss?")


def test_searched_patience_needs_the_best_checkpoint(study_file: Path) -> None:
    searched = "sweep.parameters.early_stopping_patience={values: [2, 4]}"
    assert "needs load_best_model_at_end: true" in refusal(study_file, searched)[0]
    assert load_study(study_file, [searched, "training.load_best_model_at_end=true"])


SWEEP_MISTAKES = [
    ("[4, 8, 16]", "[4, 0, 16]", "5: parameters.r.values[1]: must be at least 1, but is 0"),
    ("[4, 8, 16]", "[4,\n    8,\n    -1]", "7: parameters.r.values[2]: must be at least 1, but is -1"),
    ("[4, 8, 16]", "[4, 4]", "5: parameters.r.values: values must differ, but got [4, 4]"),
    ("[0.5, 1, 2]", "[1, 1.0]", "6: parameters.alpha_ratio.values: values must differ, but got [1, 1.0]"),
    ("[4, 8, 16]", "[]", "5: parameters.r.values: must not be empty"),
    ("r: {values: [4, 8, 16]}", "r: [4, 8]", "5: parameters.r: must be {values: [...]} or {min: ..., max: ...}, but is [4, 8]"),
    ("r: {values: [4, 8, 16]}", "r: {min: 4, max: 8.5}", "5: parameters.r.max: must be a whole number, but is 8.5"),
    ("r: {values: [4, 8, 16]}", "r: {min: 4, max: 8, step: 0.5}", "5: parameters.r.step: min + step must be a whole number, but is 4.5"),
    ("r: {values: [4, 8, 16]}", "r: {min: 8, max: 4}", "5: parameters.r: min < max must hold, but got min=8, max=4"),
    ("  alpha_ratio:", "  lora_alpha: {values: [1]}\n  alpha_ratio:", "7: parameters.alpha_ratio: search lora_alpha or alpha_ratio, not both"),
    ("  alpha_ratio:", "  alpha_rato:", "6: parameters.alpha_rato: 'alpha_rato' is no key that can be searched; did you mean alpha_ratio?"),
    ("  alpha_ratio: {values: [0.5, 1, 2]}", "  lora_dropout: {values: [0, 1.5]}", "6: parameters.lora_dropout.values[1]: must be less than 1, but is 1.5"),
    ("  alpha_ratio: {values: [0.5, 1, 2]}", "  warmup_ratio: {values: [0.0, 0.1]}", "6: parameters.warmup_ratio: no trial can have warmup_ratio=0.1: lr_scheduler_type constant has no warm-up; use constant_with_warmup, or drop the warm-up; drop a value, or search it only `when` others allow"),
    ("  alpha_ratio: {values: [0.5, 1, 2]}", "  target_parameters: {values: [none, experts]}\n  lora_dropout: {values: [0.0, 0.1]}", "7: parameters.lora_dropout: no trial can have target_parameters='experts', lora_dropout=0.1: must be 0 with target_parameters, which peft adapts without dropout, but is 0.1; drop a value, or search it only `when` others allow"),
    ("log: true", "log: 1", "8: parameters.learning_rate.log: must be true or false, but is 1"),
    ("min: 1e-4", "min: 0", "8: parameters.learning_rate.min: must be greater than 0, but is 0"),
    ("max: 1e-2", "mx: 1e-2", "8: parameters.learning_rate.mx: unknown key; did you mean max?"),
    ("when: {r: {min: 8}}", "when: {q: 8}", "9: parameters.weight_decay.when.q: q is not searched; searched are r, alpha_ratio, target_modules, learning_rate, weight_decay"),
    ("when: {r: {min: 8}}", "when: {r: 0}", "9: parameters.weight_decay.when.r: must be at least 1, but is 0"),
    ("when: {r: {min: 8}}", "when: {r: {mim: 8}}", "9: parameters.weight_decay.when.r.mim: unknown key; did you mean min?"),
    ("when: {r: {min: 8}}", "when: {weight_decay: 0.1}", "9: parameters.weight_decay.when.weight_decay: weight_decay must stand above weight_decay among the parameters"),
    ("name: eval_loss", "name: eval_los", "1: metric.name: must be one of eval_loss, forgetting, perplexity, token_accuracy, exact_match, f1, rouge1, rougeL, bleu, chrf, json_match, classification_accuracy, macro_f1, accuracy, accuracy_norm, trainable_params, peak_memory_bytes, train_seconds, but is 'eval_los'; did you mean eval_loss?"),
    ("sampler: tpe", "sampler: grid", "8: parameters.learning_rate: sampler grid needs `values` or `step` for every parameter; this range has neither"),
    ("sampler: tpe", "sampler: bayes", "2: sampler: must be one of tpe, grid, random, qmc, gp, nsga2, but is 'bayes'"),
    ("n_trials: 32\n", "", "1: n_trials: is missing; sampler tpe needs it (only grid ends by itself)"),
    ("n_trials: 32", "n_trails: 32", "3: n_trails: unknown key; did you mean n_trials?"),
    ("n_trials: 32", "n_trials: 32\npack_size: 0", "4: pack_size: must be at least 1, but is 0"),
    ("n_trials: 32", "n_trials: 32\npack_size: aut", "4: pack_size: must be auto or a whole number, but is 'aut'; did you mean auto?"),
    ("{name: eval_loss, goal: minimize}", "[{name: eval_loss}, {name: train_seconds}]\npruner: median\n#", "2: pruner: a study of 2 metrics prunes by Pareto dominance, which is `pruner: asha`; set that or none (it is median)"),
    ("sampler: tpe", "sampler: tpe\nsampler: gp", "3: sampler: duplicate key; it stands on line 2 already"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), SWEEP_MISTAKES)
def test_a_mistake_in_the_sweep_file_names_that_file(
    old: str, new: str, message: str, study_file: Path, sweep_file: Path
) -> None:
    edit(sweep_file, old, new)
    assert refusal(study_file)[0] == f"sweeps/rank_alpha.yaml:{message}"


def test_all_mistakes_are_reported_in_the_order_of_the_files(study_file: Path, sweep_file: Path) -> None:
    edit(study_file, "  eval: 0.1", "  eval: 2")
    edit(study_file, "study_name: rank_alpha", "study_name: 7")
    edit(sweep_file, "[4, 8, 16]", "[4, 0, 1.5]")
    assert refusal(study_file) == [
        "studies/rank_alpha.yaml:1: study_name: must be text, but is 7; write it in quotes",
        "studies/rank_alpha.yaml:7: data.eval: must be less than 1, but is 2",
        "sweeps/rank_alpha.yaml:5: parameters.r.values[1]: must be at least 1, but is 0",
        "sweeps/rank_alpha.yaml:5: parameters.r.values[2]: must be a whole number, but is 1.5",
    ]


def test_pydantic_words_never_reach_the_user(study_file: Path) -> None:
    lines = refusal(
        study_file, "data.eval=[1]", "data.train=[1]", "sweep.pack_size=[1]", "lora.layers={a: 1}", "sweep.parameters.layers=null",
        "sweep.parameters.r={values: [{a: 1}]}", "sweep.metric=3", "model=[]", "sweep.parameters.weight_decay.when=[r]",
    )  # fmt: skip
    assert len(lines) >= 7
    for word in (
        "function-",
        "literal",
        "union",
        "constrained",
        "tuple",
        "dict",
        "Input",
        "instance",
        "Settings",
    ):
        assert not any(word in line for line in lines), (word, lines)


@pytest.mark.parametrize(
    ("override", "where", "value"),
    [
        ("sweep.n_trials=8", "sweep.n_trials", 8),
        ("sweep.parameters.r.values=[4,8]", "sweep.parameters.r.values", (4, 8)),
        ("sweep.parameters.max_steps={min: 10, max: 20}", "sweep.parameters.max_steps.max", 20),
        ("training.weight_decay=1e-3", "training.weight_decay", 1e-3),
        ("model.model_name_or_path=org/model", "model.model_name_or_path", "org/model"),
        ("data.train.max_examples=7", "data.train.max_examples", 7),
        ("data.train.max_examples=7", "data.train.path", "builtin/stdlib-code"),
        ("question=", None, "has no value; write null to remove the key, or '' for empty text"),
        ("question=''", "question", ""),
        ("storage=postgresql://u:p@h/db", "storage", "postgresql://u:p@h/db"),
        ("data.forgetting=null", "data.forgetting", None),
        ("sweep.confirm=null", "sweep.confirm", None),
        ("sweep.verdict.margin=null", "sweep.verdict.margin", 0.01),
        ("lora.layers=[0, 1]", "lora.layers", (0, 1)),
        ("no equals sign", None, "takes key.path=value, but got 'no equals sign'"),
        ("a..b=1", None, "takes key.path=value, but got 'a..b'"),
        ("lora.r=*x", None, "lora.r: aliases"),
        ("lora.r=[1", None, "lora.r: not valid YAML"),
        ("lora.use_rslora=on", None, "lora.use_rslora: must be true or false, but is 'on'; write true"),
        ("study_name.x=1", None, "study_name.x: study_name has no keys of its own; set it as a whole"),
    ],
)
def test_overrides(override: str, where: str | None, value: object, study_file: Path) -> None:
    if where is None:
        line = refusal(study_file, override)[0]
        assert line.startswith("--set: ")
        assert str(value) in line
        return
    found: object = load_study(study_file, [override])
    for part in where.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value


def test_a_fixed_value_for_what_is_searched_is_refused_with_the_way_out(study_file: Path) -> None:
    fixed = "training.learning_rate=1e-3"
    assert refusal(study_file, fixed) == [
        "--set: training.learning_rate: learning_rate is searched, so a fixed value has no effect; set sweep.parameters.learning_rate instead, or remove that with --set sweep.parameters.learning_rate=null"
    ]
    for overrides in (
        [fixed, "sweep.parameters.learning_rate=null"],
        ["sweep.parameters.learning_rate=null", fixed],
    ):
        spec = load_study(study_file, overrides)
        assert spec.training.learning_rate == 1e-3
        assert "learning_rate" not in spec.sweep.parameters


def test_the_digest_covers_the_sweep_file_and_the_overrides_but_not_how_they_are_written(
    study_file: Path, sweep_file: Path
) -> None:
    before = load_study(study_file).digest
    assert len(before) == 64
    assert load_study(study_file, ["training.num_train_epochs=2"]).digest != before
    assert load_study(study_file, ["storage=sqlite:///elsewhere.db"]).digest == before

    edit(study_file, "lora: {lora_dropout: 0.0}", "# no dropout\nlora:\n  lora_dropout: 0.0")
    edit(sweep_file, "sampler: tpe\nn_trials: 32\n", "n_trials: 32\nsampler:   'tpe'\n")
    assert load_study(study_file).digest == before

    edit(sweep_file, "r: {values: [4, 8, 16]}", "r: {values: [4, 8, 16, 32]}")
    assert load_study(study_file).digest != before


def test_a_fixed_alpha_beside_a_searched_ratio_is_refused(study_file: Path) -> None:
    assert "alpha_ratio is searched" in refusal(study_file, "lora.lora_alpha=16")[0]


def test_a_conditional_parameter_leaves_the_fixed_value_a_meaning(study_file: Path) -> None:
    assert load_study(study_file, ["training.weight_decay=0.3"]).training.weight_decay == 0.3


def test_another_sweep_from_the_command_line(study_file: Path, sweep_file: Path) -> None:
    sweep_file.with_name("small.yaml").write_text("n_trials: 2\nparameters: {r: {values: [2, 4]}}\n")
    spec = load_study(study_file, ["sweep.n_trials=5", "sweep=../sweeps/small.yaml"])
    assert list(spec.sweep.parameters) == ["r"]
    assert spec.sweep.n_trials == 5


def test_null_removes_a_key_and_creates_none(study_file: Path) -> None:
    assert load_study(study_file, ["sweep.confirm=null", "sweep.confirm.top=null"]).sweep.confirm is None


def test_values_that_no_trial_can_have_together_are_refused(study_file: Path) -> None:
    quantization = "sweep.parameters.quantization={values: [none, nf4]}"
    line = refusal(study_file, quantization, "sweep.parameters.double_quant={values: [false, true]}")[0]
    assert "no trial can have quantization='none', double_quant=true" in line
    when = "sweep.parameters.double_quant={values: [false, true], when: {quantization: nf4}}"
    spec = load_study(study_file, [quantization, when])
    assert spec.active("double_quant", {"quantization": "nf4"})
    assert not spec.active("double_quant", {"quantization": "none"})


def test_fixed_values_that_no_trial_can_have_together_are_refused(study_file: Path) -> None:
    fixed = ["lora.init_lora_weights=pissa", "model.quantization=nf4"]
    reason = "lora.init_lora_weights: pissa starts from unquantized weights, but model.quantization is nf4"
    assert [reason in line for line in refusal(study_file, *fixed)] == [True]
    quantization = "sweep.parameters.quantization={values: [none, nf4], when: {r: {min: 8}}}"
    assert [reason in line for line in refusal(study_file, *fixed, quantization)] == [True], "they meet where r is 4"


def test_what_is_searched_between_the_ends_of_a_range_is_checked_too(study_file: Path) -> None:
    parameters = "{r: {min: 4, max: 64}, init_lora_weights: {values: [orthogonal], when: {r: {min: 7, max: 9}}}}"
    line = refusal(study_file, f"sweep.parameters={parameters}")[0]
    assert "no trial can have r=7, init_lora_weights='orthogonal'" in line


@pytest.mark.parametrize(
    "value",
    [
        "[postgresql://user:hunter2@host/db]",
        "{a: 'mysql://user:hunter2@x@host/db'}",
        "['x?password=hunter2&b=1']",
    ],
)
def test_no_password_is_shown(value: str, study_file: Path) -> None:
    line = refusal(study_file, f"storage={value}")[0]
    assert "hunter2" not in line
    assert "***" in line


def test_a_sweep_file_may_not_be_a_list_or_empty(study_file: Path, sweep_file: Path) -> None:
    sweep_file.write_text("- a\n")
    assert refusal(study_file)[0].startswith("sweeps/rank_alpha.yaml:1: the file is not a mapping")


def test_loading_imports_no_heavy_library() -> None:
    code = (
        "import sys; import lora_lab.study.file.loading, lora_lab.study.resume, lora_lab.study.identity; "
        "print([m for m in ('torch', 'transformers', 'peft', 'optuna', 'mlflow', 'numpy', 'pandas', 'plotly')"
        " if m in sys.modules], len(sys.modules) < 700)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["[]", "True"]


def test_a_dtype_in_which_gradients_vanish_is_refused(study_file: Path) -> None:
    [line] = refusal(study_file, "model.dtype=float16")
    assert line.endswith(
        "model.dtype: float16 is not trained in: small gradients vanish there, as no loss is scaled; take bfloat16, or float32 on a device without it"
    )
    assert load_study(study_file, ["model.dtype=bfloat16"]).model.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "evaluation.metrics=[exact_matches]",
            "--set: evaluation.metrics[0]: must be one of perplexity, token_accuracy, ",
        ),
        (
            "evaluation.metrics=[acuracy]",
            (
                "--set: evaluation.metrics[0]: must be one of perplexity, token_accuracy, exact_match, f1, rouge1, "
                "rougeL, bleu, chrf, json_match, classification_accuracy, macro_f1, accuracy, accuracy_norm, but is "
                "'acuracy'; did you mean accuracy?"
            ),
        ),
        ("evaluation.metrics=[exact_match, exact_match]", "--set: evaluation.metrics: metrics must differ"),
        ("evaluation.max_new_tokens=0", "--set: evaluation.max_new_tokens: must be at least 1, but is 0"),
        ("evaluation.at=start", "--set: evaluation.at: must be one of end, evaluations, but is 'start'"),
        ("evaluation.metric=[exact_match]", "--set: evaluation.metric: unknown key; did you mean metrics?"),
        ("sweep.metric=exact_match", "--set: sweep.metric: exact_match is measured only where evaluation.metrics"),
    ],
)
def test_what_no_evaluation_can_be_is_refused(override: str, line: str, study_file: Path) -> None:
    assert refusal(study_file, override)[0].startswith(line)
