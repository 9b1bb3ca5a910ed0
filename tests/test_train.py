"""One loop trains every model: it learns, repeats itself, survives being killed, reads the test set once."""

import json
import math
from collections.abc import Callable
from functools import partial
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import filelock
import numpy as np
import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from vitlab import models, optim, runs
from vitlab import train as loop
from vitlab.config import LabError, Remedy, RunConfig
from vitlab.data import Source, Split, split, to_float
from vitlab.losses import Objective
from vitlab.models import build_model
from vitlab.optim import Muon, autocast, build_optimizers, lr_factor, orthogonal, precision_of
from vitlab.runs import Run
from vitlab.train import _follow as follow
from vitlab.train import fit, predict, seed_step

Train = Callable[..., Run]
CPU = torch.device("cpu")
CLOCK = ["seconds", "images_per_second"]  # the only columns that may differ between equal runs


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that are trained from here on."""
    done: list[int] = []
    monkeypatch.setattr(
        loop, "seed_step", lambda seed, step, device: done.append(step) or seed_step(seed, step, device)
    )
    return done


def same_weights(a: Run, b: Run) -> bool:
    first, second = a.weights(), b.weights()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def assert_same_run(a: Run, b: Run) -> None:
    assert same_weights(a, b)
    pd.testing.assert_frame_equal(a.history.drop(columns=CLOCK), b.history.drop(columns=CLOCK), check_exact=True)
    np.testing.assert_array_equal(a.predictions[0], b.predictions[0])
    for name in CLOCK:
        assert a.summary.pop(name) > 0
        assert b.summary.pop(name) > 0
    assert a.summary == b.summary


# ---------------------------------------------------------------- it learns


@pytest.fixture
def images_32(few: Source) -> Source:
    return Source(few.train.take(torch.arange(0, 192, 6)), few.test, few.classes, "32", ())


@pytest.fixture
def by_heart(tiny: RunConfig) -> RunConfig:
    """Nothing that keeps a model from learning its images by heart."""
    return tiny.but(dim=32, val_fraction=0, crop=0, label_smoothing=0, batch_size=8, lr=5e-3)


@pytest.mark.parametrize("model", ["vit", "dynamic_vit", "linear_vit", "linformer_vit"])
def test_learns_32_images_by_heart(model: str, by_heart: RunConfig, images_32: Source, train: Train) -> None:
    config = by_heart.but(model=model, epochs=40, keep_ratio=0.9)
    run = train(config, images_32)
    assert run.history["cls"].iloc[-5:].mean() < (0.5 if model == "dynamic_vit" else 0.05)
    correct = predict(run.model(), images_32.train, config).argmax(1) == images_32.train.labels
    assert correct.double().mean() >= (0.9 if model == "dynamic_vit" else 1.0)  # its training draws what to drop


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_each_optimiser_lowers_the_loss(optimizer: str, by_heart: RunConfig, images_32: Source, train: Train) -> None:
    lr = 0.1 if optimizer == "sgd" else by_heart.lr
    history = train(by_heart.but(optimizer=optimizer, lr=lr, epochs=40), images_32).history
    assert history["loss"].iloc[-1] < 0.8 * history["loss"].iloc[0]


def test_gradient_is_clipped(tiny: RunConfig, train: Train) -> None:
    config = tiny.but(optimizer="sgd", lr=1.0, clip=1e-3, steps=1, weight_decay=0, warmup=0)
    before, after = build_model(config, 10, 1).state_dict(), train(config).weights()
    moved = math.sqrt(sum(float((after[name] - before[name]).square().sum()) for name in before))
    assert moved == pytest.approx(1.9e-3, rel=0.01)  # Nesterov's first step is 1 + momentum times the gradient


def test_no_two_remedies_learn_the_same(tiny: RunConfig, train: Train) -> None:
    config = tiny.but(imbalance="exponential", imbalance_ratio=10, epochs=1)
    runs = [train(config.but(remedy=remedy)) for remedy in get_args(Remedy)]
    assert len(runs) == 6
    assert not any(same_weights(a, b) for a, b in combinations(runs, 2))


@pytest.mark.parametrize("option", [{"mixup": 0.5}, {"cutmix": 0.5}, {"cutout": 0.5}, {"flip": True}, {"crop": 0}])
def test_augmentation_changes_what_is_learnt(option: dict, tiny: RunConfig, train: Train) -> None:
    assert not same_weights(train(tiny.but(epochs=1)), train(tiny.but(epochs=1, **option)))


# ---------------------------------------------------------------- seeds


def test_same_seed_same_run_another_seed_another(tiny: RunConfig, train: Train, tmp_path: Path) -> None:
    config = tiny.but(mixup=0.5, dropout=0.1)
    first, again = train(config, runs_dir=tmp_path / "a"), train(config, runs_dir=tmp_path / "b")
    assert_same_run(first, again)
    other = train(config.but(seed=1)).history
    assert not np.allclose(other["loss"], first.history["loss"])


def test_what_a_step_draws_depends_on_seed_and_step() -> None:
    def drawn(seed: int, step: int) -> list[float]:
        seed_step(seed, step, CPU)
        return torch.rand(4).tolist()

    assert drawn(3, 5) == drawn(3, 5)
    different = [drawn(0, 5), drawn(1, 5), drawn(2, 5), drawn(0, 6), drawn(1, 6), drawn(5, 1), drawn(5, 0)]
    assert all(a != b for i, a in enumerate(different) for b in different[:i])


# ---------------------------------------------------------------- killed and continued


class KilledError(Exception):
    pass


def kill(monkeypatch: pytest.MonkeyPatch, at: int, checkpoint_seconds: float = 0) -> None:
    """Stop the next training when it wants to begin step `at`; a checkpoint after every step before."""

    def strike(seed: int, step: int, device: torch.device) -> None:
        if step == at:
            raise KilledError
        seed_step(seed, step, device)

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", checkpoint_seconds)
    monkeypatch.setattr(loop, "seed_step", strike)


EVERYTHING = {
    "mixup": 0.8, "cutmix": 1.0, "cutout": 0.3, "flip": True, "dropout": 0.1, "drop_path": 0.2, "ema": 0.9,
    "remedy": "sampler", "imbalance": "linear", "imbalance_ratio": 2.0, "epochs": 3, "batch_size": 24,
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "at"),
    [
        (EVERYTHING, 1),
        (EVERYTHING, 5),  # in the middle of an epoch: an epoch has 5 steps
        (EVERYTHING, 7),
        (EVERYTHING, 10),  # between two epochs
        ({"optimizer": "muon", "ema": 0.9}, 7),
        ({"optimizer": "sgd", "model": "dynamic_vit"}, 7),
        ({"precision": "fp16"}, 7),
        ({"channels_last": True, "tokenizer": "conv", "optimizer": "muon"}, 7),
    ],
)
def test_killed_run_continues_bit_for_bit(
    options: dict,
    at: int,
    tiny: RunConfig,
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: list[int],
) -> None:
    # the scale of fp16's loss is a part of the state: let it change within these few steps
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**22, growth_interval=1))
    config = tiny.but(**options)
    whole = train(config, runs_dir=tmp_path / "whole")
    total = len(steps)
    with monkeypatch.context() as killed:
        kill(killed, at)
        with pytest.raises(KilledError):
            train(config)
    steps.clear()
    run = train(config)
    assert steps == list(range(at, total))
    assert_same_run(run, whole)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_recorded_passes_train_as_launched_ones_do(
    tiny: RunConfig, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.but(tokenizer="conv", start_size=4, patch_size=2)  # recorded anew as the images grow
    recorded = train(config, runs_dir=tmp_path / "recorded")
    monkeypatch.setattr(loop, "_recorded", lambda objective, *_: objective)
    launched = train(config, runs_dir=tmp_path / "launched")
    np.testing.assert_allclose(recorded.history["loss"], launched.history["loss"], rtol=1e-4)
    ours, theirs = recorded.weights(), launched.weights()
    for name in theirs:  # statistics of BatchNorm are among them
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("damage", ["cut short", "empty", "zeros", "absent"])
def test_damaged_checkpoint_is_replaced_by_the_one_before(
    damage: str, tiny: RunConfig, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int]
) -> None:
    whole = train(tiny, runs_dir=tmp_path / "whole")
    with monkeypatch.context() as killed:
        kill(killed, at=8)
        with pytest.raises(KilledError):
            train(tiny)
    [path] = tmp_path.glob("*/checkpoint.pt")
    content = path.read_bytes()
    path.write_bytes({"cut short": content[: len(content) // 2], "zeros": bytes(len(content))}.get(damage, b""))
    if damage == "absent":
        path.unlink()
    steps.clear()
    run = train(tiny)
    assert steps[0] == 7  # one step again, not all of them
    assert_same_run(run, whole)


def test_without_a_timed_checkpoint_it_continues_from_the_end_of_the_epoch(
    tiny: RunConfig, train: Train, monkeypatch: pytest.MonkeyPatch, steps: list[int]
) -> None:
    with monkeypatch.context() as killed:
        kill(killed, at=8, checkpoint_seconds=3600)
        with pytest.raises(KilledError):
            train(tiny)
    train(tiny)
    assert steps[0] == 5


def test_run_killed_while_it_is_evaluated_trains_no_step_again(
    tiny: RunConfig, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int]
) -> None:
    def strike(*_: object) -> None:
        raise KilledError

    whole = train(tiny, runs_dir=tmp_path / "whole")
    with monkeypatch.context() as killed:
        killed.setattr(loop, "evaluate", strike)
        with pytest.raises(KilledError):
            train(tiny)
    steps.clear()
    assert_same_run(train(tiny), whole)
    assert steps == []


def test_complete_run_is_not_trained_again(tiny: RunConfig, train: Train, steps: list[int]) -> None:
    before = {path: path.stat().st_mtime_ns for path in train(tiny).path.iterdir()}
    steps.clear()
    run = train(tiny)
    assert steps == []
    assert {path: path.stat().st_mtime_ns for path in run.path.iterdir()} == before


def test_complete_run_keeps_no_checkpoint(tiny: RunConfig, train: Train) -> None:
    assert list(train(tiny).path.glob("checkpoint*")) == []


def test_run_that_another_process_trains_is_refused(
    tiny: RunConfig, few: Source, tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "LOCK_SECONDS", 0.1)
    where = Run.of(tmp_path, tiny, few.digest)
    where.path.mkdir()
    with filelock.FileLock(where.path / ".lock"), pytest.raises(LabError, match="another process"):
        train(tiny)
    assert train(tiny).complete  # once it is free


def test_place_that_cannot_be_written_is_refused_before_training(
    tiny: RunConfig, train: Train, tmp_path: Path, steps: list[int]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LabError, match="cannot write"):
        train(tiny, runs_dir=tmp_path / "file" / "runs")
    assert steps == []


def test_loss_that_is_no_number_stops_the_run_and_says_what_to_do(
    tiny: RunConfig, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    augment = loop.augment

    calls = iter(range(100))

    def poison(*arguments: object) -> tuple[Tensor, Tensor]:
        inputs, targets = augment(*arguments)
        return inputs * (math.nan if next(calls) == 7 else 1), targets

    monkeypatch.setattr(loop, "augment", poison)
    with pytest.raises(LabError, match=r"became nan in step 7, with lr .*: lower lr"):
        train(tiny)
    assert list(tmp_path.glob("*/summary.json")) == []
    [run] = tmp_path.glob("*")
    assert Run(run).load_checkpoint()["progress"]["step"] == 5  # of the epoch before


def test_batch_that_does_not_fit_names_one_that_does(
    tiny: RunConfig, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Objective.forward

    def full(self: Objective, images: Tensor, targets: Tensor):
        if len(images) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, images, targets)

    monkeypatch.setattr(Objective, "forward", full)
    with pytest.raises(LabError, match=r"out of memory.*accumulate 4 .* or batch_size 8 would fit"):
        train(tiny)
    assert train(tiny.but(accumulate=4)).complete  # the advice holds


def test_fault_that_is_not_about_memory_is_passed_on(tiny: RunConfig, train: Train, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Objective, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(tiny)


# ---------------------------------------------------------------- budgets and pieces


def test_minutes_are_a_budget_that_the_learning_rate_follows(tiny: RunConfig, train: Train) -> None:
    config = tiny.but(minutes=0.03, warmup=0, hold=0.5, schedule="linear", epochs=1)
    run = train(config)
    assert run.summary["epochs"] > 1
    assert 1.8 <= run.summary["seconds"] < 4
    lr, seconds = run.history["lr"].to_numpy(), run.history["seconds"].to_numpy()
    assert lr[0] == config.lr
    assert 0 < lr[-1] < 0.2 * config.lr
    assert (lr[seconds < 0.8] == config.lr).all()


def test_minutes_that_are_used_up_end_an_interrupted_training_too(
    tiny: RunConfig, train: Train, monkeypatch: pytest.MonkeyPatch, steps: list[int]
) -> None:
    config = tiny.but(minutes=0.03)
    with monkeypatch.context() as killed:
        kill(killed, at=7)
        with pytest.raises(KilledError):
            train(config)
    run = train(config)
    assert steps[0] == 7
    assert run.summary["seconds"] < 4


def test_training_ends_when_validation_has_not_improved_for_a_while(
    tiny: RunConfig, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = iter([0.3, 0.9, 0.8, 0.7, 0.95])
    monkeypatch.setattr(loop, "_accuracy", lambda *_: next(accuracies))
    run = train(tiny.but(epochs=9, patience=2))
    assert (run.summary["epoch"], run.summary["epochs"]) == (2, 4)


@pytest.mark.parametrize("model", ["vit", "dynamic_vit", "linear_vit", "linformer_vit"])
def test_images_grow_to_their_full_size(
    model: str, tiny: RunConfig, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    augment = loop.augment

    def watch(*arguments: object) -> tuple[Tensor, Tensor]:
        inputs, targets = augment(*arguments)
        sizes.append(inputs.shape[-1])
        return inputs, targets

    monkeypatch.setattr(loop, "augment", watch)
    run = train(tiny.but(model=model, patch_size=2, start_size=4, grow=0.8, linformer_k=4, cutmix=1.0))  # 10 steps
    assert sizes == [4] * 4 + [6] * 4 + [8] * 2
    assert run.history["loss"].notna().all()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_images_that_do_not_fit_are_read_by_a_loader_with_the_same_result(
    num_workers: int, tiny: RunConfig, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int]
) -> None:
    config = tiny.but(mixup=0.5, remedy="sampler", imbalance="linear", imbalance_ratio=2, num_workers=num_workers)
    inside = train(config, runs_dir=tmp_path / "inside")
    monkeypatch.setattr(Split, "fits", lambda *_: False)
    monkeypatch.setattr(Split, "images", property(lambda _: pytest.fail("all images at once")))
    with monkeypatch.context() as killed:
        kill(killed, at=2)
        with pytest.raises(KilledError):
            train(config)
    assert_same_run(train(config), inside)


@pytest.mark.parametrize("remedy", ["none", "class_weights"])
def test_batch_in_pieces_gives_the_gradient_of_the_whole(remedy: str, tiny: RunConfig, train: Train) -> None:
    config = tiny.but(remedy=remedy, imbalance="linear", imbalance_ratio=3, mixup=0.5, optimizer="adamw", batch_size=30)
    whole, pieces = train(config), train(config.but(accumulate=4))  # pieces of 8, 8, 8 and 6
    assert whole.path != pieces.path
    for name in ("loss", "cls", "accuracy", "val_loss"):
        np.testing.assert_allclose(whole.history[name], pieces.history[name], rtol=1e-4)
    for name, weight in whole.weights().items():
        torch.testing.assert_close(pieces.weights()[name], weight, rtol=1e-2, atol=1e-4)


# ---------------------------------------------------------------- schedule and optimisers


def test_learning_rate_rises_then_falls_as_half_a_cosine(tiny: RunConfig) -> None:
    config = tiny.but(warmup=0.2)
    assert [lr_factor(done, config) for done in (0.0, 0.1, 0.2)] == pytest.approx([0.01, 0.5, 1])
    assert [lr_factor(done, config) for done in (0.6, 0.9)] == pytest.approx(
        [0.5, 0.5 * (1 + math.cos(7 / 8 * math.pi))]
    )
    assert lr_factor(0, tiny.but(warmup=0)) == 1


def test_learning_rate_holds_its_peak_then_falls_along_a_line(tiny: RunConfig) -> None:
    config = tiny.but(warmup=0.1, hold=0.5, schedule="linear")
    assert [lr_factor(done, config) for done in (0.1, 0.3, 0.5, 0.75, 0.99)] == pytest.approx([1, 1, 1, 0.5, 0.02])


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 0.99])
def test_learning_rate_never_leaves_its_range(schedule: str, warmup: float, tiny: RunConfig) -> None:
    config = tiny.but(warmup=warmup, schedule=schedule, hold=0.3)
    assert all(0 < lr_factor(done / 100, config) <= 1 for done in range(100))


def test_schedule_reaches_the_optimiser(tiny: RunConfig, train: Train) -> None:
    config = tiny.but(lr=0.01, warmup=0.2)  # 10 steps
    assert train(config).history["lr"].tolist() == pytest.approx([0.01 * lr_factor(i / 10, config) for i in (4, 9)])


def test_steps_are_a_budget_whatever_the_epochs(tiny: RunConfig, train: Train, steps: list[int]) -> None:
    summary = train(tiny.but(steps=7, epochs=100)).summary
    assert steps == list(range(7))
    assert (summary["steps"], summary["epochs"]) == (7, 2)


@pytest.mark.parametrize("model", ["vit", "dynamic_vit", "linformer_vit"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_weight_decay_shrinks_matrices_alone(optimizer: str, model: str, tiny: RunConfig) -> None:
    config = tiny.but(optimizer=optimizer, model=model, tokenizer="conv", weight_decay=0.5, lr=0.1, muon_lr=0.1)
    net = build_model(config, 10, 1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)  # whatever moves now was moved by the decay
    for each in build_optimizers(net, config):
        each.step()
    shrunk = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    matrices = {name for name, p in before.items() if p.ndim > 1 and name not in ("cls_token", "pos_embed")}
    assert shrunk == matrices
    factor = 1 - 0.1 * 0.5 * (1.9 if optimizer == "sgd" else 1)  # SGD's decay passes through Nesterov's momentum
    for name in shrunk:
        torch.testing.assert_close(dict(net.named_parameters())[name], before[name] * factor)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_every_parameter_has_one_optimiser(optimizer: str, tiny: RunConfig) -> None:
    net = build_model(tiny.but(model="dynamic_vit"), 10, 1)
    optimizers = build_optimizers(net, tiny.but(optimizer=optimizer))
    owned = [id(p) for each in optimizers for group in each.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(map(id, net.parameters()))


def test_muon_takes_the_hidden_layers(tiny: RunConfig) -> None:
    net = build_model(tiny.but(tokenizer="conv"), 10, 1)
    muon, adamw = build_optimizers(net, tiny.but(optimizer="muon", lr=0.003, muon_lr=0.04))
    assert isinstance(muon, Muon)
    taken = {id(p) for p in muon.param_groups[0]["params"]}
    first, *deeper = [name for name, p in net.named_parameters() if name.startswith("embed.") and p.ndim == 4]
    assert first == "embed.layers.0.weight"
    assert len(deeper) == 4
    blocks = {name for name, p in net.named_parameters() if name.startswith("blocks.") and p.ndim == 2}
    assert taken == {id(net.get_parameter(name)) for name in blocks | set(deeper)}
    assert (muon.param_groups[0]["lr"], adamw.param_groups[0]["lr"]) == (0.04, 0.003)


@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (32, 1, 3, 3)], ids=["wide", "tall"])
def test_muon_takes_a_kernel_for_the_matrix_of_its_rows(shape: tuple[int, ...]) -> None:
    kernel = torch.nn.Parameter(torch.randn(shape))
    matrix = torch.nn.Parameter(kernel.detach().flatten(1).clone())
    kernel.grad = torch.randn_like(kernel)
    matrix.grad = kernel.grad.flatten(1)
    for p in (kernel, matrix):
        Muon([p], lr=0.1, weight_decay=0.1).step()
    torch.testing.assert_close(kernel.flatten(1), matrix)


@pytest.mark.parametrize("shape", [(3, 24, 8), (2, 8, 24), (1, 16, 16)])
def test_orthogonal_keeps_the_singular_vectors_and_evens_out_the_values(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape)
    result = orthogonal(matrices)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    values = u.mT @ result @ vh.mT  # diagonal if the vectors are the same
    assert (values - torch.diag_embed(values.diagonal(dim1=1, dim2=2))).abs().max() < 1e-4
    large = torch.linalg.svdvals(matrices) > 0.05 * torch.linalg.svdvals(matrices)[:, :1]
    assert values.diagonal(dim1=1, dim2=2)[large].min() > 0.5
    assert values.diagonal(dim1=1, dim2=2).max() < 1.3


def test_muon_takes_the_steps_of_torchs_muon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "bfloat16", Tensor.clone)  # theirs in float32 as well
    starts = [torch.randn(shape) for shape in ((24, 8), (8, 24), (24, 8), (16, 16))]
    ours, theirs = ([nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    optimizers = Muon(ours, lr=0.1, weight_decay=0.2), torch.optim.Muon(theirs, lr=0.1, weight_decay=0.2)
    for _ in range(3):
        for mine, their in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            their.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, their, start in zip(ours, theirs, starts, strict=True):
        torch.testing.assert_close(mine, their, atol=1e-5, rtol=1e-4)
        assert (mine - start).norm() > 0.1


def test_convolutional_tokenizer_begins_whitened_by_the_training_images_and_a_student_by_its_teacher(
    tiny: RunConfig, few: Source, train: Train
) -> None:
    config = tiny.but(tokenizer="conv", steps=1, warmup=0.5, lr=1e-9, muon_lr=1e-9)
    data = split(few, config)
    expected = build_model(config, 10, 1).embed
    expected.whiten(to_float(data.train.images))
    teacher = train(config)
    kernels = teacher.weights()["embed.layers.0.weight"]
    torch.testing.assert_close(kernels, expected.layers[0].weight)
    student = train(config.but(model="dynamic_vit", init_from=teacher.path.name), teacher=teacher)
    torch.testing.assert_close(student.weights()["embed.layers.0.weight"], kernels)


# ---------------------------------------------------------------- average of weights


def test_averaged_weights_are_those_that_are_kept(tiny: RunConfig, train: Train) -> None:
    config = tiny.but(steps=1, warmup=0)
    start, plain, averaged = (build_model(config, 10, 1).state_dict(), train(config), train(config.but(ema=0.999)))
    for name, weight in averaged.weights().items():  # decay min(0.999, 1/10) in the first step
        torch.testing.assert_close(weight, 0.1 * start[name] + 0.9 * plain.weights()[name])


def test_statistics_of_batch_norm_are_those_of_the_model_not_averaged_again(
    tiny: RunConfig, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Tensor] = {}

    def watch(self: nn.Module, *_: object) -> None:
        seen.update({name: value.cpu().clone() for name, value in self.named_buffers() if "running" in name})

    config = tiny.but(ema=0.99, tokenizer="conv", epochs=1, val_fraction=0)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_follow", lambda average, model, decay: (watch(model), follow(average, model, decay)))
        kept = train(config).weights()
    assert seen
    assert all(torch.equal(kept[name], value) for name, value in seen.items())


def test_averaging_records_no_graph(tiny: RunConfig, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[nn.Module] = []
    monkeypatch.setattr(loop, "predict", lambda model, *rest: evaluated.append(model) or predict(model, *rest))
    train(tiny.but(ema=0.9))
    assert all(p.grad_fn is None for p in evaluated[0].parameters())  # one would grow with every step


# ---------------------------------------------------------------- validation and test


def test_test_set_is_read_once_after_the_last_step(
    tiny: RunConfig, few: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    data = split(few, tiny)

    def watch(model: nn.Module, part: Split, config: RunConfig) -> Tensor:
        events.append({id(data.test): "test", id(data.val): "validation"}[id(part)])
        return predict(model, part, config)

    monkeypatch.setattr(loop, "predict", watch)
    monkeypatch.setattr(loop, "seed_step", lambda *a: events.append("step") or seed_step(*a))
    run = Run.of(tmp_path, tiny, few.digest)
    fit(run, tiny, data, few.digest)
    fit(run, tiny, data, few.digest)
    epoch = ["step"] * 5 + ["validation"]
    assert events == [*epoch, *epoch, "test"]


def test_labels_of_the_test_set_have_no_say_in_training(tiny: RunConfig, few: Source, train: Train) -> None:
    shuffled = Split(few.test.pool, (few.test.labels + 1) % 10, few.test.index.flip(0))
    assert same_weights(train(tiny), train(tiny, Source(few.train, shuffled, few.classes, "other", ())))


def test_validation_chooses_the_epoch_whose_weights_are_kept(
    tiny: RunConfig, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Tensor]] = []
    accuracies = iter([0.3, 0.9, 0.9, 0.5])

    def watch(model: nn.Module, *rest: object) -> Tensor:
        seen.append({name: value.cpu().clone() for name, value in model.state_dict().items()})
        return predict(model, *rest)

    monkeypatch.setattr(loop, "predict", watch)
    monkeypatch.setattr(loop, "_accuracy", lambda *_: next(accuracies))
    run = train(tiny.but(epochs=4))
    assert (run.summary["epoch"], run.summary["epochs"], run.summary["val_accuracy"]) == (2, 4, 0.9)
    kept = run.weights()
    assert all(torch.equal(kept[name], seen[1][name]) for name in kept)
    assert all(torch.equal(seen[-1][name], kept[name]) for name in kept)  # and those meet the test set


def test_without_validation_the_last_epoch_counts(tiny: RunConfig, train: Train) -> None:
    run = train(tiny.but(val_fraction=0, epochs=3))
    assert run.summary["epoch"] == 3
    assert run.summary["val_accuracy"] is None
    assert "val_accuracy" not in run.history
    assert run.summary["train_images"] == 200


def test_validation_images_are_not_augmented_nor_trained_on(
    tiny: RunConfig, few: Source, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    augment = loop.augment
    monkeypatch.setattr(loop, "augment", lambda images, *rest: seen.append(images) or augment(images, *rest))
    train(tiny)
    data = split(few, tiny)
    trained = {image.numpy().tobytes() for batch in seen for image in batch.cpu()}
    assert len(trained) > 100
    assert trained <= {image.numpy().tobytes() for image in data.train.images}
    assert not trained & {image.numpy().tobytes() for image in data.val.images}


def test_scores_are_those_of_the_stored_predictions(tiny: RunConfig, few: Source, train: Train) -> None:
    run = train(tiny)
    logits, labels = run.predictions
    assert labels.tolist() == few.test.labels.tolist()
    assert run.summary["test"]["accuracy"] == pytest.approx((logits.argmax(1) == labels).mean())
    again = predict(run.model(), few.test, tiny)
    torch.testing.assert_close(torch.from_numpy(logits), again, atol=1e-3, rtol=1e-3)  # kept as float16


def test_predictions_do_not_depend_on_how_images_are_batched(
    tiny: RunConfig, few: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(tiny.but(dropout=0.5), 10, 1)
    whole = predict(model, few.test, tiny)
    monkeypatch.setattr(loop, "EVAL_BATCH", 7)
    torch.testing.assert_close(predict(model, few.test, tiny), whole, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- teacher


def test_student_starts_from_its_teacher_which_stays_as_it_is(
    tiny: RunConfig, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = train(tiny.but(dropout=0.1))
    modes: list[bool] = []
    first: dict[str, Tensor] = {}

    class Watched(Objective):
        def forward(self, images: Tensor, targets: Tensor):
            modes.append(self.teacher.training)
            if not first:
                first.update({name: value.clone().cpu() for name, value in self.model.state_dict().items()})
            answer = super().forward(images, targets)
            assert all(parameter.grad is None for parameter in self.teacher.parameters())
            return answer

    monkeypatch.setattr(loop, "Objective", Watched)
    student = train(tiny.but(dropout=0.1, model="dynamic_vit", init_from=teacher.path.name), teacher=teacher)
    assert modes == [False] * 10
    taught = teacher.weights()
    assert all(torch.equal(first[name], taught[name]) for name in taught)
    assert {name.split(".")[0] for name in first.keys() - taught.keys()} == {"predictors"}
    assert {"kl", "distill", "ratio"} <= set(student.history)
    assert not torch.equal(student.weights()["head.weight"], taught["head.weight"])


@pytest.mark.parametrize("other", [{"dim": 32}, {"tokenizer": "conv"}, {"depth": 5}])
def test_teacher_of_another_shape_is_refused(other: dict, tiny: RunConfig, train: Train) -> None:
    teacher = train(tiny.but(steps=1, **other))
    with pytest.raises(LabError, match="the run to start from"):
        train(tiny.but(init_from=teacher.path.name), teacher=teacher)


# ---------------------------------------------------------------- precision and records


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_trains_float32_weights_to_nearly_the_same_answers(
    precision: str, tiny: RunConfig, train: Train
) -> None:
    exact, rounded = train(tiny), train(tiny.but(precision=precision))
    assert all(weight.dtype == torch.float32 for weight in rounded.weights().values())
    difference = np.abs(exact.predictions[0] - rounded.predictions[0]).max()
    assert 0 < difference < 0.2


def test_overflow_that_one_optimizer_meets_stops_all_of_them(
    tiny: RunConfig, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp16's scale is meant to overflow now and then; the step is left out, and no weight is touched."""
    config = tiny.but(precision="fp16", optimizer="muon", steps=1, warmup=0)
    start = build_model(config, 10, 1)
    backward = loop._backward

    def overflow(*arguments: object) -> dict[str, Tensor]:
        result = backward(*arguments)
        arguments[1].model.head.bias.grad[0] = math.nan  # AdamW's; Muon's gradients are sound
        return result

    monkeypatch.setattr(loop, "_backward", overflow)
    after = train(config).weights()
    assert all(torch.equal(after[name], weight) for name, weight in start.state_dict().items())


