"""What pruning costs in accuracy where images are few: python benchmarks/fine_tune.py FOLDER [--epochs 60 …]

FOLDER holds CIFAR-10 as class folders, train/<class>/ and test/<class>/. A ViT-Tiny learns from the first 500 images of
each class; from its weights a DynamicViT (ρ = 0.7, distilled from it) is fine-tuned, and for the same time the ViT just
trains on: it gets as many more steps as its steps are shorter, timed in turns on a quiet machine. Runs are kept in
runs/ as a notebook's are, so the command can be interrupted and repeated.
"""

import argparse
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from vitlab import machine
from vitlab.analysis import metrics, sentences
from vitlab.config import LabConfig, parse
from vitlab.data.sources import load_source
from vitlab.data.splits import Source
from vitlab.errors import told
from vitlab.lab import Lab
from vitlab.models.registry import build_model
from vitlab.runs import Run
from vitlab.training.losses import Objective
from vitlab.training.optim import build_optimizers
from vitlab.training.step import step

PER_CLASS = 500
PARAMS = {
    "dataset": "folder",
    "image_size": 32,
    "val_fraction": 0.0,  # the last epoch counts: 5,000 images are few enough
    "preset": "tiny",
    "pool": "mean",
    "tokenizer": "conv",
    "crop": 4,
    "flip": True,
    "batch_size": 128,
    "optimizer": "muon",
    "lr": 1e-3,
}


def first_of_each_class(source: Source, per_class: int) -> Source:
    places = [(source.train.labels == k).nonzero()[:per_class, 0] for k in range(len(source.classes))]
    return replace(source, train=source.train.take(torch.cat(places)), digest=f"{source.digest}-first-{per_class}")


def step_ratio(lab: Lab, teacher: Run, turns: int = 12) -> float:
    """How many times as long a step of DynamicViT with its teacher takes as one of the ViT: the median over turns."""
    configs = [lab.plan.config("DynamicViT"), lab.plan.config("ViT, fine-tuned")]
    classes, channels, device = len(lab.source.classes), lab.data.channels, machine.device()
    teachers = [teacher.model(), None]
    objectives = [
        Objective(build_model(c, classes, channels), c, lab.data.class_counts, t).to(device)
        for c, t in zip(configs, teachers, strict=True)
    ]
    optimizers = [build_optimizers(o.model, c) for o, c in zip(objectives, configs, strict=True)]
    size = configs[0].image_size
    images = torch.randn(configs[0].batch_size, channels, size, size, device=device)
    targets = torch.full((len(images), classes), 1 / classes, device=device)
    ratios = []
    for _ in range(turns + 1):
        times = []
        for config, objective, steppers in zip(configs, objectives, optimizers, strict=True):
            start = time.perf_counter()
            float(step(objective, steppers, images, targets, config)["loss"])  # waits for a GPU
            times.append(time.perf_counter() - start)
        ratios.append(times[0] / times[1])
    return statistics.median(ratios[1:])  # the first turn warms up


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="CIFAR-10 as class folders, train/<class>/ and test/<class>/")
    parser.add_argument("--epochs", type=int, default=60, help="of the ViT")
    parser.add_argument("--fine-tune-epochs", type=int, default=30, help="of the DynamicViT that goes on from it")
    given = parser.parse_args(words)
    chosen = {"epochs": given.epochs, "fine_tune_epochs": given.fine_tune_epochs}
    params = parse(LabConfig, PARAMS | chosen | {"data_dir": str(Path(given.folder).absolute())})
    lab = Lab(params, first_of_each_class(load_source(params), PER_CLASS))
    vit = lab.train_one(lab.plan.config("ViT"))
    dynamic = lab.train_one(lab.plan.config("DynamicViT"))
    # kept, so that a second call trains nothing
    ratio = lab.costs.measured("step_ratio", {"run": dynamic.path.name}, lambda: step_ratio(lab, vit))
    steps = round(dynamic.summary["steps"] * ratio)
    on = lab.train_one(lab.plan.config("ViT, fine-tuned").replace(steps=steps))

    labels = dynamic.predictions[1]
    print(f"\n{len(lab.data.train):,} training images, {len(labels):,} test images, seed {params.seed}\n")
    print(f"A step of DynamicViT takes {ratio:.2f} times as long as one of the ViT.\n")
    print("| model | steps | seconds | test accuracy | 95% interval |\n| --- | --- | --- | --- | --- |")
    for name, run in {"ViT": vit, "ViT, fine-tuned": on, "DynamicViT, ρ = 0.7": dynamic}.items():
        done, test = run.summary, run.summary["test"]
        interval = " – ".join(f"{share:.1%}" for share in test["interval"])
        print(f"| {name} | {done['steps']:,} | {done['seconds']:,.0f} | {test['accuracy']:.1%} | {interval} |")
    comparison = metrics.compare(on.predictions[0], dynamic.predictions[0], labels)
    print(f"\nAfter the same time {sentences.verdict('the unpruned ViT', 'DynamicViT', comparison)}.")
    print(f"DynamicViT − ViT: {comparison['difference'] * 100:+.1f} points (wanted: no less than −1).")


if __name__ == "__main__":
    sys.exit(told("fine_tune", main))
