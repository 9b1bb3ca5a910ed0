"""One step: what it draws, how far it goes, in pieces as in one, and not at all where fp16 has overflowed."""

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vitlab import machine
from vitlab.config import RunConfig
from vitlab.models.registry import build_model
from vitlab.runs import Run
from vitlab.training.losses import Objective
from vitlab.training.optim import build_optimizers
from vitlab.training.step import seed_step, step

Train = Callable[..., Run]
CPU = torch.device("cpu")


def prepared(config: RunConfig, class_counts: Tensor | None = None) -> tuple[Objective, list, Tensor, Tensor]:
    """An objective, its optimisers, images and targets: on the device that trains."""
    device = machine.device()
    counts = torch.full((10,), 20) if class_counts is None else class_counts
    objective = Objective(build_model(config, 10, 1).train(), config, counts).to(device)
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(30, 1, 8, 8, generator=generator), torch.arange(30) % 10
    return objective, build_optimizers(objective.model, config), images.to(device), torch.eye(10)[labels].to(device)


def weights(objective: Objective) -> dict[str, Tensor]:
    return copy.deepcopy(objective.model.state_dict())


# ---------------------------------------------------------------- what it draws


def test_what_a_step_draws_depends_on_seed_and_step_and_process() -> None:
    def drawn(seed: int, step: int, process: int = 0) -> list[float]:
        seed_step(seed, step, CPU, process)
        return torch.rand(4).tolist()

    assert drawn(3, 5) == drawn(3, 5)
    different = [drawn(0, 5), drawn(1, 5), drawn(2, 5), drawn(0, 6), drawn(1, 6), drawn(5, 1), drawn(5, 0)]
    different += [drawn(0, 5, 1), drawn(0, 5, 2)]  # shares of a batch do not repeat one another's dropout
    assert all(a != b for i, a in enumerate(different) for b in different[:i])


# ---------------------------------------------------------------- how far it goes


def test_step_moves_the_weights_downhill_and_leaves_no_gradient(tiny: RunConfig) -> None:
    objective, optimizers, images, targets = prepared(tiny)
    first = step(objective, optimizers, images, targets, tiny)
    assert {"loss", "cls", "accuracy"} == first.keys()
    assert not any(value.requires_grad for value in first.values())
    assert all(p.grad is None for p in objective.parameters())
    for _ in range(5):
        last = step(objective, optimizers, images, targets, tiny)
    assert last["loss"] < first["loss"]


def test_gradient_is_clipped(tiny: RunConfig) -> None:
    config = tiny.replace(optimizer="sgd", lr=1.0, clip=1e-3, weight_decay=0)
    objective, optimizers, images, targets = prepared(config)
    before = weights(objective)
    step(objective, optimizers, images, targets, config)
    moved = math.sqrt(sum(float((value - before[name]).square().sum()) for name, value in weights(objective).items()))
    assert moved == pytest.approx(1.9e-3, rel=0.01)  # Nesterov's first step is 1 + momentum times the gradient


@pytest.mark.parametrize("remedy", ["none", "class_weights"])
def test_step_in_pieces_is_the_step_of_the_whole(remedy: str, tiny: RunConfig) -> None:
    config = tiny.replace(remedy=remedy, optimizer="sgd", lr=0.1, batch_size=30)
    ends = []
    for pieces in (1, 4):  # of 30 images; of 8, 8, 8 and 6
        objective, optimizers, images, targets = prepared(config, torch.arange(1, 11))
        means = step(objective, optimizers, images, targets, config.replace(accumulate=pieces))
        ends.append((means, weights(objective)))
    torch.testing.assert_close(ends[1], ends[0])


@pytest.mark.slow
@pytest.mark.parametrize("remedy", ["none", "class_weights"])
def test_training_in_pieces_gives_the_same_losses(remedy: str, tiny: RunConfig, train: Train) -> None:
    config = tiny.replace(remedy=remedy, imbalance="linear", imbalance_ratio=3, mixup=0.5, batch_size=30)
    whole, pieces = train(config), train(config.replace(accumulate=4))
    assert whole.path != pieces.path
    for name in ("loss", "cls", "accuracy", "val_loss"):
        np.testing.assert_allclose(whole.history[name], pieces.history[name], rtol=1e-4)
    for name, weight in whole.weights().items():
        torch.testing.assert_close(pieces.weights()[name], weight, rtol=1e-2, atol=1e-4)


# ---------------------------------------------------------------- precision


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_trains_float32_weights_to_nearly_the_same_answers(
    precision: str, tiny: RunConfig, train: Train
) -> None:
    exact, rounded = train(tiny), train(tiny.replace(precision=precision))
    assert all(weight.dtype == torch.float32 for weight in rounded.weights().values())
    difference = np.abs(exact.predictions[0] - rounded.predictions[0]).max()
    assert 0 < difference < 0.2


def test_overflow_that_one_optimiser_meets_stops_all_of_them(tiny: RunConfig) -> None:
    """fp16's scale is meant to overflow now and then; the step is left out, and no weight is touched."""
    config = tiny.replace(precision="fp16", optimizer="muon")
    objective, optimizers, images, targets = prepared(config)
    scaler = torch.amp.GradScaler(images.device.type)
    start, scale = weights(objective), scaler.get_scale()
    # the bias of the head is AdamW's; Muon's gradients are sound
    overflow = objective.model.head.bias.register_hook(lambda gradient: gradient * math.nan)
    step(objective, optimizers, images, targets, config, scaler)
    assert all(torch.equal(value, start[name]) for name, value in weights(objective).items())
    assert all(not optimizer.state for optimizer in optimizers)  # nor has one counted it for its averages
    assert scaler.get_scale() < scale
    overflow.remove()
    step(objective, optimizers, images, targets, config, scaler)  # the next one counts again
    assert not torch.equal(objective.model.head.bias, start["head.bias"])
    assert not torch.equal(objective.model.blocks[-1].mlp.fc2.weight, start["blocks.3.mlp.fc2.weight"])  # one of Muon's


def test_gradient_that_is_no_number_without_fp16_is_not_hidden(tiny: RunConfig) -> None:
    objective, optimizers, images, targets = prepared(tiny)
    assert step(objective, optimizers, images * math.nan, targets, tiny)["loss"].isnan()  # `fit` stops at it


def test_module_of_ones_own_takes_a_step_as_well(tiny: RunConfig) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    objective = Objective(model, tiny, torch.full((10,), 5))
    before = model[1].weight.clone()
    means = step(objective, build_optimizers(model, tiny), torch.randn(10, 1, 8, 8), torch.eye(10), tiny)
    assert means.keys() == {"loss", "cls", "accuracy"}
    assert not torch.equal(model[1].weight, before)
