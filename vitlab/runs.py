"""Run directories: the only place where stages meet. Named by what they ran; complete once `summary.json` is there."""

import contextlib
import hashlib
import json
import pickle
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pandas as pd
import psutil
import torch
from torch import Tensor, nn

from vitlab.config import ROOT, LabError, RunConfig, parse
from vitlab.files import copy, writing
from vitlab.models import OPTIONS, best_device, build_model

# preset: a name for dim, depth, heads, mlp_ratio; channels_last: moves the last digits, as another machine does
IRRELEVANT = {"data_dir", "preset", "num_workers", "pin_memory", "channels_last"}
SMALL_FILES = ("split.npz", "environment.json", "history.csv", "predictions.npz", "summary.json")
LOCK_SECONDS = 5  # that a killed process may take to die
LOSS_WEIGHTS = {"ratio_weight", "distill_weight"}  # DynamicViT's
MODEL_ONLY = {option for options in OPTIONS.values() for option in options} | LOSS_WEIGHTS


def identity(config: RunConfig, digest: str) -> dict[str, Any]:
    """What decides a run's result: the values that its model, remedy and optimiser read, and the data's digest."""
    used = set(OPTIONS.get(config.model, ())) | (LOSS_WEIGHTS if config.model == "dynamic_vit" else set())
    skip = IRRELEVANT | (MODEL_ONLY - used)
    skip |= {"grow"} if not config.start_size else set()
    skip |= {"imbalance_ratio", "imbalance_order"} if config.imbalance == "none" else set()
    skip |= {"muon_lr"} if config.optimizer != "muon" else set()
    budgets = ("steps", "minutes", "epochs")  # the first that is given decides
    skip |= set(budgets) - {next(name for name in budgets if getattr(config, name))}
    return {name: value for name, value in config.model_dump().items() if name not in skip} | {"data": digest}


