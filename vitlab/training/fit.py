"""`fit`, the loop around `step`: it trains any module that maps images to logits.

Everything random in step t is a function of (seed, t): a run that was interrupted continues as if it had not been, to
the bit on a CPU, and on a GPU wherever its kernels add in a fixed order.
A budget in minutes makes the result depend on the clock, because the learning rate then follows it. So do, in rounding
alone, `precision` and `compile` where they are auto on a CPU: a trial decides them, once for a run.
"""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from torch import nn

from vitlab.config import Recipe, RunConfig
from vitlab.data.augment import augment
from vitlab.data.batches import size_at, to_float, training_batches
from vitlab.data.splits import Data
from vitlab.errors import LabError
from vitlab.machine import device_of, set_for_training
from vitlab.models.registry import build_model, start_from
from vitlab.runs import Run
from vitlab.training.evaluate import validate
from vitlab.training.losses import Objective, sampling_weights
from vitlab.training.optim import lr_factor, set_lr
from vitlab.training.progress import Budget, Progress, State
from vitlab.training.session import CHECK_STEPS, RunSession, Session, of_other_code
from vitlab.training.step import seed_step, step

WHITENING_PIXELS = 2_000_000  # of training images, that the first kernels are fitted to


def fit(
    model: nn.Module, data: Data, recipe: Recipe, session: Session | None = None, teacher: nn.Module | None = None
) -> tuple[nn.Module, pd.DataFrame]:
    """Train `model`, images (B, C, S, S) in [−1, 1] to logits (B, classes); return it and its history, a row an epoch.

    It begins with the weights that the model has: a ViT with a convolutional tokenizer is `prepared` before. Validation
    accuracy chooses the epoch whose weights it ends with, in evaluation mode, unless `keep_epoch` says the last.
    Without a session nothing is kept; with a `RunSession` the training is kept in a run directory, continued after an
    interruption, and loaded once it is complete. LabError for a loss that is no number, for a batch that does not fit
    into memory, for a session that `Lab.session` opened for something else, for a teacher of a model without terms of
    its own, for answers of another shape than (images, classes), and for what is no module, data or recipe.
    """
    _require_kinds(model, data, recipe, session, teacher)
    session = session or Session()
    session.require_opened_for(model, data, recipe, teacher)
    device = session.device(recipe)
    if session.result:
        return _loaded(model, session, session.result, device)
    with set_for_training(model), session.running(model, data, recipe) as saved:
        if session.result:  # another process has completed it while this one waited
            return _loaded(model, session, session.result, device)
        if torch.distributed.is_initialized() and device.type == "cuda":  # there is none for a CPU
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        if recipe.channels_last:
            model.to(memory_format=torch.channels_last)
        objective = Objective(model.train(), recipe, data.class_counts, teacher and teacher.eval()).to(device)
        with session.restoring():
            at, full = Progress(**saved["progress"]) if saved else Progress(), False
        try:
            recipe = session.begin(at, objective, data, recipe)
            _learn(objective, data, recipe, session, at, saved)
        except RuntimeError as error:  # torch has a class of its own for a GPU's memory, none for a CPU's
            if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
                raise
            full = True
        if full:  # here, where the failed step's tensors are gone
            raise LabError(f"out of memory in {session.name}: {_what_would_fit(objective, data, recipe)}")
        model.load_state_dict(at.best["weights"])
        session.finish(model.eval(), data, recipe, at)
    return model, pd.DataFrame(at.history)


def _require_kinds(model: Any, data: Any, recipe: Any, session: Any, teacher: Any) -> None:
    """LabError where an argument of `fit` is none of its kind."""
    for what, value, kind, cure in (
        ("a module", model, nn.Module, "MyNet(), and not the class MyNet"),
        ("data", data, Data, "lab.data"),
        ("a recipe", recipe, Recipe, "lab.params.recipe(epochs=10)"),
        ("a session", session, (Session, type(None)), "lab.session(model, recipe)"),
        ("a module as teacher", teacher, (nn.Module, type(None)), "one that is trained"),
    ):
        if not isinstance(value, kind):
            name = value.__name__ if isinstance(value, type) else type(value).__name__
            raise LabError(f"fit takes {what}, as {cure}, and got {name}")
    if teacher is not None and not hasattr(model, "terms"):
        raise LabError(
            f"{type(model).__name__} has no method terms(images, teacher), so that a teacher would teach it nothing: "
            "give it one, as DistilledViT in vitlab/models/dynamic_vit.py has it"
        )


