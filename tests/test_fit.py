"""One loop trains every model, of the lab or of one's own: it learns, keeps to its budget, reads the test set once."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, get_args

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CLOCK, KilledError, assert_same_run, killed_before, same_weights
from sklearn.metrics import f1_score
from torch import Tensor, nn

from vitlab.config import LabConfig, Recipe, Remedy, RunConfig
from vitlab.data.batches import to_float
from vitlab.data.splits import Data, Source, Split, split
from vitlab.errors import LabError
from vitlab.models.registry import build_model
from vitlab.runs import Run
from vitlab.training import session
from vitlab.training.evaluate import predict, validate
from vitlab.training.fit import fit, fit_run
from vitlab.training.losses import Objective, class_weights
from vitlab.training.optim import lr_factor
from vitlab.training.progress import State
from vitlab.training.session import RunSession, Session
from vitlab.training.step import step

Train = Callable[..., Run]
RECIPE = Recipe(epochs=3, batch_size=32, precision="fp32", lr=0.01)


def dictated(*accuracies: float) -> type[RunSession]:
    """Sessions in which validation says these accuracies, epoch after epoch."""

    class Dictated(RunSession):
        said = iter(accuracies)

        def after_epoch(self, row: dict[str, float]) -> dict[str, float]:
            return super().after_epoch(row | {"val_accuracy": next(self.said)})

    return Dictated


def states(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.cpu().clone() for name, value in model.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name].cpu(), b[name].cpu()) for name in a)


# ---------------------------------------------------------------- it learns


@pytest.fixture
def images_32(few: Source) -> Source:
    return Source(few.train.take(torch.arange(0, 192, 6)), few.test, few.classes, "32", ())


@pytest.fixture
def by_heart(tiny: RunConfig) -> RunConfig:
    """Nothing that keeps a model from learning its images by heart."""
    return tiny.replace(dim=32, val_fraction=0, crop=0, label_smoothing=0, batch_size=8, lr=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vit", "dynamic_vit", "linear_vit", "linformer_vit"])
def test_learns_32_images_by_heart(model: str, by_heart: RunConfig, images_32: Source, train: Train) -> None:
    config = by_heart.replace(model=model, epochs=40, keep_ratio=0.9, backbone_rate=1.0, frozen=0.0)
    run = train(config, images_32)
    assert run.history["cls"].iloc[-5:].mean() < (0.5 if model == "dynamic_vit" else 0.05)
    correct = predict(run.model(), images_32.train, config).argmax(1) == images_32.train.labels
    assert correct.double().mean() >= (0.9 if model == "dynamic_vit" else 1.0)  # its training draws what to drop


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_each_optimiser_lowers_the_loss(optimizer: str, by_heart: RunConfig, images_32: Source, train: Train) -> None:
    lr = 0.1 if optimizer == "sgd" else by_heart.lr
    history = train(by_heart.replace(optimizer=optimizer, lr=lr, epochs=40), images_32).history
    assert history["loss"].iloc[-1] < 0.8 * history["loss"].iloc[0]


@pytest.mark.slow
def test_no_two_remedies_learn_the_same(tiny: RunConfig, train: Train) -> None:
    config = tiny.replace(imbalance="exponential", imbalance_ratio=10, steps=6, keep_epoch="last")  # drw acts late
    runs = [train(config.replace(remedy=remedy)) for remedy in get_args(Remedy)]
    assert len(runs) == 8
    assert not any(same_weights(a, b) for a, b in itertools.combinations(runs, 2))


@pytest.mark.slow
@pytest.mark.parametrize("remedy", ["drw", "ldam_drw"])
def test_deferred_weights_count_from_four_fifths_of_the_steps_on(
    remedy: str, tiny: RunConfig, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look(objective: Objective, *rest: Any) -> dict:
        seen.append(objective.weights.tolist())
        return step(objective, *rest)

    monkeypatch.setattr("vitlab.training.fit.step", look)
    config = tiny.replace(remedy=remedy, imbalance="linear", imbalance_ratio=4, steps=10)
    run = train(config)
    final = class_weights(remedy, torch.tensor(run.record["counts"])).tolist()
    assert seen == [[1.0] * 10] * 8 + [final] * 2


@pytest.mark.slow
@pytest.mark.parametrize("keep_epoch", ["best", "last"])
def test_run_ends_with_the_epoch_it_was_asked_for(keep_epoch: str, tiny: RunConfig, train: Train) -> None:
    run = train(tiny.replace(keep_epoch=keep_epoch, epochs=3), session=dictated(0.9, 0.5, 0.4))
    assert run.summary["epoch"] == {"best": 1, "last": 3}[keep_epoch]


def test_history_has_the_macro_f1_of_the_validation_images(tiny: RunConfig, train: Train, few: Source) -> None:
    run = train(tiny.replace(keep_epoch="last"))
    val = split(few, run.config).val
    answers = predict(run.model(), val, run.config).argmax(1)
    expected = f1_score(val.labels, answers, average="macro", labels=range(10), zero_division=0)
    assert run.history["val_macro_f1"].iloc[-1] == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.parametrize("option", [{"mixup": 0.5}, {"cutmix": 0.5}, {"cutout": 0.5}, {"flip": True}, {"crop": 0}])
def test_augmentation_changes_what_is_learnt(option: dict, tiny: RunConfig, train: Train) -> None:
    assert not same_weights(train(tiny.replace(epochs=1)), train(tiny.replace(epochs=1, **option)))


@pytest.mark.slow
def test_same_seed_same_run_another_seed_another(tiny: RunConfig, train: Train, tmp_path: Path) -> None:
    config = tiny.replace(mixup=0.5, dropout=0.1)
    first, again = train(config, runs_dir=tmp_path / "a"), train(config, runs_dir=tmp_path / "b")
    assert_same_run(first, again)
    other = train(config.replace(seed=1)).history
    assert not np.allclose(other["loss"], first.history["loss"])


# ---------------------------------------------------------------- a module of one's own


class Net(nn.Module):
    """A module that knows nothing of this package; the same weights at first."""

    def __init__(self, at_once: int = 10**9) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(32, 10)
        self.at_once = at_once  # images that fit into memory in training

    def forward(self, images: Tensor) -> Tensor:
        if self.training and len(images) > self.at_once:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.head(self.layers(images.flatten(1)))


@pytest.fixture
def data(few: Source, tiny: RunConfig) -> Data:
    return split(few, tiny)


def test_fit_trains_a_module_of_ones_own_and_returns_it_with_its_history(data: Data) -> None:
    net = Net()
    model, history = fit(net, data, RECIPE)
    assert model is net
    assert not any(part.training for part in model.modules())
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["step"].tolist() == [5, 10, 15]
    assert {"loss", "cls", "accuracy", "lr", "val_loss", "val_accuracy", *CLOCK} <= set(history)
    assert history["loss"].is_monotonic_decreasing
    assert validate(model, data.val, RECIPE)["val_accuracy"] == history["val_accuracy"].max() > 0.3


def test_fit_without_a_session_keeps_nothing(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fit(Net(), data, RECIPE)
    assert list(tmp_path.iterdir()) == []


def test_fit_leaves_what_is_drawn_afterwards_as_it_was(data: Data) -> None:
    torch.manual_seed(7)
    wanted = torch.rand(3)
    net = Net()
    torch.manual_seed(7)
    fit(net, data, RECIPE)
    assert torch.equal(torch.rand(3), wanted)


def test_module_ends_with_the_weights_that_validation_chose(data: Data) -> None:
    seen: list[dict[str, Tensor]] = []
    net, accuracies = Net(), iter([0.3, 0.9, 0.9, 0.5])

    class Dictated(Session):
        def after_epoch(self, row: dict[str, float]) -> dict[str, float]:
            seen.append(states(net))
            return row | {"val_accuracy": next(accuracies)}

    model, history = fit(net, data, RECIPE.replace(epochs=4), Dictated())
    assert history["val_accuracy"].tolist() == [0.3, 0.9, 0.9, 0.5]
    assert equal(states(model), seen[1])
    assert not equal(seen[1], seen[2])


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"ema": 0.9}, {"accumulate": 2}, {"optimizer": "muon"}, {"precision": "bf16"}, {"compile": True}]
)
def test_the_same_recipe_trains_the_same_module_twice(
    options: dict, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: compile_module(self, backend="eager"))
    recipe = RECIPE.replace(mixup=0.5, remedy="sampler", **options)
    (first, history), (again, history_again) = (fit(Net(), data, recipe) for _ in range(2))
    assert equal(states(first), states(again))
    pd.testing.assert_frame_equal(history.drop(columns=CLOCK), history_again.drop(columns=CLOCK), check_exact=True)
    assert not equal(states(first), states(fit(Net(), data, recipe.replace(seed=1))[0]))


@pytest.mark.slow
def test_loss_terms_of_a_modules_own_are_learnt_and_recorded(data: Data) -> None:
    class Shy(Net):
        """Pays for large logits; a teacher may say how large they are to be."""

        term_weights: ClassVar[dict[str, float]] = {"size": 3.0}

        def terms(self, images: Tensor, teacher: nn.Module | None) -> tuple[Tensor, dict[str, Tensor]]:
            logits = self(images)
            wanted = teacher(images) if teacher else torch.zeros_like(logits)
            return logits, {"size": (logits - wanted).square().mean()}

    def size(trained: tuple[nn.Module, pd.DataFrame]) -> float:
        return float(predict(trained[0], data.val, RECIPE).square().mean())

    shy, history = fit(Shy(), data, RECIPE)
    np.testing.assert_allclose(history["loss"], history["cls"] + 3 * history["size"], rtol=1e-5)
    small, large = size((shy, history)), size(fit(Net(), data, RECIPE))
    assert small < large / 2
    teacher, _ = fit(Net(), data, RECIPE)
    before = states(teacher)
    assert size(fit(Shy(), data, RECIPE.replace(epochs=10), teacher=teacher)) > 2 * small
    assert equal(states(teacher), before)  # its statistics of BatchNorm as well


# ---------------------------------------------------------------- what stops it


def test_loss_that_is_no_number_stops_the_run_and_says_what_to_do(
    tiny: RunConfig, train: Train, tmp_path: Path
) -> None:
    class Poisoned(RunSession):
        def on_batch(self, step: int, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            return inputs * (math.nan if step == 7 else 1), targets

    with pytest.raises(LabError, match=r"became nan in step 7, with lr .*: lower lr"):
        train(tiny, session=Poisoned)
    assert list(tmp_path.glob("*/summary.json")) == []
    [run] = tmp_path.glob("*")
    assert Run(run).load_checkpoint()["progress"]["step"] == 5  # of the epoch before


def test_batch_that_does_not_fit_names_one_that_does(data: Data) -> None:
    with pytest.raises(LabError, match=r"out of memory in Net.*accumulate 4 .* or batch_size 8 would fit"):
        fit(Net(at_once=10), data, RECIPE)
    fit(Net(at_once=10), data, RECIPE.replace(accumulate=4))  # the advice holds


def test_memory_for_not_even_one_image_is_told(data: Data) -> None:
    with pytest.raises(LabError, match="not even one image fits"):
        fit(Net(at_once=0), data, RECIPE)


def test_fault_that_is_not_about_memory_is_passed_on(data: Data) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fit(nn.Sequential(nn.Flatten(), nn.Linear(63, 10)), data, RECIPE)


# ---------------------------------------------------------------- budgets


def test_steps_are_a_budget_whatever_the_epochs(tiny: RunConfig, train: Train, watched: type[RunSession]) -> None:
    summary = train(tiny.replace(steps=7, epochs=100), session=watched).summary
    assert watched.steps == list(range(7))
    assert (summary["steps"], summary["epochs"]) == (7, 2)


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the training's clock finds it a twentieth of a second later, however busy the machine is."""
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(ticks) / 20)
    monkeypatch.setattr(session, "time", clock)


