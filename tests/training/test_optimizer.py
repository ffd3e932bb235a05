"""A slot's optimizer steps as PEFT's and `Trainer`'s do, and its state comes back exactly."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes.optim import AdamW8bit
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from transformers import AutoModelForCausalLM
from workshop import llama_config, make_base, make_slot

from lora_lab.common.errors import InputError
from lora_lab.study.settings import TrainingSettings
from lora_lab.training.live_bytes import LiveBytes
from lora_lab.training.packed.optimizer import BLOCK, SMALLEST_8BIT, SlotOptimizer, sizes_to_step

KINDS = {
    "adamw": {"optim": "adamw_torch", "weight_decay": 0.1, "adam_beta1": 0.8},
    "adamw, loraplus": {"optim": "adamw_torch", "weight_decay": 0.1, "loraplus_lr_ratio": 16.0},
    "8 bit": {"optim": "adamw_8bit", "weight_decay": 0.1, "adam_epsilon": 1e-6},
    "8 bit, loraplus": {"optim": "adamw_8bit", "loraplus_lr_ratio": 4.0},
    "sgd": {"optim": "sgd", "weight_decay": 0.1},
    "sgd, loraplus": {"optim": "sgd", "loraplus_lr_ratio": 0.5},
}
SIZES = ((SMALLEST_8BIT + 300, 100), (SMALLEST_8BIT, 7))
"""Elements of two A's, and of two B's."""


def make_leaves(seed=0):
    numbers = torch.Generator().manual_seed(seed)
    sides = [[torch.randn(size, generator=numbers).requires_grad_() for size in side] for side in SIZES]
    for leaf in (leaf for side in sides for leaf in side):
        leaf.grad = torch.zeros_like(leaf)
    return sides


def fill(sides, step):
    numbers = torch.Generator().manual_seed(100 + step)
    for leaf in (leaf for side in sides for leaf in side):
        leaf.grad.copy_(torch.randn(leaf.shape, generator=numbers))


def go(optimizer, sides, steps):
    for step in steps:
        fill(sides, step)
        optimizer.step(1e-2 / (step + 1))


@pytest.mark.parametrize("kind", KINDS)
def test_state_comes_back_exactly(kind):
    training = TrainingSettings(**KINDS[kind])
    sides = make_leaves()
    optimizer = SlotOptimizer(training, *sides)
    go(optimizer, sides, range(5))
    state = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    assert {name: tensor.numel() for name, tensor in state.items()} == optimizer.state_sizes
    copies = [[leaf.detach().clone().requires_grad_() for leaf in side] for side in sides]
    for leaf in (leaf for side in copies for leaf in side):
        leaf.grad = torch.zeros_like(leaf)
    resumed = SlotOptimizer(training, *copies)
    resumed.restore(state, 5)
    assert all(torch.equal(tensor, state[name]) for name, tensor in resumed.state().items())
    go(optimizer, sides, range(5, 9))
    go(resumed, copies, range(5, 9))
    for left, right in zip(sides, copies, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
    assert all(torch.equal(tensor, resumed.state()[name]) for name, tensor in optimizer.state().items())


@pytest.mark.parametrize("kind", KINDS)
def test_restoring_a_trial_before_its_first_step_forgets_the_state(kind):
    used, new = make_leaves(), make_leaves()
    optimizer, expected = (SlotOptimizer(TrainingSettings(**KINDS[kind]), *sides) for sides in (used, new))
    go(optimizer, used, range(2))
    optimizer.restore({}, 0)
    with torch.no_grad():
        for leaf, start in zip(used[0] + used[1], new[0] + new[1], strict=True):
            leaf.copy_(start)
    go(optimizer, used, range(3))
    go(expected, new, range(3))
    assert all(torch.equal(*pair) for pair in zip(used[0] + used[1], new[0] + new[1], strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_is_kept_is_made_with_the_optimizer(kind):
    """So the first step, and taking up a checkpoint, ask for no memory that was not there before."""
    sides = make_leaves()
    optimizer = SlotOptimizer(TrainingSettings(**KINDS[kind]), *sides)
    made = [tensor.data_ptr() for tensor in optimizer.tensors]
    go(optimizer, sides, range(2))
    optimizer.restore(optimizer.state(), 2)
    assert [tensor.data_ptr() for tensor in optimizer.tensors] == made


@pytest.mark.parametrize("kind", [name for name, settings in KINDS.items() if settings["optim"] != "adamw_8bit"])
def test_a_step_allocates_nothing(kind):
    """Where memory runs out, a step would else be half made (8-bit AdamW has kernels without buffers on CUDA alone)."""
    sides = make_leaves()
    optimizer = SlotOptimizer(TrainingSettings(**KINDS[kind]), *sides)
    fill(sides, 0)
    with LiveBytes(leaf for side in sides for leaf in side) as live:
        live.count("gradients", [leaf.grad for side in sides for leaf in side])
        live.count("optimizer", optimizer.tensors)
        before = live.peak
        optimizer.step(1e-2)
    assert live.peak == before


def test_what_is_kept_of_8_bits_is_an_eighth_and_a_little():
    sides = make_leaves()
    exact, small, none = (
        SlotOptimizer(TrainingSettings(optim=optim), *sides) for optim in ("adamw_torch", "adamw_8bit", "sgd")
    )
    for optimizer in (exact, small, none):
        go(optimizer, sides, range(1))
    large, rest = SIZES[0][0] + SIZES[1][0], SIZES[0][1] + SIZES[1][1]
    assert exact.state_bytes == 8 * (large + rest)
    blocks = -(-SIZES[0][0] // BLOCK) + -(-SIZES[1][0] // BLOCK)
    assert small.state_bytes == 2 * large + 8 * blocks + 8 * rest
    assert none.state_bytes == 0


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_changed_as_by_peft(kind):
    """The same gradients through `create_loraplus_optimizer` (or `Trainer`'s class): the same adapter after 6 steps."""
    settings = KINDS[kind]
    base = make_base(llama_config(), torch.float32)
    slot = make_slot(base, lora={"r": 80}, learning_rate=3e-3, max_grad_norm=0.0, **settings)
    config = LoraConfig(r=80, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_config(base.model.config), config)
    pairs = {
        name.removeprefix("base_model.model."): (module.lora_A["default"].weight, module.lora_B["default"].weight)
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }
    assert pairs.keys() == slot.adapters.keys()
    with torch.no_grad():
        for name, weights in slot.weights().items():
            for parameter, value in zip(pairs[name], weights, strict=True):
                parameter.copy_(value)
    training = slot.config.training
    optimizer = create_loraplus_optimizer(
        model,
        {"adamw_torch": torch.optim.AdamW, "adamw_8bit": AdamW8bit, "sgd": torch.optim.SGD}[training.optim],
        lr=3e-3,
        loraplus_lr_ratio=training.loraplus_lr_ratio or 1.0,
        loraplus_weight_decay=training.weight_decay,
        **({} if training.optim == "sgd" else {"betas": (training.adam_beta1, 0.999), "eps": training.adam_epsilon}),
    )
    numbers = torch.Generator().manual_seed(0)
    for _ in range(6):
        for name, view in slot.adapters.items():
            for gradient, parameter in zip((view.grad_a, view.grad_bt.t()), pairs[name], strict=True):
                parameter.grad = torch.randn(parameter.shape, generator=numbers)
                gradient.copy_(parameter.grad)
        optimizer.step()
        slot.step_optimizer()
    for name, weights in slot.weights().items():
        for parameter, value in zip(pairs[name], weights, strict=True):
            assert (parameter - value).abs().max() < 1e-6
    assert not slot.parameters.grad.any()


WHOLE = 2 * SMALLEST_8BIT
JOINS = {
    (WHOLE, SMALLEST_8BIT, WHOLE + BLOCK): (2 * WHOLE + SMALLEST_8BIT + BLOCK,),
    (WHOLE, WHOLE + 3, WHOLE, WHOLE): (2 * WHOLE + 3, 2 * WHOLE),  # the block at the end of the second is not whole
    (WHOLE, 1024, 512, WHOLE, WHOLE): (WHOLE, 1024, 512, 2 * WHOLE),  # in 32 bits, as each is small
    (100, 7): (100, 7),
}


@pytest.mark.parametrize("sizes", JOINS, ids=str)
def test_8_bit_steps_of_joined_tensors_are_those_of_each(sizes):
    training = TrainingSettings(**KINDS["8 bit, loraplus"], weight_decay=0.1)
    joined = sizes_to_step("adamw_8bit", sizes, torch.device("cuda"))
    assert tuple(joined) == JOINS[sizes]
    results = []
    for cut in (sizes_to_step("adamw_8bit", sizes, torch.device("cpu")), joined):
        numbers = torch.Generator().manual_seed(0)
        values, gradient = torch.randn(2, sum(sizes), generator=numbers), torch.zeros(2, sum(sizes))
        sides = []
        for side, own in zip(values, gradient, strict=True):
            sides.append([part.detach().requires_grad_() for part in side.split(cut)])
            for leaf, grad in zip(sides[-1], own.split(cut), strict=True):
                leaf.grad = grad
        optimizer = SlotOptimizer(training, *sides)
        for step in range(4):
            gradient.copy_(torch.randn(gradient.shape, generator=numbers))
            optimizer.step(1e-2 / (step + 1))
        results.append((values, optimizer.state()))
    (values, state), (joined_values, joined_state) = results
    assert torch.equal(values, joined_values)
    assert state.keys() == joined_state.keys()
    assert all(torch.equal(tensor, joined_state[name]) for name, tensor in state.items())


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_other_optimizers_step_a_whole_side(optim):
    assert sizes_to_step(optim, (5, 6, 7), torch.device("cuda")) == [18]


def test_no_step_waits_for_the_device(monkeypatch):
    """bitsandbytes does, after every tensor: 448 times per step and trial of an 8B base."""

    def waits(_):
        raise AssertionError("a synchronization")

    monkeypatch.setattr("bitsandbytes.optim.optimizer.sync_gpu", waits)
    sides = make_leaves()
    go(SlotOptimizer(TrainingSettings(optim="adamw_8bit"), *sides), sides, range(2))


def test_8_bits_of_float64_are_refused(bench):
    with pytest.raises(InputError, match=r"training.optim: .* adamw_8bit in float32, .* use adamw_torch") as raised:
        bench.engine().admit(0, bench.trial(optim="adamw_8bit"))
    assert "\n" not in str(raised.value)
