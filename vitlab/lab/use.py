"""A trained model in use, as the commands offer it: find a run, predict pictures, score other images, compare costs."""

import contextlib
import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchvision.transforms.functional import rgb_to_grayscale

from vitlab.analysis import complexity, metrics
from vitlab.analysis.timing import ROUNDS
from vitlab.config import LabConfig, parse
from vitlab.data.batches import to_float
from vitlab.data.decode import decode
from vitlab.data.folders import evaluated
from vitlab.data.sources import at_hand, digests_of, load_source, recognised
from vitlab.data.splits import Source, split
from vitlab.errors import LabError
from vitlab.files import absolute, expanded
from vitlab.machine import device_of
from vitlab.models.registry import MODELS
from vitlab.runs import Run, complete_run
from vitlab.training import evaluate

BATCH = 256  # images that a model is given at once
CIFAR = {"image_size": 32, "patch_size": 4, "linformer_k": 16, "rounds": ROUNDS}  # as chapter 05 has them


def find_run(name: str) -> Run:
    """The complete run of a directory, or of a name in runs/ (or VITLAB_RUNS), or the best ViT that a report keeps.

    LabError names the nearest run that there is.
    """
    folder = Path(os.environ.get("VITLAB_RUNS") or absolute(LabConfig().runs_dir))
    named = Path(os.path.abspath(expanded(name)))
    if there := complete_run([named, folder / name]):
        return there
    for weights in named.glob("runs/*/model.safetensors"):  # one in each report
        return Run(weights.parent)
    if (named / "report.html").exists():
        raise LabError(f"the report {name} keeps no weights: make it again, or name a run's directory")
    names = sorted(path.parent.name for path in folder.glob("*/summary.json"))
    title = name.partition(", seed ")[0]  # what a notebook calls a run of this model
    model = next((model for model, row in MODELS.items() if title in (model, row.title)), "")
    of_model = [folder for folder in names if model and f"-{model}-" in folder]
    near = of_model or difflib.get_close_matches(name, names, n=1, cutoff=0.3) or names
    there = f"did you mean {near[0]}? {folder} holds {len(names)} runs" if near else f"{folder} holds none"
    raise LabError(f"{name} is neither a run directory nor a run's name nor a report: {there}")


def require_pictures_only(run: Run) -> None:
    """LabError for a module of the reader's own, whose class a command does not know."""
    if "module" in run.record:
        owner = run.record["module"]["class"]
        raise LabError(
            f"{run.path.name} holds weights of a class {owner} of your own: use run.predict(…, module={owner}())"
        )


# ---------------------------------------------------------------- other images


def evaluate_run(run: Run, folder: str = "") -> tuple[dict, pd.DataFrame, str]:
    """`metrics.scores` of other images, a row an image (file, class, answer, confidence), and a remark.

    folder: class folders, with `test` in it or without; their names have to be classes of the run. Without one, or
    for the folder that the run learned from, its own test images.
    """
    require_pictures_only(run)
    root = Path(os.path.abspath(expanded(folder)))  # a link keeps its name, as in `absolute`
    config, copied = run.config, not (run.path / "model.pt").exists()  # a report's copy knows its data by name alone
    if not folder and copied and config.dataset == "folder":
        raise LabError(
            f"{run.path} is a report's copy, which does not say where {config.data_dir} lies: name it with --data"
        )
    if not folder:
        return _on_own_test_images(run, load_source(config.replace(data_dir="") if copied else config))
    if not copied and config.data_dir and os.path.realpath(root) == os.path.realpath(absolute(config.data_dir)):
        source = load_source(config)
        if run.tested_on(source.digest, source.test.digest):  # else the folder has changed, and is one like others
            return _on_own_test_images(run, source)
    named = recognised(config.replace(dataset="folder", data_dir=str(root)))
    if named.dataset == "cifar10" or (copied and root.name == config.data_dir):
        source = None
        with contextlib.suppress(LabError):  # other images of that name, which are read below
            source = load_source(named)
        if source and run.tested_on(source.digest, source.test.digest):
            return _on_own_test_images(run, source)
    if not root.is_dir():
        raise LabError(f"there is no folder {root}: name one of class folders")
    found = evaluated(root)
    strangers = [name for name in found.classes if name not in run.classes]
    if strangers:
        known = ", ".join(run.classes[:12])
        raise LabError(f"{run.path.name} knows no class {strangers[0]!r}: name the folders as its classes, {known}")
    rows = found.rows["test"]
    files = [path for name in found.classes for path, *_ in rows[name]]
    labels = np.array([run.classes.index(name) for name in found.classes for _ in rows[name]])
    pools, notes, _ = decode({"test": files}, run.image_size, found.unreadable, run.record.get("rule"))
    if run.record["channels"] == 1:
        notes.append("All were made grey.")
    logits = _logits(run, pools["test"])
    absent = [name for name in run.classes if name not in found.classes]
    if absent:
        notes.append(f"The folder has no images of {', '.join(absent)}; means leave these classes out.")
    if found.parts["test"] != root:
        notes.insert(0, f"Scored is {found.relative(found.parts['test'])} alone.")
    if not copied and (remark := _learned(run, pools["test"])):
        notes.insert(0, remark)
    return metrics.scores(logits, labels), _rows(run, files, labels, logits), " ".join([*found.notes, *notes])