@pytest.mark.usefixtures("ticking")
def test_minutes_are_a_budget_that_the_learning_rate_follows(tiny: RunConfig, train: Train) -> None:
    config = tiny.replace(minutes=0.05, warmup=0, hold=0.5, schedule="linear", epochs=1)
    run = train(config)
    assert run.summary["epochs"] > 1
    # what validation took after the last whole epoch may have spent the rest
    assert 2.7 < run.summary["seconds"] < 3.2
    lr, seconds = run.history["lr"].to_numpy(), run.history["seconds"].to_numpy()
    assert lr[0] == config.lr
    assert 0 < lr[-1] < 0.2 * config.lr
    assert (lr[seconds < 1.5] == config.lr).all()


@pytest.mark.slow
@pytest.mark.usefixtures("ticking")
def test_minutes_that_are_used_up_end_an_interrupted_training_too(
    tiny: RunConfig, train: Train, watched: type[RunSession]
) -> None:
    config = tiny.replace(minutes=0.05)
    with pytest.raises(KilledError):
        train(config, session=killed_before(7))
    run = train(config, session=watched)
    assert watched.steps[0] == 7
    assert run.summary["seconds"] < 3.2


@pytest.mark.slow
@pytest.mark.usefixtures("ticking")
@pytest.mark.parametrize("minutes", [1e-6, 0.006])
def test_minutes_that_are_over_at_once_still_train_and_validate(
    minutes: float, tiny: RunConfig, train: Train, watched: type[RunSession]
) -> None:
    """A resumed training may find them used up before its first epoch was over."""
    config = tiny.replace(minutes=minutes)
    if minutes > 1e-6:
        with pytest.raises(KilledError):
            train(config, session=killed_before(2))
    run = train(config, session=watched)
    assert len(watched.steps) >= 1
    assert run.history["step"].iloc[-1] == run.summary["steps"] == watched.steps[-1] + 1


