"""The lab as a whole: which runs each chapter makes, where they lie, how they are trained and found again."""

import difflib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache, cached_property
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import torch
import yaml
from tqdm import tqdm

from vitlab import complexity, metrics
from vitlab.config import ROOT, LabConfig, LabError, Remedy, RunConfig, absolute, from_notebook
from vitlab.data import Data, Source, load_source, split
from vitlab.files import writing
from vitlab.models import OPTIONS, SHAPE, build_model
from vitlab.optim import NARROW
from vitlab.runs import Run, environment
from vitlab.train import fit

NOTEBOOKS = {path.name[:2]: path for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))}
REMEDIES = get_args(Remedy)
BALANCED = "balanced"  # the study's upper reference: no imbalance, no remedy


@dataclass(frozen=True)
class Lab:
    """Parameters and data of one lab; the same parameters find the same runs, whichever chapter asks."""

    params: LabConfig
    source: Source

    @classmethod
    def open(cls, namespace: dict[str, Any]) -> "Lab":
        """The lab of a notebook: `Lab.open(globals())` right after its parameters cell."""
        return cls.of(from_notebook(namespace))

    @classmethod
    def of(cls, params: LabConfig) -> "Lab":
        return cls(params, load_source(params))

    @cached_property
    def runs_dir(self) -> Path:
        """Parameter runs_dir, or the environment's VITLAB_RUNS, with which tests keep away from real runs."""
        return Path(os.environ.get("VITLAB_RUNS") or absolute(self.params.runs_dir))

    @cached_property
    def data(self) -> Data:
        """The data that chapters 02 to 06 share: as they come, the parameter imbalance is for the study alone."""
        return self.data_of(self.params.run())

    def data_of(self, config: RunConfig) -> Data:
        return split(self.source, config)

    @cached_property
    def plan(self) -> dict[str, dict[str, RunConfig]]:
        """Chapter -> name -> configuration of every run but the study's. Only what a name says differs."""
        p = self.params
        vit = p.run(model="vit")
        longer = {
            "init_from": self.run_of(vit).path.name,
            "epochs": p.fine_tune_epochs,
            "minutes": 0,
            "start_size": 0,
            "lr": p.fine_tune_lr,
            "muon_lr": p.muon_lr * p.fine_tune_lr / p.lr,
        }
        other = "conv" if p.tokenizer == "patch" else "patch"
        both = {"ViT": vit, f"ViT, {other} tokenizer": vit.but(tokenizer=other)}
        if p.long_epochs:
            longest = vit.but(tokenizer="conv", epochs=p.long_epochs, minutes=0, cutout=p.long_cutout)
            both[f"ViT, conv tokenizer, {p.long_epochs} epochs"] = longest
        return {
            "02": both,
            "03": {"ViT, fine-tuned": vit.but(**longer), "DynamicViT": vit.but(model="dynamic_vit", **longer)},
            "04": {"Linear ViT": vit.but(model="linear_vit"), "Linformer ViT": vit.but(model="linformer_vit")},
        }

    @cached_property
    def study(self) -> dict[tuple[str, int], RunConfig]:
        """(remedy or BALANCED, seed) -> configuration of the imbalance study; all take the same number of steps."""
        p = self.params
        shaped = {"imbalance": self.imbalance}
        size = len(self.data_of(p.run(**shaped)).train)
        steps = p.study_epochs * max(1, size // min(p.batch_size, size))
        configs = {}
        for seed in range(p.seed, p.seed + p.study_seeds):
            if self.imbalance != "none":  # a folder that comes imbalanced has no balanced twin
                configs[BALANCED, seed] = p.run(seed=seed, steps=steps)
            for remedy in REMEDIES:
                configs[remedy, seed] = p.run(remedy=remedy, seed=seed, steps=steps, **shaped)
        return configs

    @property
    def names(self) -> list[str]:
        return [name for chapter in self.plan.values() for name in chapter]

    @cached_property
    def configs(self) -> dict[str, RunConfig]:
        """Every run by name: those of the plan, and of the study as "sampler, seed 0"."""
        study = {f"{remedy}, seed {seed}": config for (remedy, seed), config in self.study.items()}
        return {name: config for runs in self.plan.values() for name, config in runs.items()} | study

    def config(self, name: str) -> RunConfig:
        if name not in self.configs:
            near = difflib.get_close_matches(name, self.configs, n=1, cutoff=0)[0]
            raise LabError(f"there is no run {name!r}: did you mean {near!r}? All of them: {'; '.join(self.configs)}")
        return self.configs[name]

    def run_of(self, config: RunConfig) -> Run:
        return Run.of(self.runs_dir, config, self.source.digest)

    def train(self, config: RunConfig) -> Run:
        """The run of this configuration: loaded if it is complete, else trained or continued."""
        run, teacher = self.run_of(config), Run(self.runs_dir / config.init_from) if config.init_from else None
        if teacher and not teacher.complete:
            raise LabError(f"the run to start from, {config.init_from}, is not in {self.runs_dir}: {_make('02')}")
        if self.params.processes > 1 and "LOCAL_RANK" not in os.environ and not run.complete:
            self._launch(next(name for name, other in self.configs.items() if other == config))
        return fit(run, config, self.data_of(config), self.source.digest, teacher)

    def _launch(self, name: str) -> None:
        """Train a run of this lab in several processes: `accelerate launch -m vitlab.fit` does it, outside of ours."""
        _require_gpus(self.params.processes)
        with tempfile.TemporaryDirectory() as folder:
            params = Path(folder) / "params.yaml"
            params.write_text(yaml.safe_dump(self.params.but(runs_dir=str(self.runs_dir)).model_dump()))
            several = ["--multi_gpu", "--num_processes", str(self.params.processes), "--num_machines", "1"]
            usual = ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
            launch = [sys.executable, "-m", "accelerate.commands.launch", *several, *usual, "-m", "vitlab.fit"]
            told = ""
            with subprocess.Popen([*launch, "--params", params, "--run", name], stderr=subprocess.PIPE) as process:
                try:
                    while chunk := process.stderr.read1():  # the progress bar, or what went wrong
                        sys.stderr.write(text := chunk.decode(errors="replace"))
                        told = (told + text)[-20_000:]
                except BaseException:
                    process.terminate()  # killed, it would leave its processes behind
                    raise
        if process.returncode:
            lines = [line for line in told.splitlines() if "Error" in line or line.startswith("vitlab.fit:")]
            raise LabError(f"training {name!r} in {self.params.processes} processes failed: {(lines or ['?'])[0]}")

    def train_all(self, configs: dict[Any, RunConfig]) -> dict[Any, Run]:
        """The runs of several configurations. Narrow models leave all but one core idle, so they train side by side."""
        runs = {self.run_of(config).path: config for config in configs.values()}  # two names may mean one run
        todo = [config for path, config in runs.items() if not Run(path).complete]
        workers = min(len(todo), torch.get_num_threads()) if all(config.dim < NARROW for config in todo) else 1
        if workers > 1 and not torch.cuda.is_available():
            os.environ["TQDM_DISABLE"] = "1"  # for the workers, which import tqdm anew: one bar here shows all
            with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker) as pool:
                waiting = [pool.submit(_train_in_worker, self.params, config) for config in todo]
                try:
                    for done in tqdm(as_completed(waiting), "train side by side", len(todo), unit="run", leave=False):
                        done.result()
                except BaseException:  # a fault in one, or an interrupt: nobody waits for the others
                    pool.shutdown(wait=False, cancel_futures=True)
                    for worker in active_children():
                        worker.terminate()  # its checkpoint stays
                    raise
                finally:
                    del os.environ["TQDM_DISABLE"]
        return {key: self.train(config) for key, config in configs.items()}

    def load(self, name: str) -> Run:
        """A complete run by name; LabError says which notebook makes it."""
        if name in self.extra:
            return self.extra[name]
        run = self.run_of(self.config(name))
        if not run.complete:
            chapter = next((chapter for chapter, runs in self.plan.items() if name in runs), "01")
            raise LabError(f"the run {name!r} of these parameters is not in {self.runs_dir}: {_make(chapter)}")
        return run

    def load_study(self) -> dict[tuple[str, int], Run]:
        runs = {key: self.run_of(config) for key, config in self.study.items()}
        if not all(run.complete for run in runs.values()):
            raise LabError(f"the imbalance study of these parameters is not in {self.runs_dir}: {_make('01')}")
        return runs

    def measured(self, what: str, key: Any, measure: Callable[[], Any] | None) -> Any:
        """A measurement kept as a file: taken once for a key, a machine and this code, then read.

        Without `measure` it is only read, also where the code has changed since.
        """
        path, about = self._measurement(what, key)
        about["code"] = _code_measured()
        stale = not path.exists() or json.loads(path.read_text()).get("code") != about["code"]
        if stale and measure is not None:
            result = measure()
            with writing(path) as temporary:
                temporary.write_text(json.dumps(about | {"result": result}, indent=1) + "\n")
        elif not path.exists():
            raise LabError(f"{what} has not been measured in {self.runs_dir}: {_make('05')}")
        return json.loads(path.read_text())["result"]

    def _measurement(self, what: str, key: Any) -> tuple[Path, dict[str, Any]]:
        """Where a measurement on this machine is kept, and what it is of."""
        machine = environment()
        about = {"what": what, "key": key, "machine": {k: machine[k] for k in ("device", "threads", "versions")}}
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:10]
        return self.runs_dir / "complexity" / f"{what}-{digest}.json", about

    def cost(
        self, config: RunConfig, only_read: bool = False, num_classes: int = 0, channels: int = 0
    ) -> dict[str, Any]:
        """`complexity.measure` of a configuration, kept as a file; on this lab's data unless told otherwise."""
        key = self._shape(config, num_classes, channels)
        shape = key["num_classes"], key["channels"]
        return self.measured("model", key, None if only_read else lambda: complexity.measure(config, *shape))

    def cost_path(self, config: RunConfig) -> Path:
        """The file of `cost` for a configuration on this lab's data and this machine, whether it exists or not."""
        return self._measurement("model", self._shape(config))[0]

    def macs(self, config: RunConfig) -> dict[str, int]:
        """MACs of one image by component, on this lab's data."""
        return complexity.formula_macs(config, len(self.source.classes), self.data.train.pool.shape[1])

    def keep_ratio_cost(
        self, config: RunConfig, ratios: tuple[float, ...], num_classes: int = 0, channels: int = 0
    ) -> pd.DataFrame:
        """Cost of a DynamicViT by keep ratio, kept as a file; on this lab's data unless told otherwise."""
        key = self._shape(config, num_classes, channels)
        shape = key["num_classes"], key["channels"]

        def measure() -> list[dict]:
            return complexity.by_keep_ratio(config, ratios, *shape).to_dict("records")

        key |= {"ratios": ratios}
        return pd.DataFrame(self.measured("keep_ratio", key, measure))

    def _shape(self, config: RunConfig, num_classes: int = 0, channels: int = 0) -> dict[str, Any]:
        """What decides the cost of inference; number of classes and channels are this lab's unless told otherwise."""
        names = ("model", "image_size", *SHAPE, *OPTIONS.get(config.model, ()))
        return {name: getattr(config, name) for name in names} | {
            "num_classes": num_classes or len(self.source.classes),
            "channels": channels or self.source.train.pool.shape[1],
        }

    @cached_property
    def extra(self) -> dict[str, Run]:
        """Parameter extra_runs: directory's name -> a complete run of any lab, tested on the same images as ours."""
        paths = [absolute(path.strip()) for path in self.params.extra_runs.split(",") if path.strip()]
        runs = {path.name: Run(path) for path in paths}
        if len(runs) < len(paths):
            raise LabError("extra_runs: two directories have the same name, which the tables go by: rename one")
        for name, run in runs.items():
            if name in self.names:
                raise LabError(f"extra_runs: this lab has a run {name!r} of its own: rename the directory")
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
        return [*self.names, *self.extra]

    @cached_property
    def study_counts(self):
        """(classes,) training images of each class in the study."""
        return self.data_of(self.study["none", self.params.seed]).counts

    @property
    def data_name(self) -> str:
        """What the report calls the data."""
        known = {"digits": "handwritten digits (scikit-learn)", "cifar10": "CIFAR-10"}
        return self.params.data_name or known.get(self.params.dataset) or Path(self.params.data_dir).name

    @property
    def imbalance(self) -> str:
        """Profile of the study's class sizes: the parameter's, but "none" where the data come imbalanced themselves."""
        return "none" if self.source.imbalanced else self.params.imbalance

    @property
    def imbalance_name(self) -> str:
        """How the study's training data are shaped, in words, with the ratio that was reached."""
        ratio = float(self.study_counts.max() / self.study_counts.min())
        return f"{'as they come' if self.imbalance == 'none' else self.imbalance}, {ratio:.3g}:1"

    @property
    def few(self) -> int:
        """How many classes count as the commonest, and as the rarest: three, or fewer so that the two do not meet."""
        return max(1, min(3, len(self.source.classes) // 2))

    def compare(self, a: str, b: str) -> dict[str, Any]:
        """`metrics.compare` of two runs, whose predictions are of the same test images."""
        logits_a, labels = self.load(a).predictions
        return metrics.compare(logits_a, self.load(b).predictions[0], labels)


def check(params: LabConfig) -> Lab:
    """Load the data and build every model of the lab once: a wrong parameter shows before any work starts."""
    lab = Lab.of(params)
    _require_gpus(params.processes)
    for name in lab.names:
        build_model(lab.config(name), len(lab.source.classes), lab.source.train.pool.shape[1])
    _ = lab.extra
    return lab


def _require_gpus(processes: int) -> None:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else processes
    if processes > gpus:
        raise LabError(
            f"processes is {processes}, but there is a GPU for {gpus} of them: choose at most {gpus}, or hide the GPUs "
            "with CUDA_VISIBLE_DEVICES= to train on the CPU"
        )


def _train_in_worker(params: LabConfig, config: RunConfig) -> None:
    """Train in a process that loads the data itself: sent over, they would have to fit in shared memory."""
    Lab.of(params).train(config)


def _start_worker() -> None:
    """Die with the parent, or a killed one's worker would go on."""

    def follow() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@cache
def _code_measured() -> str:
    """Digest of the sources that decide what a measurement gives."""
    names = ("vit", "dynamic_vit", "linear_vit", "models", "complexity")
    return hashlib.sha256(b"".join((ROOT / "vitlab" / f"{name}.py").read_bytes() for name in names)).hexdigest()[:12]


def _make(chapter: str) -> str:
    notebook = NOTEBOOKS[chapter].relative_to(ROOT)
    return f"run {notebook} first, in JupyterLab or with `papermill {notebook} out.ipynb` and the same parameters"
