"""`Lab`: a notebook's way to its data and runs. What is missing is named, with the chapter that makes it."""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import nn

from vitlab import machine
from vitlab.analysis import metrics
from vitlab.config import LabConfig, Recipe, RunConfig
from vitlab.data.sources import load_source, recognised
from vitlab.data.splits import Data, Source
from vitlab.errors import LabError
from vitlab.files import absolute
from vitlab.kernel import complete_strings, explain_names
from vitlab.lab import cluster, workers
from vitlab.lab.costs import Costs
from vitlab.lab.noise import TrainingNoise
from vitlab.lab.plan import Plan, how_to_make
from vitlab.models.registry import MODELS, build_model
from vitlab.neighbours import give_way
from vitlab.parameters import from_notebook
from vitlab.runs import Run, complete_run, nearest_run
from vitlab.texts import listed, markdown, shown
from vitlab.training import display
from vitlab.training.fit import fit_run
from vitlab.training.progress import Budget
from vitlab.training.session import RunSession, of_other_code

Key, Made = TypeVar("Key"), TypeVar("Made")
FEW = 100  # validation images from which on the best epoch is more than chance
DATA_NAMES = {"digits": "handwritten digits (scikit-learn)", "cifar10": "CIFAR-10"}


@dataclass(frozen=True, repr=False)
class Lab:
    """Parameters and data of one lab; the same parameters find the same runs, whichever chapter asks."""

    params: LabConfig
    source: Source

    def __repr__(self) -> str:
        return f"Lab({self.data_name}, {self.params.preset}, seed {self.params.seed}, runs in {self.runs_dir})"

    @classmethod
    def open(cls, namespace: Mapping[str, Any]) -> "Lab":
        """The lab of a notebook: `Lab.open(globals())` right after its parameters cell."""
        lab = cls.of(from_notebook(namespace))
        give_way()
        explain_names(LabConfig.help())
        every, compared = (lambda: lab.plan.configs), (lambda: lab.plan.names)  # asked when somebody types
        complete_strings({"load": every, "config": every, "compare": compared})
        return lab

    @classmethod
    def of(cls, params: LabConfig) -> "Lab":
        params = recognised(params)
        return cls(params, load_source(params))

    @cached_property
    def runs_dir(self) -> Path:
        """Parameter runs_dir, or the environment's VITLAB_RUNS, with which tests keep away from real runs."""
        return Path(os.environ.get("VITLAB_RUNS") or absolute(self.params.runs_dir))

    @cached_property
    def _kept(self) -> dict[tuple, Any]:
        return {}

    def _of_models(self, what: type[Made], make: Callable[[], Made]) -> Made:
        """What was made for the rows of MODELS as they are now: a reader may put one there at any time."""
        key = what, *((name, id(row)) for name, row in MODELS.items())
        return self._kept[key] if key in self._kept else self._kept.setdefault(key, make())

    @property
    def plan(self) -> Plan:
        return self._of_models(Plan, lambda: Plan(self.params, self.source))

    @property
    def costs(self) -> Costs:
        """Of models for this lab's data; those of the plan are measured together."""
        return self._of_models(Costs, self._costs)

    def _costs(self) -> Costs:
        together = tuple(self.plan.config(name) for name in self.plan.names)
        shape = len(self.source.classes), self.data.channels
        return Costs(self.runs_dir / "complexity", *shape, together, self.params.measurement, self.params.rounds)

    @cached_property
    def data(self) -> Data:
        """The data that chapters 02 to 06 share, as they come: an imbalance of ours is for the study alone."""
        return self.data_of(self.params.run())

    def data_of(self, config: RunConfig) -> Data:
        return self.plan.data_of(config)

    @property
    def data_name(self) -> str:
        """What the report calls the data."""
        known = DATA_NAMES.get(self.params.dataset)
        return self.params.data_name or known or shown(absolute(self.params.data_dir).name)

    @property
    def data_title(self) -> str:
        """The same as Markdown."""
        return markdown(self.data_name)

    @cached_property
    def notes(self) -> list[str]:
        """What a reader has to know of the data: what was done to them, and which letters cannot be drawn."""
        from vitlab.analysis import typefaces  # here, as nothing else of a training draws

        missing = typefaces.note([*self.source.classes, self.data_name, self.params.notes])
        notes = [*self.source.notes, *([missing] if missing else [])]
        if self.params.val_fraction and not len(self.data.val):
            notes.append(
                "No image is left for validation, as a class has no two pictures of its own to part: every model keeps "
                "its last epoch, not its best."
            )
        if 0 < len(self.data.val) < FEW:
            one = f"one of them is worth {100 / len(self.data.val):.1f} points"
            notes.append(f"Only {len(self.data.val)} validation images choose the epochs: {one}.")
        return notes

    @property
    def remarks(self) -> str:
        """`notes` as Markdown."""
        return markdown(" ".join(self.notes))

    # ------------------------------------------------ training

    def train(self, configs: Mapping[Key, RunConfig]) -> dict[Key, Run]:
        """The runs of several configurations: loaded if they are complete, else trained or continued."""
        todo = self.missing(configs.values())
        with display.viewed(*map(self.name_of, todo)):
            self.train_at_once(todo)
            runs = {key: self.train_one(config) for key, config in configs.items()}
        self.tell_of_other_code(runs.values())
        return runs

    def tell_of_other_code(self, runs: Iterable[Run]) -> None:
        """Print which runs were trained by other code than today's: a run is known by its parameters and data."""
        if old := {run.path: self.name_of(run.config) for run in runs if of_other_code(run)}:
            few = len(old) <= 3
            which = listed(old.values()) if few else f"{len(old)} runs"
            where = listed(path.name for path in old) if few else "their folders"
            print(
                f"Trained before the code of models, losses or training was changed: {which}. To train anew, delete "
                f"{where} in {self.runs_dir}, or name another runs_dir."
            )

    def missing(self, configs: Iterable[RunConfig]) -> list[RunConfig]:
        """Those that are not trained yet, the longest first: begun last, it would train on alone."""
        runs = {self.run_of(config).path: config for config in configs}  # two names may mean one run
        for config in runs.values():
            self.require_possible(config)
        todo = [config for path, config in runs.items() if not Run(path).complete]
        return sorted(todo, key=self._work, reverse=True)

    def train_at_once(self, todo: Sequence[RunConfig]) -> None:
        """Train these on the cluster or in processes side by side; where one would train after the other, none."""
        todo = [config for config in todo if not MODELS[config.model].from_outside]
        begun = {self.run_of(config).path.name for config in todo}
        waves = [[c for c in todo if c.init_from not in begun], [c for c in todo if c.init_from in begun]]
        images = len(self.source.train)
        with display.viewed(*map(self.name_of, todo)) as view:
            if self.params.cluster:
                for wave in filter(None, waves):
                    starts = [self.start_of(config) for config in wave]
                    cluster.train(self.params, self.runs_dir, list(zip(wave, starts, strict=True)), images, view)
            elif self.params.processes == 1 and (at_once := workers.fitting(todo, images)) > 1:
                tasks = [[(self.params, config) for config in wave] for wave in waves]
                workers.side_by_side(_train_in_worker, tasks, at_once, view)

    def _work(self, config: RunConfig) -> float:
        """Multiply-adds of a training, but for a factor."""
        budget = Budget(config, self.plan.num_train(config))
        return budget.steps * budget.batch_size * sum(self.costs.macs(config).values())

    def train_chapter(self, chapter: str) -> dict[str, Run]:
        """A chapter's runs of the lab's first seed, by name, after those of all `seeds` are complete."""
        mine = self.plan.chapters[chapter]
        runs = self.train({(name, i): c for name in mine for i, c in enumerate(self.plan.repeats[name])})
        return {name: runs[name, 0] for name in mine}

    def require_possible(self, config: RunConfig) -> None:
        """LabError for what would fail in the midst of training: batch norm over one value, no compiler."""
        share = min(config.batch_size, self.plan.num_train(config)) // self.params.processes
        piece = -(-share // config.accumulate)  # as torch cuts them, the last one the smallest
        pixels = ((config.start_size or config.image_size) // config.patch_size) ** 2
        if config.tokenizer != "patch" and pixels * (share - (-(-share // piece) - 1) * piece) < 2:
            raise LabError(
                "a convolutional tokenizer (chapter 02) would meet a piece of a batch with one image of one token, "
                f"which batch norm cannot take: image_size {config.image_size}, patch_size {config.patch_size}, "
                f"batch_size {config.batch_size}, accumulate {config.accumulate}; use larger images or smaller "
                "patches, larger batches or fewer pieces"
            )
        if config.compile is True:
            machine.require_compiler()

    def start_of(self, config: RunConfig) -> Run | None:
        """The complete run whose weights this one begins with, if there is one."""
        if config.init_from != Path(config.init_from).name:
            raise LabError(
                f"init_from {config.init_from!r} is a path: put that run's directory into {self.runs_dir}, where the "
                "one that starts from it lies as well, and give its name alone"
            )
        start = Run(self.runs_dir / config.init_from) if config.init_from else None
        if start and not start.complete:
            known = (name for name, other in self.plan.configs.items() if self.run_of(other).path == start.path)
            name = next(known, config.init_from)
            raise LabError(f"the run to start from, {name!r}, is not in {self.runs_dir}: {how_to_make('02')}")
        return start

    def train_one(self, config: RunConfig) -> Run:
        run, start = self.run_of(config), self.start_of(config)
        if self.params.processes > 1 and machine.launched_processes() == 1 and not run.complete:
            machine.require_gpus(self.params.processes)
            name = next((name for name, other in self.plan.configs.items() if other == config), None)
            if name is None:
                raise LabError("several processes train the runs of the plan alone: set processes to 1 for this one")
            workers.launch(self.params, self.runs_dir, name)
        session = partial(RunSession, title=self.name_of(config))
        return fit_run(run, config, self.data_of(config), start, session)

    def name_of(self, config: RunConfig) -> str:
        """What this lab calls a run, such as "ViT, conv tokenizer"."""
        path = self.run_of(config).path
        names = (name for name, other in self.plan.configs.items() if self.run_of(other).path == path)
        return next(names, MODELS[config.model].title)

    def session(self, module: nn.Module, recipe: Recipe, teacher: nn.Module | None = None) -> RunSession:
        """Keeps the training of a module of your own, on this lab's data, as a run beside the others.

        It is for this very module, recipe, teacher and `lab.data`: `fit` takes it for no others. The module is known
        by its code, its shapes and its attributes, but for tensors and arrays: what `forward` counts or notes in an
        attribute makes a module that has run another one than a fresh one.
        """
        modules = isinstance(module, nn.Module) and isinstance(teacher, nn.Module | None)
        if not modules or not isinstance(recipe, Recipe) or isinstance(recipe, RunConfig):
            raise LabError(
                "lab.session takes a module, its recipe and perhaps a module as teacher, lab.session(net, "
                "lab.params.recipe(epochs=10)): the configuration of a run is for the lab's own models, which "
                "lab.train_one(config) trains"
            )
        run = Run.of_module(self.runs_dir, module, recipe, self.data, teacher)
        return RunSession(run, title=type(module).__name__, module=module)

    # ------------------------------------------------ what was made before

    def run_of(self, config: RunConfig) -> Run:
        return Run.of(self.runs_dir, config, self.source.digest)

    def load(self, name: str) -> Run:
        """A complete run by name, or by its directory; LabError says which notebook makes it, and what the nearest run
        differs in.
        """
        if isinstance(name, str) and name in self.extra:
            return self.extra[name]
        named = isinstance(name, Path) or (isinstance(name, str) and name not in self.plan.configs)
        if named and (there := complete_run([self.runs_dir / name, absolute(name)])):
            return there
        run = self.run_of(self.plan.config(name))
        if not run.complete:
            what = f"the run {name!r} of these parameters is not in {self.runs_dir}"
            near = nearest_run(self.runs_dir, self.plan.config(name), self.source.digest)
            raise LabError(f"{what}{near}: {how_to_make(self.plan.chapter_of(name))}")
        return run

    def load_seeds(self, name: str) -> list[Run]:
        """The complete runs of this name, one a seed; an extra run is alone."""
        if name in self.extra:
            return [self.extra[name]]
        if name not in self.plan.configs and complete_run([self.runs_dir / name]):
            raise LabError(f"{name!r} is in no chapter's plan: name its directory in extra_runs, and it is compared")
        self.plan.config(name)  # or an error that names the nearest
        further = [f"{name}, seed {config.seed}" for config in self.plan.repeats[name][1:]]
        return [self.load(which) for which in (name, *further)]

    def curves(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """What `plots.training_curves` draws of these runs: histories, epochs kept, histories of further seeds."""
        runs = {name: self.load_seeds(name) for name in names}
        return {
            "histories": {name: first.history for name, (first, *_) in runs.items()},
            "chosen": {name: first.summary["epoch"] for name, (first, *_) in runs.items()},
            "others": {name: [run.history for run in further] for name, (_, *further) in runs.items()},
        }

    def load_study(self, shape: str = "") -> dict[tuple[str, int], Run]:
        """(remedy or BALANCED, seed) -> complete run of the study of these class sizes, by default the first ones."""
        study = self.plan.studies[shape] if shape else self.plan.study
        runs = {key: self.run_of(config) for key, config in study.items()}
        missing = [key for key, run in runs.items() if not run.complete]
        if missing:
            one = study[missing[-1]]  # the first is balanced, whatever the study's ratio
            near = nearest_run(self.runs_dir, one, self.source.digest)
            what = f"the imbalance study of these parameters is not in {self.runs_dir}"
            raise LabError(f"{what}{near}: {how_to_make('01')}")
        return runs

    @property
    def studied(self) -> list[Run]:
        """The runs of all studies, each once: those of further class sizes share the balanced ones."""
        runs = [run for shape in self.plan.studies for run in self.load_study(shape).values()]
        return list({run.path: run for run in runs}.values())

    @cached_property
    def extra(self) -> dict[str, Run]:
        """Parameter extra_runs: directory's name -> a complete run of any lab, tested on the same images as ours."""
        paths = [absolute(path.strip()) for path in self.params.extra_runs.split(",") if path.strip()]
        runs = {path.name: Run(path) for path in paths}
        if len(runs) < len(paths):
            raise LabError("extra_runs: two directories have the same name, which the tables go by: rename one")
        for name, run in runs.items():
            if name in self.plan.names:
                raise LabError(f"extra_runs: this lab has a run {name!r} of its own: rename the directory")
            if name.startswith("_"):
                raise LabError(f"extra_runs: {name} begins with _, and legends leave out such names: rename it")
            if not run.complete:
                raise LabError(f"extra_runs: {run.path} is no complete run, it has no summary.json")
            same = run.tested_on(self.source.digest, self.source.test.digest)
            if not same or run.classes != list(self.source.classes):
                raise LabError(f"extra_runs: {name} was tested on other images, which no paired test can compare")
            _ = run.training_seconds  # reads its configuration, and the run it started from
        return runs

    @property
    def compared(self) -> list[str]:
        """Names of all runs that chapter 06 compares."""
        return [*self.plan.names, *self.extra]

    def compare(self, a: str, b: str, everywhere: bool = False) -> dict[str, Any]:
        """`metrics.compare` of two models, of the same test images, seed by seed; everywhere: `TrainingNoise.of`."""
        first, second, labels = self.paired(a, b)
        noise = {score: self.training_noise(a, b, score, everywhere) for score in ("accuracy", "macro_f1")}
        return metrics.compare(first, second, labels, self._draw, noise)

    def training_noise(self, a: str, b: str, score: str, everywhere: bool = False) -> tuple[float, float]:
        """`metrics.training_noise` for two models, "accuracy", "macro_f1" or "recall": `TrainingNoise.of`."""
        return self._of_models(TrainingNoise, lambda: TrainingNoise(self)).of(a, b, score, everywhere)

    def speed(self, name: str, reference: str, what: str = "images_per_second") -> tuple[float, float]:
        """`Costs.ratio` of two compared models, as they were measured; NaN where the cost of one of them is unknown."""
        names = name, reference
        one, other = (self.extra[n].config if n in self.extra else self.plan.config(n) for n in names)
        if not isinstance(one, RunConfig) or not isinstance(other, RunConfig):
            return math.nan, math.nan
        return self.costs.ratio(one, other, what, only_read=True)

    def paired(self, a: str, b: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(S, N, C) logits of two models, of the seeds that both have, and the (N,) labels."""
        runs = list(zip(self.load_seeds(a), self.load_seeds(b), strict=False))
        first, second = (np.stack([run.predictions[0] for run in one]) for one in zip(*runs, strict=True))
        return first, second, runs[0][0].predictions[1]

    @cached_property
    def _drawn(self) -> dict[bytes, np.ndarray]:
        return {}

    def _draw(self, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """`metrics.resampled`, once for each run's answers: every model is compared with every other."""
        key = hashlib.sha256(logits.argmax(1).tobytes()).digest()
        if key not in self._drawn:
            self._drawn[key] = metrics.resampled(logits, labels)
        return self._drawn[key]


def _train_in_worker(params: LabConfig, config: RunConfig) -> None:
    Lab.of(params).train_one(config)


def check(params: LabConfig) -> Lab:
    """Load the data and build every model of the lab once: a wrong parameter shows before any work starts."""
    lab = Lab.of(params)
    machine.device(params.device)
    machine.require_gpus(params.processes)
    for name in lab.plan.names:
        build_model(lab.plan.config(name), len(lab.source.classes), lab.data.channels)
    for config in lab.plan.configs.values():
        lab.require_possible(config)
    _ = lab.extra
    return lab