def test_training_ends_when_validation_has_not_improved_for_a_while(tiny: RunConfig, train: Train) -> None:
    run = train(tiny.replace(epochs=9, patience=2), session=dictated(0.3, 0.9, 0.8, 0.7, 0.95))
    assert (run.summary["epoch"], run.summary["epochs"]) == (2, 4)


def test_schedule_reaches_the_optimiser(tiny: RunConfig, train: Train) -> None:
    config = tiny.replace(lr=0.01, warmup=0.2)  # 10 steps
    assert train(config).history["lr"].tolist() == pytest.approx([0.01 * lr_factor(i / 10, config) for i in (4, 9)])


# ---------------------------------------------------------------- batches


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vit", "dynamic_vit", "linear_vit", "linformer_vit"])
def test_images_grow_to_their_full_size(model: str, tiny: RunConfig, train: Train, watched: type[RunSession]) -> None:
    config = tiny.replace(model=model, patch_size=2, start_size=4, grow=0.8, linformer_k=4, cutmix=1.0)
    run = train(config, session=watched)
    assert [batch.shape[-1] for batch in watched.batches] == [4] * 4 + [6] * 4 + [8] * 2
    assert run.history["loss"].notna().all()


def test_data_smaller_than_a_batch_is_one_batch(tiny: RunConfig, train: Train, watched: type[RunSession]) -> None:
    train(tiny.replace(batch_size=4096), session=watched)
    assert watched.steps == [0, 1]