def test_compiled_run_is_the_same_run(
    tiny: RunConfig, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int]
) -> None:
    """The compiler itself is torch's affair: its backend "eager" runs what it has traced."""
    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compile_module(self, backend="eager"))
    config = tiny.but(compile=True, ema=0.9, dropout=0.1)
    whole = train(config, runs_dir=tmp_path / "whole")
    plain = train(config.but(compile=False), runs_dir=tmp_path / "whole")
    torch.testing.assert_close(whole.weights(), plain.weights())
    with monkeypatch.context() as killed:
        kill(killed, at=3)
        with pytest.raises(KilledError):
            train(config)
    assert_same_run(train(config), whole)


def test_run_that_goes_on_elsewhere_says_so(
    tiny: RunConfig, train: Train, monkeypatch: pytest.MonkeyPatch, steps: list[int]
) -> None:
    with monkeypatch.context() as killed:
        kill(killed, at=3)
        with pytest.raises(KilledError):
            train(tiny)
    with monkeypatch.context() as killed:  # the same machine, once more
        kill(killed, at=5)
        with pytest.raises(KilledError):
            train(tiny)
    here = loop.environment()
    monkeypatch.setattr(loop, "environment", lambda: here | {"device": "another"})
    assert [machine["device"] for machine in train(tiny).environments] == [here["device"], "another"]


