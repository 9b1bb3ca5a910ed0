"""How far a training is, and all that changes while it runs: what a checkpoint holds."""

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vitlab.config import Recipe
from vitlab.errors import LabError
from vitlab.training.optim import build_optimizers, follow


@dataclass
class Progress:
    """How far a training is."""

    step: int = 0
    seconds: float = 0.0
    history: list[dict] = field(default_factory=list)  # a row an epoch
    best: dict = field(default_factory=lambda: {"val_accuracy": -1.0, "epoch": 0, "weights": {}})
    sums: dict[str, Tensor] = field(default_factory=dict)  # of the losses in the running epoch
    precision: str = ""  # that training began with
    threads: int = 0  # of the CPU, that training began with: sums are split by them
    compiled: bool | None = None  # whether it began with compiled passes


class Budget:
    """How long a training may take: steps, or minutes, or epochs, whichever the recipe gives first."""

    def __init__(self, recipe: Recipe, images: int) -> None:
        self.recipe = recipe
        self.batch_size = min(recipe.batch_size, images)
        self.epoch_steps = images // self.batch_size
        self.steps = recipe.steps or recipe.epochs * self.epoch_steps
        self.by_time = bool(recipe.minutes and not recipe.steps)

    def share(self, at: Progress) -> float:
        """Share of the budget that is used up; the learning rate follows it."""
        return at.seconds / (60 * self.recipe.minutes) if self.by_time else at.step / self.steps

    def steps_left(self, at: Progress, seconds: float) -> float:
        """Where a step takes so many seconds."""
        return (60 * self.recipe.minutes - at.seconds) / seconds if self.by_time else self.steps - at.step

    def epoch_over(self, at: Progress) -> bool:
        return at.step > 0 and (at.step % self.epoch_steps == 0 or self.share(at) >= 1)

    def spent(self, at: Progress) -> bool:
        """Whether training is over: nothing left, or no better validation accuracy for `patience` epochs.

        Never within an epoch: what was trained is validated and counted first.
        """
        if not at.history or at.history[-1]["step"] < at.step:
            return False
        patience, last = self.recipe.patience, at.history[-1]["epoch"]
        return self.share(at) >= 1 or bool(patience and last - at.best["epoch"] >= patience)


class State:
    """What a checkpoint holds: the model, its average, the optimisers, fp16's scaler, the progress."""

    def __init__(self, model: nn.Module, recipe: Recipe, device: torch.device, at: Progress) -> None:
        self.at = at
        self.model = model
        self.decay = recipe.ema
        self.keep_last = recipe.keep_epoch == "last"
        self.average = copy.deepcopy(model).requires_grad_(False) if recipe.ema else model
        self.optimizers = build_optimizers(model, recipe)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        self.first_bad = torch.tensor(-1, device=device)  # step whose loss was no number

    @property
    def lr(self) -> float:
        """The learning rate; where weights learn at different ones, the largest of them (of AdamW's, beside Muon)."""
        return max(group["lr"] for group in self.optimizers[-1].param_groups)

    def parts(self) -> dict[str, Any]:
        scaler = {"scaler": self.scaler} if self.scaler.is_enabled() else {}
        average = {"average": self.average} if self.decay else {}
        optimizers = {f"optimizer{i}": optimizer for i, optimizer in enumerate(self.optimizers)}
        return {"model": self.model, **average, **scaler, **optimizers}

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts().items()} | {"progress": vars(self.at)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        for name, part in self.parts().items():
            if name in saved:  # no scaler, where the run began on a device that needs none
                part.load_state_dict(saved[name])

    def add(self, losses: dict[str, Tensor]) -> None:
        """Count a step that was made: its losses, its part in the averaged weights."""
        if self.decay:  # the average follows quickly while the weights still move far
            follow(self.average, self.model, min(self.decay, (1 + self.at.step) / (10 + self.at.step)))
        bad = (self.first_bad < 0) & ~losses["loss"].isfinite()
        self.first_bad = self.first_bad.masked_fill(bad, self.at.step)
        self.at.sums = {name: self.at.sums.get(name, 0.0) + value for name, value in losses.items()}
        self.at.step += 1

    def check_loss(self, name: str) -> None:
        """LabError where a loss has become nan or infinite."""
        if self.first_bad >= 0:
            raise LabError(
                f"the loss of {name} became {float(self.at.sums['loss'])} in step {int(self.first_bad)}, with lr "
                f"{self.lr:.2g}: lower lr or clip, or use precision fp32"
            )

    def row(self, budget: Budget) -> dict[str, float]:
        """The history's row of the epoch that is over, without validation."""
        at, epoch = self.at, math.ceil(self.at.step / budget.epoch_steps)
        steps = at.step - (epoch - 1) * budget.epoch_steps
        row = {"epoch": epoch, "step": at.step, "lr": self.lr}
        row |= {name: float(total) / steps for name, total in at.sums.items()}
        return row | {"seconds": at.seconds, "images_per_second": at.step * budget.batch_size / at.seconds}

    def close_epoch(self, row: dict[str, float]) -> None:
        """Add a row to the history; keep the weights if they are the best so far, or the last ones are asked for."""
        at, accuracy = self.at, row.get("val_accuracy", math.inf)
        if self.keep_last or accuracy > at.best["val_accuracy"]:
            weights = {name: value.detach().clone() for name, value in self.average.state_dict().items()}
            at.best = {"val_accuracy": row.get("val_accuracy", -1.0), "epoch": row["epoch"], "weights": weights}
        at.history.append(row)
        at.sums = {}