class OnDisk(Split):
    """Images that do not fit into memory."""

    def fits(self, device: torch.device) -> bool:
        return False

    @property
    def images(self) -> Tensor:
        raise AssertionError("all images at once")

    def to(self, device: torch.device) -> tuple[Tensor, Tensor]:
        raise AssertionError("all images at once")


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_images_that_do_not_fit_are_read_by_a_loader_with_the_same_result(
    num_workers: int, tiny: RunConfig, few: Source, train: Train, tmp_path: Path
) -> None:
    config = tiny.replace(mixup=0.5, remedy="sampler", imbalance="linear", imbalance_ratio=2, num_workers=num_workers)
    inside = train(config, runs_dir=tmp_path / "inside")
    data = split(few, config)
    data = dataclasses.replace(data, train=OnDisk(data.train.pool, data.train.labels, data.train.index))
    run = Run.of(tmp_path, config, few.digest)
    with pytest.raises(KilledError):
        fit_run(run, config, data, session=killed_before(2))
    assert_same_run(fit_run(run, config, data), inside)


# ---------------------------------------------------------------- validation and test


def test_test_set_is_read_once_after_the_last_step(tiny: RunConfig, few: Source, tmp_path: Path) -> None:
    events: list[str] = []

    class Watched(Split):
        """Tells when its images or labels are looked at; its digest and its length are no look."""

        def __init__(self, name: str, part: Split) -> None:
            super().__init__(part.pool, part.labels, part.index)
            vars(self).update(name=name, digest=part.digest)

        def __getattribute__(self, attribute: str) -> Any:
            if attribute in ("pool", "labels") and events[-1:] != [super().__getattribute__("name")]:
                events.append(super().__getattribute__("name"))
            return super().__getattribute__(attribute)

        def __len__(self) -> int:
            return len(self.index)

    class Steps(RunSession):
        def before_step(self, step: int) -> None:
            events.append("step")

    data = split(few, tiny)
    data = dataclasses.replace(data, val=Watched("validation", data.val), test=Watched("test", data.test))
    events.clear()
    run = Run.of(tmp_path, tiny, few.digest)
    fit_run(run, tiny, data, session=Steps)
    fit_run(run, tiny, data, session=Steps)
    epoch = ["step"] * 5 + ["validation"]
    assert events == [*epoch, *epoch, "test"]