@pytest.mark.parametrize("pays", [True, False])
def test_precision_of_a_wide_model_follows_what_the_device_gains(
    pays: bool, tiny: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim, "bf16_pays", lambda: pays)
    assert precision_of(tiny.but(precision="auto"), CPU) is torch.float32
    wide = precision_of(tiny.but(precision="auto", dim=512, heads=8), CPU)
    assert wide is (torch.bfloat16 if pays else torch.float32)


@pytest.mark.parametrize(("slowdown", "pays"), [(0.5, True), (0.9, False), (2.0, False)])
def test_bf16_has_to_be_clearly_faster(slowdown: float, pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def product(a: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        nonlocal now
        now += slowdown if a.dtype is torch.bfloat16 else 1.0
        return a

    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    monkeypatch.setattr(optim.time, "perf_counter", lambda: now)
    assert optim.bf16_pays.__wrapped__() is pays


def test_precision_that_training_began_with_is_kept(
    tiny: RunConfig, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = tiny.but(precision="auto", dim=96, heads=2)
    monkeypatch.setattr(optim, "bf16_pays", lambda: True)
    with monkeypatch.context() as patch:
        kill(patch, at=4)
        with pytest.raises(KilledError):
            train(wide)
    monkeypatch.setattr(optim, "bf16_pays", lambda: False)
    seen = []
    monkeypatch.setattr(
        loop, "autocast", lambda config, device: seen.append(config.precision) or autocast(config, device)
    )
    run = train(wide)
    assert run.config.precision == "auto"
    assert {machine["precision"] for machine in run.environments} == set(seen) == {"bf16"}


def test_run_records_what_it_was(tiny: RunConfig, few: Source, train: Train) -> None:
    config = tiny.but(imbalance="linear", imbalance_ratio=2)
    run = train(config)
    record = json.loads((run.path / "config.json").read_text())
    data = split(few, config)
    assert RunConfig(**record["config"]) == config == run.config
    assert record["counts"] == data.counts.tolist()
    with np.load(run.path / "split.npz") as stored:
        assert stored["train"].tolist() == data.train.index.tolist()
    assert record["classes"] == list(few.classes)
    [machine] = run.environments
    assert machine["versions"]["torch"] in torch.__version__
    assert {"commit", "device", "python"} <= machine.keys()
    assert run.summary["parameters"] == sum(p.numel() for p in run.model().parameters())
    assert run.history["step"].tolist() == [len(data.train) // 32, 2 * (len(data.train) // 32)]


def test_tensorboard_shows_the_history(tiny: RunConfig, train: Train) -> None:
    run = train(tiny)
    events = EventAccumulator(str(run.path)).Reload()
    for name in ("loss", "val_accuracy", "lr", "images_per_second"):
        scalars = events.Scalars(name)
        assert [event.step for event in scalars] == run.history["step"].tolist()
        assert [event.value for event in scalars] == pytest.approx(run.history[name].tolist())


def test_tensorboard_shows_the_whole_history_of_a_continued_run(
    tiny: RunConfig, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as killed:
        kill(killed, at=8, checkpoint_seconds=3600)  # the last checkpoint is that of the first epoch's end
        with pytest.raises(KilledError):
            train(tiny)
    run = train(tiny)
    scalars = EventAccumulator(str(run.path)).Reload().Scalars("loss")
    assert [event.step for event in scalars] == run.history["step"].tolist()


def test_data_smaller_than_a_batch_is_one_batch(tiny: RunConfig, few: Source, train: Train, steps: list[int]) -> None:
    train(tiny.but(batch_size=4096))
    assert steps == [0, 1]


@pytest.mark.parametrize(("taken", "calls"), [(1, [(-3, 2**30), (-1, 2**31 - 1)]), (0, [(-3, 2**30)])])
def test_glibc_that_refuses_one_threshold_is_not_given_the_other(
    taken: int, calls: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    glibc = SimpleNamespace(mallopt=lambda *arguments: told.append(arguments) or taken)
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr("ctypes.CDLL", lambda name: glibc)
    models.keep_freed_memory.__wrapped__()  # past its cache
    assert told == calls
