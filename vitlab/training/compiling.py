"""Whether to have torch.compile write a step's kernels: decided by a short trial, kept for this machine.

What that gains depends on the CPU, nothing on one, a third of a step on another; and compiling takes a minute or more,
for each size of the images.
"""

import copy
import hashlib
import json
import logging
import time
from collections.abc import Callable

import torch

from vitlab import machine
from vitlab.config import Recipe
from vitlab.data.augment import augment
from vitlab.data.splits import Data
from vitlab.files import reading, writing
from vitlab.training.losses import Objective

LEAST_STEPS, LEAST_SECONDS = 200, 1200  # that a training has before it, or no trial is made
ROUNDS = 5
MARGIN = 2.0  # times the seconds of compiling are to be gained


def pays(objective: Objective, data: Data, recipe: Recipe, steps: Callable[[float], float]) -> bool:
    """Whether the rest of a training takes less time compiled than as it is, compiling included.

    steps: how many there are left, if each takes so many seconds. Only on a CPU: on a GPU a step's kernels are launched
    by graphs (`session.recorded`). The objective stays as it was.
    """
    if machine.device_of(objective).type != "cpu" or steps(1.0) < LEAST_STEPS:
        return False
    plain = _both_passes(objective, data, recipe)
    plain()
    seconds = recipe.accumulate * _seconds(plain)
    if (left := steps(seconds)) * seconds < LEAST_SECONDS or not machine.finds_compiler():
        return False
    found = _kept(objective, data, recipe, lambda: _trial(objective, data, recipe))
    gained = left * recipe.accumulate * (found["plain"] - found["compiled"])
    full = data.train.pool.shape[-1]
    sizes = len(range(recipe.start_size or full, full + 1, recipe.size_unit))
    return gained > MARGIN * sizes * found["compiling"]


def compile_step(objective: Objective) -> Objective:
    """Have its passes compiled when it is first called, and anew for each size of the images."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns of CUDA's tools without a GPU
    objective.compile(dynamic=False)
    return objective


def _trial(objective: Objective, data: Data, recipe: Recipe) -> dict[str, float]:
    """Seconds of a piece of a step as it is and compiled, medians of rounds that take turns, and of compiling."""
    twin = compile_step(copy.copy(objective))  # the same weights, called otherwise
    plain, compiled = (_both_passes(one, data, recipe) for one in (objective, twin))
    compiling = _seconds(compiled)
    rounds = torch.tensor([[_seconds(plain), _seconds(compiled)] for _ in range(ROUNDS)])
    medians = rounds.median(0).values.tolist()
    return {"plain": medians[0], "compiled": medians[1], "compiling": compiling}


def _both_passes(objective: Objective, data: Data, recipe: Recipe) -> Callable[[], None]:
    """Forward and backward pass of a piece of a batch, as training makes them; they leave no trace."""
    pool = data.train.images_at(slice(min(recipe.batch_size, len(data.train)) // recipe.accumulate))
    with torch.random.fork_rng(devices=[]):
        images, targets = augment(pool, data.train.labels[: len(pool)], len(data.classes), recipe)
    precision = machine.PRECISIONS[recipe.precision]

    def both() -> None:
        kept = {name: buffer.clone() for name, buffer in objective.named_buffers()}  # statistics of batch norm
        with torch.random.fork_rng(devices=[]):
            with machine.autocast(images.device, precision):
                loss, _ = objective(images, targets)
            loss.backward()
        objective.zero_grad()
        for name, buffer in objective.named_buffers():
            buffer.copy_(kept[name])

    return both


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _kept(objective: Objective, data: Data, recipe: Recipe, trial: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The trial of this model, images, batch, precision and number of threads on this machine: made once."""
    here, kinds = machine.pace(), [type(objective.model).__name__, type(objective.teacher).__name__]
    what = [here["device"], here["threads"], here["versions"]["torch"], *kinds]
    what += [[name, *parameter.shape] for name, parameter in objective.named_parameters()]
    what += [*data.train.pool.shape[1:], recipe.batch_size, recipe.accumulate]
    what += [recipe.precision, recipe.channels_last, recipe.remedy]
    name = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
    path = machine.cache_folder() / "compiling" / f"{name}.json"
    if not path.exists():
        found = trial()
        with writing(path, "VITLAB_CACHE") as temporary:
            temporary.write_text(json.dumps(found), encoding="utf-8")
    with reading(path, "delete it, and it is made again"):
        return json.loads(path.read_text(encoding="utf-8"))