@pytest.mark.slow
def test_labels_of_the_test_set_have_no_say_in_training(tiny: RunConfig, few: Source, train: Train) -> None:
    shuffled = Split(few.test.pool, (few.test.labels + 1) % 10, few.test.index.flip(0))
    assert same_weights(train(tiny), train(tiny, Source(few.train, shuffled, few.classes, "other", ())))


def test_validation_chooses_the_epoch_whose_weights_are_kept(tiny: RunConfig, train: Train) -> None:
    seen: list[dict[str, Tensor]] = []

    class Watched(dictated(0.3, 0.9, 0.9, 0.5)):
        def checkpoint(self, state: State) -> None:
            seen.append(states(state.average))
            super().checkpoint(state)

        def finish(self, model: nn.Module, *rest: Any) -> None:
            seen.append(states(model))
            super().finish(model, *rest)

    run = train(tiny.replace(epochs=4), session=Watched)
    assert (run.summary["epoch"], run.summary["epochs"], run.summary["val_accuracy"]) == (2, 4, 0.9)
    assert equal(run.weights(), seen[1])
    assert equal(run.weights(), seen[-1])  # and those meet the test set
    assert not equal(seen[1], seen[2])


def test_without_validation_the_last_epoch_counts(tiny: RunConfig, train: Train) -> None:
    run = train(tiny.replace(val_fraction=0, epochs=3))
    assert run.summary["epoch"] == 3
    assert run.summary["val_accuracy"] is None
    assert "val_accuracy" not in run.history
    assert run.summary["train_images"] == 200


@pytest.mark.slow
def test_validation_images_are_not_augmented_nor_trained_on(
    tiny: RunConfig, few: Source, train: Train, watched: type[RunSession]
) -> None:
    train(tiny.replace(crop=0), session=watched)  # what is trained on are then the images as they are
    data = split(few, tiny)
    trained = {image.numpy().tobytes() for batch in watched.batches for image in batch}
    assert len(trained) > 100
    assert trained <= {image.numpy().tobytes() for image in to_float(data.train.images)}
    assert not trained & {image.numpy().tobytes() for image in to_float(data.val.images)}
    changed = tiny.replace(crop=4, mixup=1.0, cutout=0.5, flip=True, epochs=1)
    run = train(changed)
    plainly = validate(run.model(), data.val, changed)
    assert run.history[list(plainly)].iloc[0].to_dict() == pytest.approx(plainly, rel=1e-5)


def test_scores_are_those_of_the_stored_predictions(tiny: RunConfig, few: Source, train: Train) -> None:
    run = train(tiny)
    logits, labels = run.predictions
    assert labels.tolist() == few.test.labels.tolist()
    assert run.summary["test"]["accuracy"] == pytest.approx((logits.argmax(1) == labels).mean())
    again = predict(run.model(), few.test, tiny)
    again = again - again.amax(1, keepdim=True)
    torch.testing.assert_close(torch.from_numpy(logits), again, atol=1e-5, rtol=1e-3)  # kept as float16


