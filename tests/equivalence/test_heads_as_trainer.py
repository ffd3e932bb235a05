"""Classes learned on the reference engine equal plain `Trainer` + `peft` with `TaskType.SEQ_CLS`."""

from __future__ import annotations

import warnings

import pytest
import torch
from classifiers import CONFIGS, LABELS, classification_engine, classification_trial, write_encoder, write_rows
from oracle import largest_drift, read_adapter
from peft import LoraConfig, PeftModel, get_peft_model
from samples import sample
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments
from workshop import drain, only

from lora_lab.data.order import batches
from lora_lab.study.events import Finished, Logged


class _Ordered(Trainer):
    def _get_train_sampler(self, train_dataset=None):
        return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)


def plain_base(folder, seed, dtype=torch.float64):
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(LABELS), dtype=dtype)


def rows_of(path, tokenizer, max_length=32):
    import json

    for line in path.read_text().splitlines():
        row = json.loads(line)
        texts = [row[name] for name in ("text", "premise", "hypothesis") if name in row]
        encoded = tokenizer(*texts, truncation=True, max_length=max_length)
        yield dict(encoded) | {"label": LABELS.index(row["label"])}


TARGETS = {"DistilBERT": ["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"]}
"""Where PEFT's own all-linear takes a part of the head, which it then cannot save."""


def alone(config, base_folder, train, scratch, family):
    """Losses by step, and the model, of a plain training on the same rows in the same order."""
    tokenizer, settings = AutoTokenizer.from_pretrained(base_folder), config.training
    rows = list(rows_of(train, tokenizer))
    order = [
        index
        for epoch in range(settings.num_train_epochs)
        for batch in batches(len(rows), settings.per_device_train_batch_size, settings.seed, epoch)
        for index in batch
    ]
    model = get_peft_model(
        plain_base(base_folder, settings.seed),
        LoraConfig(
            task_type="SEQ_CLS",
            r=config.lora.r,
            lora_alpha=2 * config.lora.r,
            target_modules=TARGETS.get(family, "all-linear"),
        ),
    )
    losses = []

    class Told(_Ordered):
        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            losses.append(loss.item())
            return loss

    trainer = Told(
        model=model,
        args=TrainingArguments(
            output_dir=str(scratch / "plain"),
            per_device_train_batch_size=settings.per_device_train_batch_size,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="constant",
            num_train_epochs=1,
            weight_decay=0.0,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            seed=settings.seed,
        ),
        train_dataset=[rows[index] for index in order],
        processing_class=tokenizer,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    return losses, model


@pytest.mark.parametrize(
    ("family", "pairs"), sample([(family, pairs) for family in CONFIGS for pairs in (False, True)], [("BERT", True)])
)
def test_classes_are_learned_as_trainer_and_peft_learn_them(family, pairs, tmp_path):
    write_encoder(tmp_path / "base", family)
    write_rows(tmp_path / "train.jsonl", 24, pairs=pairs)
    write_rows(tmp_path / "eval.jsonl", 9, seed=1, pairs=pairs)
    config = classification_trial(
        tmp_path / "base", tmp_path / "train.jsonl", tmp_path / "eval.jsonl", num_train_epochs=2, seed=3
    )
    engine, _ = classification_engine(config, tmp_path)
    engine.admit(0, config)
    events = drain(engine)
    ours = [event.loss for event in only(events, Logged)]
    theirs, model = alone(config, tmp_path / "base", tmp_path / "train.jsonl", tmp_path, family)
    assert len(ours) == len(theirs) == 12
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-9
    saved = {
        name.replace(".default", ""): parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    adapter = read_adapter(engine.trial_folder(0) / "adapter")
    assert largest_drift(adapter, {name.replace(".modules_to_save", ""): value for name, value in saved.items()}) < 1e-8
    metrics = only(events, Finished)[0].metrics
    assert metrics["trainable_params"] == model.get_nb_trainable_parameters()[0]
    assert metrics["trainable_percent"] == pytest.approx(
        100 * metrics["trainable_params"] / model.get_nb_trainable_parameters()[1]
    )
    loaded = PeftModel.from_pretrained(plain_base(tmp_path / "base", 99), engine.trial_folder(0) / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    rows = list(rows_of(tmp_path / "eval.jsonl", tokenizer))
    labels = torch.tensor([row.pop("label") for row in rows])
    with torch.no_grad():
        logits = loaded(**tokenizer.pad(rows, return_tensors="pt")).logits
    loss = torch.nn.functional.cross_entropy(logits, labels)
    assert metrics["eval_loss"] == pytest.approx(float(loss), abs=1e-9)
