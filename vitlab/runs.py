"""Run directories: the files between stages. Named by what they ran; complete once `summary.json` is there."""

import contextlib
import hashlib
import io
import json
import textwrap
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pandas as pd
import safetensors.torch
import torch
from torch import Tensor, nn

from vitlab import machine
from vitlab.config import Recipe, RunConfig, parse
from vitlab.data.batches import to_float
from vitlab.data.pictures import as_pixels
from vitlab.data.splits import Data
from vitlab.errors import LabError
from vitlab.files import DAMAGE, UNREADABLE, copy, reading, writing
from vitlab.identity import identity, module_identity, teacher_identity
from vitlab.models.registry import MODELS, build_model
from vitlab.texts import listed

SMALL_FILES = ("split.npz", "environment.json", "history.csv", "predictions.npz", "summary.json")
OWN = "own-"  # what the directories of modules of the reader's own begin with
LOCK_SECONDS = 5  # that a killed process may take to die


@dataclass(frozen=True, repr=False)
class Prediction:
    """The answer to one picture: class -> probability, the likeliest first; and what was done to the picture."""

    probabilities: pd.Series
    remark: str = ""

    @property
    def answer(self) -> str:
        return str(self.probabilities.index[0])

    def __repr__(self) -> str:
        first = ", ".join(f"{name} {share:.1%}" for name, share in self.probabilities.iloc[:3].items())
        return f"{first}. {self.remark}".rstrip()


