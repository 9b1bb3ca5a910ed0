"""What keeps a training alive: lock, resume, clock, checkpoints, processes, graphs, records.

`Session` keeps nothing, `RunSession` keeps all in a run directory. `fit` calls the methods of either; tests and
benchmarks override `before_step`, `on_batch` and `after_epoch` to look on or to interfere.
"""

import contextlib
import copy
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from vitlab import machine
from vitlab.analysis import metrics
from vitlab.config import Recipe
from vitlab.data.splits import Data
from vitlab.errors import LabError, Stopped
from vitlab.files import code_digest, require_writable, writing
from vitlab.identity import module_identity
from vitlab.runs import Run
from vitlab.training import display
from vitlab.training.compiling import compile_step, pays
from vitlab.training.evaluate import predict
from vitlab.training.losses import Objective
from vitlab.training.progress import Budget, Progress, State

CHECKPOINT_SECONDS = 120
CODE = (  # what decides, beside parameters and data, what a training gives
    "models/*.py",
    *(f"training/{name}.py" for name in ("losses", "optim", "step", "fit")),
    *(f"data/{name}.py" for name in ("augment", "batches")),
)
CHECK_STEPS = 10  # how often processes compare their clocks, and the loss is looked at: a GPU has to be waited for


class Session:
    """A training that nothing is kept of: the model and its history are all that is left."""

    main = True  # whether this process reports and writes
    process, processes = 0, 1
    name = ""
    title = ""  # what the reader calls this training
    goes_on = "nothing of it is kept"  # once it was stopped
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    meter: display.Meter | None = None

    # ------------------------------------------------ to look on or to interfere

    def before_step(self, step: int) -> None:
        """A step begins."""

    def on_batch(self, step: int, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The augmented batch of a step."""
        return inputs, targets

    def after_epoch(self, row: dict[str, float]) -> dict[str, float]:
        """The history's row of an epoch that is over."""
        return row

    # ------------------------------------------------ what fit asks for

    def require_opened_for(
        self, model: nn.Module, data: Data, recipe: Recipe, teacher: nn.Module | None = None
    ) -> None:
        """LabError where what is kept would be taken for that of another training."""

    def device(self, recipe: Recipe) -> torch.device:
        return machine.device(recipe.device)

    @property
    def result(self) -> Run | None:
        """The complete run, where there is nothing left to train."""
        return None

    @contextlib.contextmanager
    def running(self, model: nn.Module, data: Data, recipe: Recipe) -> Iterator[dict[str, Any] | None]:
        """Hold what belongs to this training while it runs; yields the state to continue from, if there is one."""
        self.name = self.name or type(model).__name__
        self.title = self.title or self.name
        with display.viewed(self.title) if self.main else contextlib.nullcontext(display.View()) as self.view:
            try:
                yield None
            except KeyboardInterrupt:
                place = self.meter.status.place if self.meter and self.meter.status.epoch else "its first steps"
                raise Stopped(f"{self.title} stopped in {place}: {self.goes_on}") from None

    def restoring(self) -> contextlib.AbstractContextManager:
        """What is kept of an earlier start is put in its place."""
        return contextlib.nullcontext()

    def begin(self, at: Progress, objective: Objective, data: Data, recipe: Recipe) -> Recipe:
        """Start the clock; returns the recipe with the precision that this training began with.

        It keeps its number of threads as well, and whether it is compiled: sums would be rounded otherwise.
        """
        device = self.device(recipe)
        at.threads = at.threads or torch.get_num_threads()
        torch.set_num_threads(at.threads)
        # a CPU is timed for it, and another timing could turn out otherwise: the first one counts
        if device.type != "cpu" or at.precision in ("", "fp16"):
            at.precision = machine.precision_name(machine.precision(recipe.precision, objective, device))
        self._saved = time.perf_counter()
        self._started = self._saved - at.seconds
        self.meter = display.Meter(self.title, at)
        recipe = recipe.replace(precision=at.precision)
        if at.compiled is None:
            left = partial(Budget(recipe, len(data.train)).steps_left, at)
            trial = recipe.compile == "auto" and self.processes == 1
            at.compiled = pays(objective, data, recipe, left) if trial else recipe.compile is True
        if at.compiled:
            compile_step(objective)
        return recipe

    def clock(self, at: Progress, budget: Budget) -> bool:
        """Set the seconds of training so far; returns whether a checkpoint is due."""
        now = time.perf_counter()
        at.seconds = now - self._started
        return now - self._saved >= self.checkpoint_seconds

    def prepare(self, objective: nn.Module, data: Data, recipe: Recipe) -> nn.Module:
        """What a step calls for the objective."""
        return objective

    def for_batch(self, called: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[nn.Module, Tensor, Tensor]:
        """What a step calls, and the part of the batch that it takes."""
        return called, inputs, targets

    def mean(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """Over the processes."""
        return sums

    def show(self, at: Progress, budget: Budget) -> None:
        """Show how far this training is, once a second."""
        if self.main and (status := self.meter.read(at, budget)):
            self.view.update(status)

    def checkpoint(self, state: State) -> None:
        self._saved = time.perf_counter()

    def finish(self, model: nn.Module, data: Data, recipe: Recipe, at: Progress) -> None:
        """Keep the model, which has the chosen weights, its history, and what it answers to the test images."""
        self.view.update(replace(self.meter.status, done=True))


class RunSession(Session):
    """A training kept in a run directory: continued where it was, to the bit, and complete only once.

    Where `accelerate launch` started several processes, each takes its share of every batch, and the first one writes.
    """

    def __init__(
        self, run: Run, checkpoint_seconds: float = CHECKPOINT_SECONDS, title: str = "", module: nn.Module | None = None
    ) -> None:
        self.module = module  # that it was opened for, where a reader has opened it, and what it was then
        self.known = module_identity(module) if module is not None else None
        self.run, self.name, self.checkpoint_seconds, self.title = run, run.path.name, checkpoint_seconds, title
        self.goes_on = f"{display.again()} to continue"
        self.processes = machine.launched_processes()
        gpu = torch.cuda.is_available()
        self.accelerator = Accelerator(cpu=not gpu, mixed_precision="no") if self.processes > 1 else None
        self.process = self.accelerator.process_index if self.accelerator else 0
        self.main = self.process == 0
        self.events: SummaryWriter | None = None

    def _told(self, value: Any) -> Any:
        """What the first process says, for all of them."""
        return broadcast_object_list([value])[0] if self.accelerator else value

    def require_opened_for(
        self, model: nn.Module, data: Data, recipe: Recipe, teacher: nn.Module | None = None
    ) -> None:
        self.run.require_of_module(model, recipe, data, teacher, same=model is self.module)

    def device(self, recipe: Recipe) -> torch.device:
        return self.accelerator.device if self.accelerator else super().device(recipe)

    def restoring(self) -> contextlib.AbstractContextManager:
        return self.run.of_this_code()

    @property
    def result(self) -> Run | None:
        return self.run if self._told(self.run.complete) else None

    @contextlib.contextmanager
    def running(self, model: nn.Module, data: Data, recipe: Recipe) -> Iterator[dict[str, Any] | None]:
        size = min(recipe.batch_size, len(data.train))
        if size % self.processes:
            raise LabError(f"batch_size {size} cannot be shared evenly by {self.processes} processes")
        numbers = 5 * sum(p.numel() for p in model.parameters())  # weights, average, best ones, AdamW's averages
        require_writable(self.run.path, megabytes=1 + 4 * numbers // 2**20)
        with self.run.locked() if self.main else contextlib.nullcontext(), super().running(model, data, recipe):
            saved = self._told(self.run.load_checkpoint() if self.main else None)
            if self.main and saved is None and not self.run.complete:
                self.run.write_record(recipe, data, self.known or module_identity(model))
            try:
                yield saved
            finally:
                if self.events:
                    self.events.close()
        if self.accelerator:
            self.accelerator.wait_for_everyone()

    def begin(self, at: Progress, objective: Objective, data: Data, recipe: Recipe) -> Recipe:
        super().begin(at, objective, data, recipe)
        at.precision = self._told(at.precision)
        if self.main:
            here = machine.environment(recipe.device) | {"processes": self.processes, "precision": at.precision}
            here |= {"compiled": at.compiled, "code": code_digest(*CODE)}
            if self.run.environments[-1:] != [here]:
                self.run.write_json("environment.json", [*self.run.environments, here])
            # readers drop what an interrupted training wrote after its last checkpoint
            self.events = SummaryWriter(self.run.path, purge_step=at.step + 1 if at.step else 0)
        return recipe.replace(precision=at.precision)

    def clock(self, at: Progress, budget: Budget) -> bool:
        # several processes have to meet to go by one clock
        meet = budget.by_time or budget.epoch_over(at) or at.step % CHECK_STEPS == 0
        if self.accelerator and not meet:
            return False
        due = super().clock(at, budget)
        at.seconds, due = self._told((at.seconds, due))
        return due

    def prepare(self, objective: nn.Module, data: Data, recipe: Recipe) -> nn.Module:
        device = self.device(recipe)
        # a graph holds the gradients of one piece alone, and no loader's thread may use the GPU while it is recorded
        alone = self.processes == recipe.accumulate == 1 and recipe.compile is not True
        self._record = device.type == "cuda" and alone and data.train.fits(device)
        self._graphs: tuple[tuple[torch.Size, str], nn.Module] | None = None
        self._precision = machine.PRECISIONS[recipe.precision]
        return self.accelerator.prepare_model(objective) if self.accelerator else objective

    def for_batch(self, called: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[nn.Module, Tensor, Tensor]:
        if self._record:
            what = inputs.shape, getattr(called.model, "phase", "")
            # for the first batch, and anew when images have grown or a model turns
            if self._graphs is None or self._graphs[0] != what:
                self._graphs = what, recorded(called, inputs, targets, self._precision)
            return self._graphs[1], inputs, targets
        own = slice(self.process, None, self.processes)
        return called, inputs[own], targets[own]

    def mean(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.accelerator.reduce(sums, "mean") if self.accelerator else sums

    def on_batch(self, step: int, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if self.events and step == 0:
            self.events.add_images("batch", inputs[:32] / 2 + 0.5, 0)
        return inputs, targets

    def after_epoch(self, row: dict[str, float]) -> dict[str, float]:
        row = self._told(row)  # or each process would stop early by its own
        for name, value in row.items() if self.events else ():
            self.events.add_scalar(name, value, row["step"])
        return row

    def checkpoint(self, state: State) -> None:
        if self.main:
            self.run.save_checkpoint(state.state_dict())
        super().checkpoint(state)

    def finish(self, model: nn.Module, data: Data, recipe: Recipe, at: Progress) -> None:
        """The one look at the test set, and the summary that makes the run complete.

        Logits are kept with float16's three digits, and every score is computed from what is kept. Each image's largest
        is subtracted before, which no probability depends on: digits are finest near zero, where answers are decided.
        """
        super().finish(model, data, recipe, at)
        if not self.main:
            return
        run, last = self.run, at.history[-1]
        with writing(run.path / "history.csv") as temporary:
            pd.DataFrame(at.history).to_csv(temporary, index=False)
        run.save("model.pt", at.best["weights"])
        logits = predict(model, data.test, recipe)
        kept = (logits - logits.amax(1, keepdim=True)).half()
        run.write_arrays("predictions.npz", logits=kept.numpy(), labels=data.test.labels.numpy())
        chosen = {"epoch": at.best["epoch"], "val_accuracy": at.best["val_accuracy"] if len(data.val) else None}
        spent = {"epochs": last["epoch"], "steps": last["step"], "train_images": len(data.train)}
        pace = {name: last[name] for name in ("seconds", "images_per_second")}
        size = {"run": run.path.name, "parameters": sum(p.numel() for p in model.parameters())}
        run.write_json("summary.json", size | chosen | spent | pace | {"test": metrics.scores(*run.predictions)})
        for name in ("checkpoint.pt", "checkpoint.previous.pt"):
            (run.path / name).unlink(missing_ok=True)


def of_other_code(run: Run) -> bool:
    """Whether a run was trained, at some time, by other code than today's: it is known by parameters and data alone."""
    now = code_digest(*CODE)
    return any(environment.get("code", now) != now for environment in run.environments)


def recorded(objective: nn.Module, images: Tensor, targets: Tensor, precision: torch.dtype) -> nn.Module:
    """`objective` whose passes, forward and backward, are CUDA graphs: for batches of this shape, one at a time.

    A GPU is done with each of some hundred kernels of a small model before the next one is launched; a graph launches
    all of them at once. The weights are the same ones; recording leaves neither them nor the generators changed.
    """
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)  # graphs are recorded on a stream apart
    twin = copy.copy(objective)  # its forward is replaced; what it holds is shared
    buffers = {name: buffer.clone() for name, buffer in objective.named_buffers()}  # statistics of BatchNorm
    with torch.random.fork_rng([images.device]), machine.autocast(images.device, precision, cache=False):
        twin = torch.cuda.make_graphed_callables(twin, (images.clone(), targets.clone()), allow_unused_input=True)
    for name, buffer in objective.named_buffers():
        buffer.copy_(buffers[name])
    return twin