def test_predictions_do_not_depend_on_how_images_are_batched(tiny: RunConfig, few: Source) -> None:
    model = build_model(tiny.replace(dropout=0.5), 10, 1)
    whole, pieces = (predict(model, few.test, tiny.replace(batch_size=size)) for size in (60, 4))  # 60 images, or 8
    torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=1e-5)
    assert model.training  # as before


def test_parameters_of_a_lab_are_no_recipe_and_the_sentence_says_what_is(few: Source, tiny: RunConfig) -> None:
    data = split(few, tiny)
    with pytest.raises(LabError, match=r"a recipe, as lab.params.recipe\(epochs=10\), and got LabConfig"):
        fit(nn.Linear(2, 2), data, LabConfig())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": Net}, r"a module, as MyNet\(\), and not the class MyNet, and got Net"),
        ({"data": "lab"}, "data, as lab.data, and got str"),
        ({"session": "lab"}, r"a session, as lab.session\(model, recipe\), and got str"),
        ({"teacher": Net}, "a module as teacher, as one that is trained, and got Net"),
        ({"teacher": nn.Linear(2, 2)}, r"Net has no method terms\(images, teacher\)"),
    ],
)
def test_what_fit_cannot_take_is_said_before_any_work(changes: dict, words: str, few: Source, tiny: RunConfig) -> None:
    arguments = {"model": Net(), "data": split(few, tiny), "recipe": RECIPE} | changes
    with pytest.raises(LabError, match=words):
        fit(**arguments)


# ---------------------------------------------------------------- from the weights of another run


@pytest.mark.slow
def test_student_starts_from_its_teacher_which_stays_as_it_is(tiny: RunConfig, train: Train) -> None:
    teacher = train(tiny.replace(dropout=0.1))
    modes: list[bool] = []
    first: dict[str, Tensor] = {}
    frozen: list[nn.Module] = []

    class Watched(RunSession):
        def prepare(self, objective: nn.Module, *rest: Any) -> nn.Module:
            frozen.append(objective.teacher)
            first.update(states(objective.model))
            return super().prepare(objective, *rest)

        def before_step(self, step: int) -> None:
            modes.append(frozen[0].training)
            assert all(parameter.grad is None for parameter in frozen[0].parameters())

    student = train(
        tiny.replace(dropout=0.1, model="dynamic_vit", init_from=teacher.path.name), start=teacher, session=Watched
    )
    assert modes == [False] * 10
    taught = teacher.weights()
    assert equal(states(frozen[0]), taught)
    assert all(torch.equal(first[name], taught[name]) for name in taught)
    assert {name.split(".")[0] for name in first.keys() - taught.keys()} == {"predictors"}
    assert {"kl", "distill", "ratio"} <= set(student.history)
    assert not torch.equal(student.weights()["head.weight"], taught["head.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("other", [{"dim": 32}, {"tokenizer": "conv"}, {"depth": 5}])
def test_teacher_of_another_shape_is_refused(other: dict, tiny: RunConfig, train: Train) -> None:
    teacher = train(tiny.replace(steps=1, **other))
    with pytest.raises(LabError, match="the run to start from"):
        train(tiny.replace(init_from=teacher.path.name), start=teacher)


@pytest.mark.slow
def test_convolutional_tokenizer_begins_whitened_by_the_training_images_and_a_student_by_its_teacher(
    tiny: RunConfig, few: Source, train: Train
) -> None:
    config = tiny.replace(tokenizer="conv", steps=1, warmup=0.5, lr=1e-9, muon_lr=1e-9)
    data = split(few, config)
    expected = build_model(config, 10, 1).embed
    expected.whiten(to_float(data.train.images))
    teacher = train(config)
    kernels = teacher.weights()["embed.layers.0.weight"]
    torch.testing.assert_close(kernels, expected.layers[0].weight)
    student = train(config.replace(model="dynamic_vit", init_from=teacher.path.name), start=teacher)
    torch.testing.assert_close(student.weights()["embed.layers.0.weight"], kernels)