@dataclass(frozen=True)
class Run:
    """One run directory.

    config.json (resolved configuration), split.npz (which images train), environment.json (versions, machine, commit of
    each start), history.csv (a row an epoch), checkpoint.pt (to continue from), model.pt (the chosen epoch's weights),
    predictions.npz (test logits and labels), summary.json (scores; written last), events.* (TensorBoard).
    """

    path: Path

    @classmethod
    def of(cls, runs_dir: Path, config: RunConfig, digest: str) -> "Run":
        """The directory of this very configuration on these very data, whether it exists or not."""
        text = json.dumps(identity(config, digest), sort_keys=True)
        words = [config.dataset, config.model, f"{config.dim}x{config.depth}", f"seed{config.seed}"]
        return cls(runs_dir / "-".join([*words, hashlib.sha256(text.encode()).hexdigest()[:10]]))

    @property
    def complete(self) -> bool:
        return (self.path / "summary.json").exists()

    @cached_property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.path / "summary.json").read_text())

    @property
    def training_seconds(self) -> float:
        """Seconds of training, with those of the run that this one started from."""
        if not self.config.init_from:
            return self.summary["seconds"]
        start = Run(self.path.with_name(self.config.init_from))
        if not start.complete:
            raise LabError(f"{self.path} started from {start.path.name}, which is not beside it: put it there as well")
        return self.summary["seconds"] + start.training_seconds

    @cached_property
    def config(self) -> RunConfig:
        stored = json.loads((self.path / "config.json").read_text())
        return parse(RunConfig, stored["config"])

    @cached_property
    def classes(self) -> list[str]:
        return json.loads((self.path / "config.json").read_text())["classes"]

    def tested_on(self, digest: str, test_digest: str) -> bool:
        """Whether the data of `digest` have the test images of this run; `test_digest` is of these images alone."""
        stored = json.loads((self.path / "config.json").read_text())
        return stored["identity"]["data"] == digest or stored.get("test_digest") == test_digest

    @cached_property
    def history(self) -> pd.DataFrame:
        """A row an epoch: epoch, step, lr, losses, accuracy, val_loss, val_accuracy, seconds, images_per_second."""
        return pd.read_csv(self.path / "history.csv")

    @cached_property
    def predictions(self) -> tuple[np.ndarray, np.ndarray]:
        """Test logits (N, classes) float32 and labels (N,)."""
        with np.load(self.path / "predictions.npz", allow_pickle=False) as stored:
            return stored["logits"].astype(np.float32), stored["labels"]

    def model(self) -> nn.Module:
        """The trained model of the chosen epoch, on the best device, in evaluation mode."""
        stored = json.loads((self.path / "config.json").read_text())
        model = build_model(self.config, len(stored["classes"]), stored["channels"])
        model.load_state_dict(self.weights())
        return model.to(best_device()).eval()

    def weights(self) -> dict[str, Tensor]:
        path = self.path / "model.pt"
        if self.complete and not path.exists():
            raise LabError(f"{self.path} has no weights, it is a report's copy: put the whole run there, or delete it")
        return torch.load(path, weights_only=True, map_location="cpu")

    def keep(self, folder: Path) -> None:
        """Copy into `folder` what remains readable without the weights: configuration, history, predictions, scores."""
        kept = Run(folder / self.path.name)
        if (kept.path / "model.pt").exists():  # a whole run, perhaps this one
            return
        stored = json.loads((self.path / "config.json").read_text())
        # a path of this machine says nothing to another's reader, but a folder needs a name
        stored["config"]["data_dir"] = Path(stored["config"]["data_dir"]).name
        kept.write_json("config.json", stored)
        for name in SMALL_FILES:
            copy(self.path / name, kept.path / name)

    @property
    def environments(self) -> list[dict[str, Any]]:
        """Versions, machine, commit and number of processes of every start that differed from the one before."""
        path = self.path / "environment.json"
        return json.loads(path.read_text()) if path.exists() else []

    def write_arrays(self, name: str, **arrays: np.ndarray) -> None:
        with writing(self.path / name) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)

    def write_json(self, name: str, values: dict[str, Any] | list) -> None:
        with writing(self.path / name) as temporary:
            temporary.write_text(json.dumps(values, indent=2) + "\n")

    def save(self, name: str, state: dict[str, Any]) -> None:
        with writing(self.path / name) as temporary:
            torch.save(state, temporary)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Keep the checkpoint before as well: should this one turn out damaged, that one serves."""
        current = self.path / "checkpoint.pt"
        with writing(current) as temporary:
            torch.save(state, temporary)
            if current.exists():
                current.replace(self.path / "checkpoint.previous.pt")

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The newest checkpoint that is whole; None where training has come to none.

        LabError for one that may not be read, and where both are damaged: beginning anew would overwrite them.
        """
        damaged = 0
        for name in ("checkpoint.pt", "checkpoint.previous.pt"):
            path = self.path / name
            try:
                with contextlib.suppress(RuntimeError, EOFError, pickle.UnpicklingError):  # damaged
                    return torch.load(path, weights_only=True, map_location="cpu")
                damaged += 1
            except FileNotFoundError:
                continue
            except OSError as error:
                raise LabError(f"cannot read {path} ({error.strerror}): check its permissions, then go on") from None
        if damaged == 2:
            raise LabError(f"both checkpoints in {self.path} are damaged: delete them to train this run from the start")
        return None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for this process; LabError if another still trains into it."""
        try:
            with filelock.FileLock(self.path / ".lock", timeout=LOCK_SECONDS):
                for leftover in self.path.glob(".*.tmp"):  # of a process that was killed while it wrote
                    leftover.unlink()
                yield
        except filelock.Timeout:
            raise LabError(f"another process is training {self.path}: wait for it or stop it") from None


def environment() -> dict[str, Any]:
    """Versions, machine and commit, as recorded with every run and on the report's title page."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu_name()
    packages = ("torch", "torchvision", "numpy", "scikit-learn", "papermill", "nbconvert")
    return {
        "device": device,
        "cores": psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "commit": commit(),
    }


def commit() -> str:
    """The repository's commit, marked where files differ from it; "unknown" outside a repository."""
    try:
        git = ["git", "-C", str(ROOT)]
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + (" with changes" if dirty.stdout.strip() else "")


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        if cpuinfo.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()
