"""A step is compiled where a trial says that the rest of the training gains by it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from vitlab import machine
from vitlab.config import RunConfig
from vitlab.data.splits import Data, Source, split
from vitlab.models.registry import build_model
from vitlab.training import compiling
from vitlab.training.losses import Objective

Make = Callable[..., tuple[Objective, Data, RunConfig]]


@pytest.fixture
def made(tiny: RunConfig, few: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """An objective and what it is trained with, on a machine of which nothing is kept yet."""
    monkeypatch.setenv("VITLAB_CACHE", str(tmp_path))
    monkeypatch.setattr(machine, "finds_compiler", lambda: True)
    monkeypatch.setattr(compiling, "LEAST_SECONDS", 0)
    monkeypatch.setattr(compiling, "LEAST_STEPS", 0)
    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: compile_module(self, backend="eager"))

    def make(**changes) -> tuple[Objective, Data, RunConfig]:
        config = tiny.replace(**changes)
        data = split(few, config)
        model = build_model(config, len(data.classes), data.channels)
        return Objective(model.train(), config, data.class_counts), data, config

    return make


def trial(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> list[int]:
    made: list[int] = []
    monkeypatch.setattr(compiling, "_trial", lambda *_: (made.append(1), seconds)[1])
    return made


@pytest.mark.parametrize(("left", "expected"), [(100, False), (390, False), (410, True), (10_000, True)])
def test_pays_from_twice_what_compiling_takes(
    left: int, expected: bool, made: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial(monkeypatch, plain=0.4, compiled=0.3, compiling=20.0)
    assert compiling.pays(*made(), lambda seconds: left) is expected


def test_growing_images_are_compiled_for_each_size(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trial(monkeypatch, plain=0.4, compiled=0.3, compiling=20.0)
    for patch, sizes in ((4, 2), (2, 3)):  # 4 and 8 pixels, or 4, 6 and 8
        growing = {"start_size": 4, "patch_size": patch}
        assert not compiling.pays(*made(**growing), lambda seconds, sizes=sizes: 400 * sizes - 50)
        assert compiling.pays(*made(**growing), lambda seconds, sizes=sizes: 400 * sizes + 50)


def test_pieces_of_a_batch_are_counted_as_pieces(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trial(monkeypatch, plain=0.4, compiled=0.3, compiling=20.0)
    assert not compiling.pays(*made(accumulate=2), lambda seconds: 190)
    assert compiling.pays(*made(accumulate=2), lambda seconds: 210)


def test_trial_of_one_size_decides_for_no_other(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = trial(monkeypatch, plain=0.4, compiled=0.3, compiling=20.0)
    objective, data, config = made(positions="sincos")  # none of its weights knows how large an image is
    pool = data.train.pool.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    for images in (data.train.pool, pool):
        larger = replace(data, train=replace(data.train, pool=images))
        compiling.pays(objective, larger, config, lambda seconds: 1000)
    assert len(tried) == 2


def test_slower_code_never_pays(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trial(monkeypatch, plain=0.3, compiled=0.31, compiling=0.0)
    assert not compiling.pays(*made(), lambda seconds: 10**9)


def test_trial_is_made_once_for_each_model_and_batch(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = trial(monkeypatch, plain=0.4, compiled=0.3, compiling=20.0)
    for changes in ({}, {"epochs": 9}, {"lr": 0.1}):
        compiling.pays(*made(**changes), lambda seconds: 1000)
    assert len(tried) == 1
    for count, changes in enumerate(
        ({"batch_size": 16}, {"dim": 32}, {"model": "linear_vit"}, {"precision": "bf16"}), 2
    ):
        compiling.pays(*made(**changes), lambda seconds: 1000)
        assert len(tried) == count


def test_short_training_and_absent_compiler_make_no_trial(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = trial(monkeypatch, plain=0.4, compiled=0.1, compiling=0.0)
    monkeypatch.setattr(compiling, "LEAST_SECONDS", 1200)
    assert not compiling.pays(*made(), lambda seconds: 1100 / seconds)
    monkeypatch.setattr(machine, "finds_compiler", lambda: False)
    assert not compiling.pays(*made(), lambda seconds: 10**9)
    assert not tried


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"tokenizer": "conv"}, {"dropout": 0.1}, {"accumulate": 2}])
def test_trial_leaves_no_trace(changes: dict, made: Make) -> None:
    objective, data, config = made(**changes)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    torch.manual_seed(3)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    found = compiling._trial(objective, data, config)
    assert torch.equal(torch.rand(3), drawn)
    assert min(found.values()) > 0
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    assert all(parameter.grad is None for parameter in objective.parameters())
    assert objective._compiled_call_impl is None