def _learned(run: Run, images: Tensor) -> str:
    """A remark on those of (N, 3, S, S) uint8 images that a run was trained or validated with; "" for none."""
    if run.record["channels"] == 1:  # digits, which come from nobody's folder
        return ""
    try:
        if not at_hand(run.config):
            raise LabError("its own images are no longer where they were")
        data = split(load_source(run.config), run.config)
        if data.digest != run.record["identity"]["data"]:
            raise LabError("the folder of its own images has changed since")
    except LabError as error:
        return f"Whether it was trained with some of them cannot be told: {error}."
    own = np.concatenate([digests_of(part.images) for part in (data.train, data.val)])
    known = int(np.isin(digests_of(images), own).sum())
    return f"{known:,} of these images are among those that it was trained with: scores are too good." if known else ""


@torch.inference_mode()
def _logits(run: Run, images: Tensor) -> np.ndarray:
    """(N, classes) for uint8 RGB images (N, 3, S, S)."""
    model, parts = run.model(), []
    for some in images.split(BATCH):
        # in bytes it would cut off what rounding makes of white
        pixels = rgb_to_grayscale(some.float()).round().byte() if run.record["channels"] == 1 else some
        parts.append(model(to_float(pixels.to(device_of(model)))).float().cpu())
    return torch.cat(parts).numpy()


def _on_own_test_images(run: Run, source: Source) -> tuple[dict, pd.DataFrame, str]:
    if not run.tested_on(source.digest, source.test.digest):
        raise LabError(f"the data of {run.path.name} have changed since it was trained: name images with --data")
    test = split(source, run.config).test
    logits, labels = evaluate.predict(run.model(), test, run.config).numpy(), test.labels.numpy()
    names = [f"test image {i}" for i in range(len(labels))]
    return metrics.scores(logits, labels), _rows(run, names, labels, logits), "These are the run's own test images."


def _rows(run: Run, files: Iterable[str], labels: np.ndarray, logits: np.ndarray) -> pd.DataFrame:
    sure = torch.from_numpy(logits).softmax(1).max(1).values.numpy()
    names = np.array(run.classes)
    files = [os.fsencode(file).decode("utf-8", "backslashreplace") for file in files]  # a name need not be UTF-8
    return pd.DataFrame({"file": files, "class": names[labels], "answer": names[logits.argmax(1)], "confidence": sure})


def confusion(run: Run, scores: dict) -> pd.DataFrame:
    """Images of a class (row) that were given an answer (column), and the recall of the class."""
    frame = pd.DataFrame(scores["confusion"], index=run.classes, columns=run.classes)
    total = frame.sum(axis=1)
    recall = [f"{share:.1%}" if n else "–" for share, n in zip(scores["per_class"]["recall"], total, strict=True)]
    return frame.assign(recall=recall)


# ---------------------------------------------------------------- costs


def analyze(preset: str, models: Sequence[str], changes: dict) -> pd.DataFrame:
    """Chapter 05's table for some models of a size, measured now: a row a model, formatted.

    For CIFAR-10's shapes, and for the channels and classes of other data where `changes` name them.
    """
    params = parse(LabConfig, CIFAR | {"preset": preset} | changes)
    shape = {}
    if changes.keys() & {"dataset", "data_dir"}:
        source = load_source(recognised(params))
        shape = {"channels": source.train.pool.shape[1], "num_classes": len(source.classes)}
    rows, names = {}, list(models or MODELS)
    costs = complexity.measure([params.run(model=name) for name in names], rounds=params.rounds, **shape)  # in turns
    for name, cost in zip(names, costs, strict=True):
        rows[MODELS[name].title] = {
            "parameters": f"{cost['parameters']:,}",
            "million MACs": f"{cost['macs'] / 1e6:,.2f}",
            "GFLOPs": f"{2 * cost['macs'] / 1e9:.3f}",
            "latency (ms)": f"{cost['latency_ms']:.2f}",
            "images/s": f"{cost['images_per_second']:,.0f}",
            "peak memory (MiB)": f"{cost['peak_mib']:.1f}",
            "file (MiB)": f"{cost['file_mib']:.1f}",
        }
    return pd.DataFrame(rows).T