def prepared(model: nn.Module, data: Data) -> nn.Module:
    """`model`, before it is trained from the start, with what it takes from the training images by its `prepare`.

    A ViT's convolutional tokenizer takes the kernels that it begins with. A model without that method stays as it is.
    """
    if hasattr(model, "prepare"):
        every = math.ceil(len(data.train) * data.train.pool.shape[-1] ** 2 / WHITENING_PIXELS)
        model.prepare(to_float(data.train.images_at(slice(None, None, every))))
    return model


def _loaded(model: nn.Module, session: Session, run: Run, device: torch.device) -> tuple[nn.Module, pd.DataFrame]:
    if session.main:
        other = ", by other code of losses or training than today's" if of_other_code(run) else ""
        print(f"{session.title} was trained before{other}: read from {run.path}. Delete that folder to train it anew.")
    run.give_weights(model)
    return model.to(device).eval(), run.history


def fit_run(
    run: Run, config: RunConfig, data: Data, start: Run | None = None, session: Callable[[Run], RunSession] = RunSession
) -> Run:
    """The complete run of a configuration: as it is, or trained, or continued; from the weights of `start`, if given.

    A model with loss terms of its own is taught by `start` as well.
    """
    if run.complete:
        return run
    model, teacher = build_model(config, len(data.classes), data.channels), None
    if start is not None:
        start_from(model, start.weights())
        teacher = start.model(device=config.device) if hasattr(model, "terms") else None
    else:
        prepared(model, data)
    fit(model, data, config, session(run), teacher)
    return run


def _learn(
    objective: Objective, data: Data, recipe: Recipe, session: Session, at: Progress, saved: dict[str, Any] | None
) -> None:
    """Take steps until the budget is spent; `at` then holds the history and the best weights."""
    device, classes, full_size = session.device(recipe), len(data.classes), data.train.pool.shape[-1]
    state, budget = State(objective.model, recipe, device, at), Budget(recipe, len(data.train))
    if saved:
        with session.restoring():
            state.load_state_dict(saved)
    called = session.prepare(objective, data, recipe)
    weights = sampling_weights(recipe.remedy, data.train.labels, data.class_counts)
    with contextlib.closing(training_batches(data.train, recipe, device, weights, at.step)) as feed:
        session.clock(at, budget)
        while not budget.spent(at):
            session.before_step(at.step)
            images, labels = next(feed)
            done = min(1.0, budget.share(at))
            # every process draws for the whole batch, so that what is drawn does not depend on their number
            seed_step(recipe.seed, at.step, device)
            inputs, targets = augment(images, labels, classes, recipe, size_at(done, recipe, full_size))
            inputs, targets = session.on_batch(at.step, inputs, targets)
            if session.process:  # but dropout is not to repeat itself from share to share
                seed_step(recipe.seed, at.step, device, session.process)
            set_lr(state.optimizers, lr_factor(done, recipe), done)
            objective.reach(done)
            called_now, inputs, targets = session.for_batch(called, inputs, targets)
            state.add(step(called_now, state.optimizers, inputs, targets, recipe, state.scaler))

            due, epoch_over = session.clock(at, budget), budget.epoch_over(at)
            if epoch_over or due or at.step % CHECK_STEPS == 0:
                state.check_loss(session.name)
            if epoch_over or due:
                at.sums = session.mean(at.sums)
            if epoch_over:
                row = state.row(budget) | validate(state.average, data.val, recipe)
                state.close_epoch(session.after_epoch(row))
                session.clock(at, budget)  # the validation's time counts as well
            session.show(at, budget)
            if epoch_over or due:
                session.checkpoint(state)


def _what_would_fit(objective: Objective, data: Data, recipe: Recipe) -> str:
    """Advice after a batch did not fit into memory: the largest half, quarter, … of it whose step does, by trying."""
    size, device = min(recipe.batch_size, len(data.train)), device_of(objective)
    while size > 1:
        size //= 2
        objective.zero_grad()
        with contextlib.suppress(RuntimeError):
            images, labels = data.train.images_at(slice(size)).to(device), data.train.labels[:size].to(device)
            step(objective, [], *augment(images, labels, len(data.classes), recipe), recipe.replace(accumulate=1))
            pieces = math.ceil(recipe.batch_size / size)
            return f"accumulate {pieces} (the batch in {pieces} pieces) or batch_size {size} would fit"
    return "not even one image fits: lower dim, depth or image_size"
