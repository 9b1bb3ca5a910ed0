"""The lab as a whole: which runs each chapter makes, where they lie, and the tables that several chapters read."""

import difflib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch
import yaml
from tqdm import tqdm

from vitlab import complexity, losses, metrics
from vitlab.augment import epoch_order
from vitlab.config import ROOT, LabConfig, LabError, Remedy, RunConfig, absolute, from_notebook
from vitlab.data import Data, Source, load_source, split
from vitlab.files import writing
from vitlab.models import OPTIONS, build_model
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
        """The balanced data that chapters 02 to 06 share."""
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
        return {
            "02": {"ViT": vit, f"ViT, {other} tokenizer": vit.but(tokenizer=other)},
            "03": {"ViT, trained on": vit.but(**longer), "DynamicViT": vit.but(model="dynamic_vit", **longer)},
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
        run, teacher = self.run_of(config), self.load("ViT") if config.init_from else None
        if self.params.processes > 1 and "LOCAL_RANK" not in os.environ and not run.complete:
            self._launch(next(name for name, other in self.configs.items() if other == config))
        return fit(run, config, self.data_of(config), self.source.digest, teacher)

    def _launch(self, name: str) -> None:
        """Train a run of this lab in several processes: `accelerate launch -m vitlab.fit` does it, outside of ours."""
        with tempfile.TemporaryDirectory() as folder:
            params = Path(folder) / "params.yaml"
            params.write_text(yaml.safe_dump(self.params.but(runs_dir=str(self.runs_dir)).model_dump()))
            several = ["--multi_gpu", "--num_processes", str(self.params.processes), "--num_machines", "1"]
            usual = ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
            launch = [sys.executable, "-m", "accelerate.commands.launch", *several, *usual, "-m", "vitlab.fit"]
            done = subprocess.run(
                [*launch, "--params", params, "--run", name], stderr=subprocess.PIPE, text=True, check=False
            )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "Error" in line or line.startswith("vitlab.fit:")]
            raise LabError(f"training {name!r} in {self.params.processes} processes failed: {(lines or ['?'])[0]}")

    def train_all(self, configs: dict[Any, RunConfig]) -> dict[Any, Run]:
        """The runs of several configurations. Narrow models leave all but one core idle, so they train side by side."""
        todo = [config for config in configs.values() if not self.run_of(config).complete]
        workers = min(len(todo), torch.get_num_threads()) if all(config.dim < NARROW for config in todo) else 1
        if workers > 1 and not torch.cuda.is_available():
            os.environ["TQDM_DISABLE"] = "1"  # for the workers, which import tqdm anew: one bar here shows all
            with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker) as pool:
                waiting = [pool.submit(_train_in_worker, self.params, config) for config in todo]
                for done in tqdm(as_completed(waiting), "train side by side", len(waiting), unit="run", leave=False):
                    done.result()
            del os.environ["TQDM_DISABLE"]
        return {key: self.train(config) for key, config in configs.items()}

    def load(self, name: str) -> Run:
        """A complete run by name; LabError says which notebook makes it."""
        if name in self.extra:
            return self.extra[name]
        run = self.run_of(self.config(name))
        if not run.complete:
            chapter = next(chapter for chapter, runs in self.plan.items() if name in runs)
            raise LabError(f"the run {name!r} of these parameters is not in {self.runs_dir}: {_make(chapter)}")
        return run

    def load_study(self) -> dict[tuple[str, int], Run]:
        runs = {key: self.run_of(config) for key, config in self.study.items()}
        if not all(run.complete for run in runs.values()):
            raise LabError(f"the imbalance study of these parameters is not in {self.runs_dir}: {_make('01')}")
        return runs

    def measured(self, what: str, key: Any, measure: Callable[[], Any] | None) -> Any:
        """A measurement kept as a file: taken once for a key and machine, then read. Without `measure` only read."""
        machine = environment()
        about = {"what": what, "key": key, "machine": {k: machine[k] for k in ("device", "threads", "versions")}}
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:10]
        path = self.runs_dir / "complexity" / f"{what}-{digest}.json"
        if not path.exists():
            if measure is None:
                raise LabError(f"{what} has not been measured in {self.runs_dir}: {_make('05')}")
            result = measure()
            with writing(path) as temporary:
                temporary.write_text(json.dumps(about | {"result": result}, indent=1) + "\n")
        return json.loads(path.read_text())["result"]

    def cost(
        self, config: RunConfig, only_read: bool = False, num_classes: int = 0, channels: int = 0
    ) -> dict[str, Any]:
        """`complexity.measure` of a configuration, kept as a file; on this lab's data unless told otherwise."""
        num_classes = num_classes or len(self.source.classes)
        channels = channels or self.source.train.pool.shape[1]
        key = _shape(config) | {"num_classes": num_classes, "channels": channels}
        return self.measured(
            "model", key, None if only_read else lambda: complexity.measure(config, num_classes, channels)
        )

    def macs(self, config: RunConfig) -> dict[str, int]:
        """MACs of one image by component, on this lab's data."""
        return complexity.formula_macs(config, len(self.source.classes), self.data.train.pool.shape[1])

    def keep_ratio_cost(
        self, config: RunConfig, ratios: tuple[float, ...], num_classes: int = 0, channels: int = 0
    ) -> pd.DataFrame:
        """Cost of a DynamicViT by keep ratio, kept as a file; on this lab's data unless told otherwise."""
        num_classes = num_classes or len(self.source.classes)
        channels = channels or self.source.train.pool.shape[1]

        def measure() -> list[dict]:
            return complexity.by_keep_ratio(config, ratios, num_classes, channels).to_dict("records")

        key = _shape(config) | {"ratios": ratios, "num_classes": num_classes, "channels": channels}
        return pd.DataFrame(self.measured("keep_ratio", key, measure))

    @cached_property
    def extra(self) -> dict[str, Run]:
        """Parameter extra_runs: directory's name -> a complete run of any lab, tested on the same images as ours."""
        paths = [absolute(path.strip()) for path in self.params.extra_runs.split(",") if path.strip()]
        runs = {path.name: Run(path) for path in paths}
        for name, run in runs.items():
            if not run.complete:
                raise LabError(f"extra_runs: {run.path} is no complete run, it has no summary.json")
            labels = run.predictions[1]
            if run.classes != list(self.source.classes) or not np.array_equal(labels, self.source.test.labels):
                raise LabError(f"extra_runs: {name} was tested on other images, which no paired test can compare")
        return runs

    @property
    def compared(self) -> list[str]:
        """Names of all runs that chapter 06 compares."""
        return [*self.names, *self.extra]

    def results(self) -> pd.DataFrame:
        """What each compared run scores and costs, the most accurate first. Only extra runs' cost may be measured."""
        rows = []
        for name in self.compared:
            run = self.load(name)
            test = metrics.scores(*run.predictions)
            cost = self.cost(run.config, only_read=name not in self.extra)
            rows.append(
                {
                    "model": name,
                    "accuracy": test["accuracy"],
                    "accuracy_low": test["interval"][0],
                    "accuracy_high": test["interval"][1],
                    "macro_f1": test["f1"]["macro"],
                    "macro_f1_low": test["f1_interval"][0],
                    "macro_f1_high": test["f1_interval"][1],
                    "top_2": test["top_2"],
                    "calibration_error": test["calibration_error"],
                    "parameters": cost["parameters"],
                    "macs": cost["macs"],
                    "latency_ms": cost["latency_ms"],
                    "images_per_second": cost["images_per_second"],
                    "training_seconds": run.summary["seconds"],
                    "epochs": run.summary["epochs"],
                    "epoch_chosen": run.summary["epoch"],
                    "test_images": test["n"],
                    "seed": run.config.seed,
                    "run": run.path.name,
                }
            )
        return pd.DataFrame(rows).sort_values("accuracy", ascending=False, kind="stable", ignore_index=True)

    def pairs(self) -> pd.DataFrame:
        """`compare` of every two compared runs, columns a and b; p is corrected for making all these tests (Holm)."""
        names = combinations(self.compared, 2)
        frame = pd.DataFrame([{"a": a, "b": b, **self.compare(a, b)} for a, b in names])
        return frame.assign(p=metrics.holm(frame["p"].to_numpy()))

    def recall_differences(self, reference: str) -> pd.DataFrame:
        """Model, class, recall's difference to `reference`'s, and McNemar's p within the class, Holm over the table."""
        rows = []
        base, labels = self.load(reference).predictions
        for name in self.compared:
            logits = self.load(name).predictions[0]
            for k, title in enumerate(self.source.classes if name != reference else ()):
                two = metrics.mcnemar(base[labels == k], logits[labels == k], labels[labels == k])
                difference = (two["only_b"] - two["only_a"]) / max(1, (labels == k).sum())
                rows.append({"model": name, "class": title, "difference": difference, "p": two["p"]})
        frame = pd.DataFrame(rows)
        return frame.assign(p=metrics.holm(frame["p"].to_numpy()))

    def remedy_effects(self) -> pd.DataFrame:
        """What each remedy does before any training, a row a remedy and class, the commonest class first.

        drawn: the class's share of the images really drawn in the first epoch; weight: of its loss; share: of the
        whole loss, drawn times weight; shift: added to its logit.
        """
        train, counts = self.data_of(self.study["none", self.params.seed]).train, self.study_counts
        rows = []
        for remedy in REMEDIES:
            weights = losses.sampling_weights(remedy, train.labels, counts)
            order = epoch_order(train.labels, weights, self.params.seed, epoch=0)
            drawn = train.labels[order].bincount(minlength=len(counts)) / len(order)
            weight = losses.class_weights(remedy, counts)
            weight = torch.ones(len(counts)) if weight is None else weight
            shift = losses.logit_shift(remedy, counts)
            shift = torch.zeros(len(counts)) if shift is None else shift
            columns = {
                "drawn": drawn,
                "weight": weight,
                "share": drawn * weight / (drawn * weight).sum(),
                "shift": shift,
            }
            rows.append(pd.DataFrame({"remedy": remedy, "class": self.source.classes, "images": counts} | columns))
        return pd.concat(rows).sort_values("images", ascending=False, kind="stable").reset_index(drop=True)

    def study_scores(self) -> pd.DataFrame:
        """A row for each run of the study: scores, recall of common and rare classes, with <name>_low and _high."""
        rows = []
        for (remedy, seed), run in self.load_study().items():
            logits, labels = run.predictions
            order = self._commonest_first(seed)
            row = {"remedy": remedy, "seed": seed, **self._study_row(metrics.confusion(logits, labels), order)}
            for name, values in self._study_row(metrics.resampled(logits, labels), order).items():
                row[f"{name}_low"], row[f"{name}_high"] = metrics.interval(values)
            right = int((logits.argmax(1) == labels).sum())
            row["accuracy_low"], row["accuracy_high"] = metrics.wilson(right, len(labels))
            error = metrics.calibration_error(logits, labels)
            rows.append(row | {"calibration_error": error, "run": run.path.name})
        return pd.DataFrame(rows)

    def _study_row(self, confusion: np.ndarray, order: np.ndarray) -> dict[str, np.ndarray]:
        """Scores of confusion matrices (..., C, C); order: the classes, the commonest first."""
        recall = metrics.recall(confusion)
        return {
            "accuracy": metrics.accuracy(confusion),
            "balanced_accuracy": recall.mean(-1),
            "macro_f1": metrics.macro_f1(confusion),
            "recall_common": recall[..., order[: self.few]].mean(-1),
            "recall_rare": recall[..., order[-self.few :]].mean(-1),
        }

    def study_recall(self) -> pd.DataFrame:
        """Recall by class (rows, the commonest first) and remedy (columns), the mean over the seeds.

        Where seeds draw their own rare classes, a row is the k-th commonest, named by its number of images.
        """
        orders = {seed: self._commonest_first(seed) for _, seed in self.study}
        recalls = defaultdict(list)
        for (remedy, seed), run in self.load_study().items():
            recalls[remedy].append(metrics.recall(metrics.confusion(*run.predictions))[orders[seed]])
        names = [self.source.classes[k] for k in orders[self.params.seed]]
        if len({tuple(order) for order in orders.values()}) > 1:
            names = [f"{n:,} images" for n in self.study_counts.sort(descending=True).values]
        frame = pd.DataFrame({remedy: np.mean(values, 0) for remedy, values in recalls.items()}, index=names)
        return frame[["none", *frame.columns.drop("none")]]

    def _commonest_first(self, seed: int) -> np.ndarray:
        """(C,) classes by falling number of images in the study's imbalanced runs with this seed."""
        return self.data_of(self.study["none", seed]).counts.argsort(descending=True, stable=True).numpy()

    def study_f1(self) -> tuple[dict[str, list[float]], dict[str, np.ndarray]]:
        """Remedy -> macro F1 of each seed; and remedy -> (resamples,) the seeds' mean in the paired bootstrap."""
        f1, drawn = defaultdict(list), defaultdict(list)
        for (remedy, _), run in self.load_study().items():
            f1[remedy].append(float(metrics.macro_f1(metrics.confusion(*run.predictions))))
            drawn[remedy].append(metrics.macro_f1(metrics.resampled(*run.predictions)))
        return f1, {remedy: np.mean(values, 0) for remedy, values in drawn.items()}

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
    for name in lab.names:
        build_model(lab.config(name), len(lab.source.classes), lab.source.train.pool.shape[1])
    _ = lab.extra
    return lab


def _train_in_worker(params: LabConfig, config: RunConfig) -> None:
    """Train in a process that loads the data itself: sent over, they would have to fit in shared memory."""
    Lab.of(params).train(config)


def _start_worker() -> None:
    """Die with the parent, or a killed one's worker would go on."""

    def follow() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _shape(config: RunConfig) -> dict[str, Any]:
    """What of a configuration decides the cost of inference."""
    names = ("model", "image_size", "dim", "depth", "heads", "mlp_ratio", "patch_size", "tokenizer", "pool")
    return {name: getattr(config, name) for name in (*names, "positions", *OPTIONS.get(config.model, ()))}


def _make(chapter: str) -> str:
    notebook = NOTEBOOKS[chapter].relative_to(ROOT)
    return f"run {notebook} first, in JupyterLab or with `papermill {notebook} out.ipynb` and the same parameters"