@dataclass(frozen=True)
class Run:
    """One run directory.

    config.json (resolved configuration), split.npz (which images train), environment.json (versions, machine, commit of
    each start), history.csv (a row an epoch), checkpoint.pt (to continue from), model.pt (the chosen epoch's weights),
    predictions.npz (test logits, less each image's largest, and labels), summary.json (scores; written last), events.*
    (TensorBoard). A report's copy has the small files, and that of its best ViT model.safetensors.
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))  # a text will do

    @classmethod
    def of(cls, runs_dir: Path, config: RunConfig, digest: str) -> "Run":
        """The directory of this very configuration on these very data, whether it exists or not."""
        shape = [f"{config.dim}x{config.depth}"] if MODELS[config.model].is_vit else []
        words = [config.dataset, config.model, *shape, f"seed{config.seed}"]
        return cls(runs_dir / f"{'-'.join(words)}-{_hash(identity(config, digest))}")

    @classmethod
    def of_module(
        cls, runs_dir: Path, module: nn.Module, recipe: Recipe, data: Data, teacher: nn.Module | None = None
    ) -> "Run":
        """The directory of a module of the reader's own, trained by this recipe on these very images."""
        known = module_identity(module)
        settings = _hash(known.pop("settings"))[:6]  # apart, as a forward pass may change some
        what = identity(recipe, data.digest) | {"module": known, "train": data.train.digest}
        what |= {"teacher": teacher_identity(teacher)} if teacher is not None else {}
        return cls(runs_dir / f"{OWN}{type(module).__name__}-seed{recipe.seed}-{_hash(what)}-{settings}")

    def require_of_module(
        self, module: nn.Module, recipe: Recipe, data: Data, teacher: nn.Module | None, same: bool
    ) -> None:
        """LabError for a directory that `of_module` has named, but for another module, recipe, data or teacher.

        same: it is the very instance that was asked for, of which a look at some images may have changed a setting.
        """
        if not self.path.name.startswith(OWN):
            return
        names = [self.path.name, Run.of_module(self.path.parent, module, recipe, data, teacher).path.name]
        if len({name.rpartition("-")[0] if same else name for name in names}) == 2:
            raise LabError(
                f"the session of {self.path.name} was opened for another module, recipe, data or teacher than fit was "
                "given: open one with lab.session(net, recipe), with a teacher lab.session(net, recipe, teacher), then "
                "call fit(net, lab.data, recipe, session, teacher); on other data than lab.data fit keeps nothing"
            )

    @property
    def complete(self) -> bool:
        return (self.path / "summary.json").exists()

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[Path]:
        """A file of a complete run; LabError where it is missing or damaged, with what to do."""
        again = f"delete the folder {self.path} to have this run trained again, or put a whole copy there"
        with reading(self.path / name, again) as path:
            yield path

    @contextlib.contextmanager
    def of_this_code(self) -> Iterator[None]:
        """LabError where what other code has kept here does not fit today's."""
        try:
            yield
        except (LabError, *DAMAGE) as error:
            model = self.record["config"].get("model")
            if model is not None and model not in MODELS:
                raise LabError(
                    f"{self.path} is a run of {model!r}, a row that a notebook put into MODELS: use it there, as by "
                    "lab.load(…).predict(…), or where it is put there again"
                ) from None
            why = textwrap.shorten(str(error), 200, placeholder=" …")
            raise LabError(
                f"{self.path} was made by other code, whose files today's does not take ({why}): go back to the commit "
                "in its environment.json, or delete the folder to have this run trained again"
            ) from None

    @cached_property
    def summary(self) -> dict[str, Any]:
        with self._reading("summary.json") as path:
            return _mapping(path)

    @property
    def training_seconds(self) -> float:
        """Seconds of training, with those of the run that this one started from."""
        return self.spent("seconds")

    def spent(self, what: str) -> float:
        """What the summary has of "seconds" or "epochs", with that of the run that this one started from."""
        return self.summary[what] + sum(start.summary[what] for start in self.starts())

    def starts(self) -> "list[Run]":
        """The runs that this one started from, one from the other; LabError if one is not beside it."""
        init_from = self.record["config"].get("init_from")
        if not init_from:
            return []
        start = Run(self.path.with_name(init_from))
        if not start.complete:
            raise LabError(f"{self.path} started from {start.path.name}, which is not beside it: put it there as well")
        return [start, *start.starts()]

    @cached_property
    def record(self) -> dict[str, Any]:
        """config.json: enough to build the model, to name the run again, and to know which images tested it."""
        with self._reading("config.json") as path:
            return _mapping(path)

    @cached_property
    def config(self) -> Recipe:
        """A `RunConfig`; of a module of the reader's own its `Recipe`."""
        kind, values = Recipe if "module" in self.record else RunConfig, self.record["config"]
        with self.of_this_code():
            return parse(kind, values)

    @property
    def classes(self) -> list[str]:
        return self.record["classes"]

    def write_record(self, config: Recipe, data: Data, module: Mapping[str, Any]) -> None:
        """config.json and split.npz; `module` is the identity of a module of the reader's own."""
        own = {} if isinstance(config, RunConfig) else {"module": module}
        record = {"config": config.model_dump(), "identity": identity(config, data.digest), **own}
        record |= {"test_digest": data.test.digest, "classes": list(data.classes), "channels": data.channels}
        record |= {"image_size": data.train.pool.shape[-1]} | ({"rule": data.rule} if data.rule else {})
        self.write_json("config.json", record | {"counts": data.class_counts.tolist()})
        self.write_arrays("split.npz", train=data.train.index.int().numpy())

    def tested_on(self, digest: str, test_digest: str) -> bool:
        """Whether the data of `digest` have the test images of this run; `test_digest` is of these images alone."""
        return self.record["identity"]["data"] == digest or self.record["test_digest"] == test_digest

    @cached_property
    def history(self) -> pd.DataFrame:
        """A row an epoch: epoch, step, lr, loss and its parts, accuracy, seconds of training so far, images_per_second,
        and of validation images val_loss, val_accuracy, val_macro_f1.
        """
        with self._reading("history.csv") as path:
            text = path.read_text(encoding="utf-8")
            rows = pd.read_csv(io.StringIO(text))
            if not text.endswith("\n") or rows["epoch"].max() != self.summary["epochs"]:
                raise ValueError("cut short")
            return rows

    @cached_property
    def predictions(self) -> tuple[np.ndarray, np.ndarray]:
        """Test logits (N, classes) float32, less each image's largest, and labels (N,)."""
        with self._reading("predictions.npz") as path, np.load(path, allow_pickle=False) as stored:
            return stored["logits"].astype(np.float32), stored["labels"]

    def model(self, module: nn.Module | None = None, device: str = "auto") -> nn.Module:
        """The trained model of the chosen epoch, on the device, in evaluation mode.

        A run of the reader's own module needs an instance of that very `module` to put the weights into.
        """
        own = self.record.get("module")
        if own:
            self._require_instance(module, own)
        model = module if own else build_model(self.config, len(self.classes), self.record["channels"])
        self.give_weights(model)
        return model.to(machine.device(device)).eval()

    def _require_instance(self, module: nn.Module | None, own: Mapping[str, Any]) -> None:
        """LabError unless `module` has the class, code, shapes and settings that `own` tells."""
        known, other = module_identity(module) if module is not None else {}, ""
        if known and any(known[what] != own[what] for what in ("class", "source", "shapes")):
            other = f", and this {type(module).__name__} is another one, or its code has changed"
        elif known:
            now, then = known["settings"], own["settings"]
            changed = [name for name in sorted(now.keys() | then.keys()) if now.get(name) != then.get(name)]
            other = f" with the same settings, and this one has another {listed(changed)}" if changed else ""
        if other or not known:
            raise LabError(f"{self.path.name} holds weights of a class {own['class']}: pass an instance of it{other}")

    @property
    def image_size(self) -> int:
        """Pixels a side of the images that the model takes."""
        return self.record.get("image_size") or self.config.image_size

    def predict(self, picture: Any, module: nn.Module | None = None) -> "Prediction":
        """What the trained model answers to a picture of one's own: a path, a PIL image or an array (H, W[, C]).

        It is converted as the training images were; `remark` says where that changed it. `module` as for `model`.
        """
        pixels, remark = as_pixels(picture, self.record["channels"], self.image_size, self.record.get("rule"))
        model = self.model(module, device="cpu") if module is not None else self._answering
        with torch.inference_mode():
            probabilities = model(to_float(pixels[None])).softmax(-1)[0]
        return Prediction(pd.Series(probabilities.numpy(), self.classes).sort_values(ascending=False), remark)

    @cached_property
    def _answering(self) -> nn.Module:
        """The model that one picture after the other is shown to."""
        return self.model(device="cpu")

    def give_weights(self, model: nn.Module) -> None:
        weights = self.weights()
        with self.of_this_code():
            model.load_state_dict(weights)

    def weights(self) -> dict[str, Tensor]:
        """Of the chosen epoch; a report's copy has none, unless the report keeps those of this model."""
        path, kept = self.path / "model.pt", self.path / "model.safetensors"
        if kept.exists() and not path.exists():
            with self._reading(kept.name):
                return safetensors.torch.load(kept.read_bytes())
        if self.complete and not path.exists():
            raise LabError(f"{self.path} has no weights, it is a report's copy: put the whole run there, or delete it")
        with self._reading("model.pt"):
            return torch.load(path, weights_only=True, map_location="cpu")

    def copy_small_files(self, folder: Path) -> None:
        """Copy into `folder` what remains readable without the weights: configuration, history, predictions, scores.

        A split that a run there has already is not kept twice: for the reader config.json names that run.
        """
        kept = Run(folder / self.path.name)
        if (kept.path / "model.pt").exists():  # a whole run, perhaps this one
            return
        stored = self.record | {"config": dict(self.record["config"])}
        if "data_dir" in stored["config"]:  # a path of this machine says nothing to others, but a folder needs a name
            stored["config"]["data_dir"] = Path(stored["config"]["data_dir"]).name
        split = self.path.with_name(stored.pop("split", self.path.name)) / "split.npz"  # a copy names the run with it
        others = (path for path in sorted(folder.glob("*/split.npz")) if path.parent != kept.path)
        alike = next((path for path in others if split.exists() and _parts(path) == _parts(split)), None)
        if alike and not (kept.path / "split.npz").exists():
            stored["split"] = alike.parent.name
        kept.write_json("config.json", stored)
        if "split" not in stored and split.exists():
            copy(split, kept.path / split.name)
        for name in (name for name in SMALL_FILES if name != split.name):
            with self._reading(name) as path:
                copy(path, kept.path / name)

    @property
    def environments(self) -> list[dict[str, Any]]:
        """Versions, machine, commit and number of processes of every start that differed from the one before."""
        if not (self.path / "environment.json").exists():
            return []
        with self._reading("environment.json") as path:
            return list(json.loads(path.read_text(encoding="utf-8")))

    def write_arrays(self, name: str, **arrays: np.ndarray) -> None:
        """As `np.savez_compressed`, which `np.load` reads, but by bzip2: of logits 15% smaller."""
        with writing(self.path / name) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_BZIP2) as archive:
            for key, values in arrays.items():
                with archive.open(f"{key}.npy", mode="w") as file:
                    np.lib.format.write_array(file, values)

    def write_json(self, name: str, values: dict[str, Any] | list) -> None:
        with writing(self.path / name) as temporary:
            temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

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
                return torch.load(path, weights_only=True, map_location="cpu")
            except FileNotFoundError:
                continue
            except (OSError, *DAMAGE) as error:  # an OSError also where torch finds a file far too short
                if getattr(error, "errno", None) in UNREADABLE:
                    why = f"cannot read {path} ({error.strerror})"
                    raise LabError(f"{why}: check its permissions, then go on") from None
                damaged += 1
        if damaged == 2:
            raise LabError(f"both checkpoints in {self.path} are damaged: delete them to train this run from the start")
        return None

    @contextlib.contextmanager
    def locked(self, seconds: float = LOCK_SECONDS) -> Iterator[None]:
        """Hold the directory for this process; LabError if another still trains into it after so many seconds."""
        try:
            with filelock.FileLock(self.path / ".lock", timeout=seconds):
                for leftover in self.path.glob(".*.tmp"):  # of a process that was killed while it wrote
                    leftover.unlink()
                yield
        except filelock.Timeout:
            raise LabError(f"another process is training {self.path}: wait for it or stop it") from None


def complete_run(places: Iterable[Path]) -> Run | None:
    """The first complete run at one of these places, if there is any; LabError for one that is not complete yet."""
    for run in map(Run, places):
        if run.complete:
            return run
        if (run.path / "config.json").exists():
            raise LabError(f"the run {run.path} is not complete: train it to its end first")
    return None


def _mapping(path: Path) -> dict[str, Any]:
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError("no mapping")
    return values


def _parts(archive: Path) -> list[tuple[str, int, int]]:
    """Name, checksum and size of what an archive holds, however it is packed."""
    with reading(archive, f"delete the folder {archive.parent}"), zipfile.ZipFile(archive) as parts:
        return [(part.filename, part.CRC, part.file_size) for part in parts.infolist()]


def _hash(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]


def nearest_run(runs_dir: Path, config: RunConfig, digest: str) -> str:
    """In words, what the complete run of this model there that differs least has otherwise; "" if there is none."""
    wanted, found = identity(config, digest), []
    for path in runs_dir.glob("*/summary.json"):
        try:
            other = Run(path.parent).record["identity"]
        except LabError:  # of another lab, and damaged
            continue
        names = sorted(name for name in wanted.keys() | other.keys() if wanted.get(name) != other.get(name))
        if other.get("model") == config.model:
            found.append(([f"{name} ({other.get(name)}, here {wanted.get(name)})" for name in names], path.parent.name))
    differing, name = min(found, key=lambda pair: len(pair[0]), default=([], ""))
    return f" (the nearest one there, {name}, differs in {', '.join(differing)})" if name else ""
