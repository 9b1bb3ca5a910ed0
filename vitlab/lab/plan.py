"""Which runs each chapter makes: names and configurations, from the parameters and the size of the data alone."""

import difflib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from vitlab.config import LabConfig, Remedy, RunConfig
from vitlab.data.splits import Data, Source, split
from vitlab.errors import LabError
from vitlab.machine import ROOT
from vitlab.models.registry import MODELS
from vitlab.runs import Run

NOTEBOOKS = {path.name[:2]: path for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))}
REMEDIES = get_args(Remedy)
BALANCED = "balanced"  # the study's upper reference: no imbalance, no remedy


def how_to_make(chapter: str) -> str:
    notebook = NOTEBOOKS[chapter].relative_to(ROOT)
    return f"run {notebook} first, in JupyterLab or with `papermill {notebook} out.ipynb` and the same parameters"


@dataclass(frozen=True, repr=False)
class Plan:
    """The runs of one lab; the same parameters and data give the same configurations, whichever chapter asks."""

    params: LabConfig
    source: Source

    def __repr__(self) -> str:
        return f"Plan({'; '.join(self.names)}; a study of {len(self.study)} runs)"

    @cached_property
    def chapters(self) -> dict[str, dict[str, RunConfig]]:
        """Chapter -> name -> configuration of every run but the study's. Only what a name says differs."""
        p = self.params
        vit = p.run(model="vit")
        other = "conv" if p.tokenizer == "patch" else "patch"
        chapters = {"02": {"ViT": vit, f"ViT, {other} tokenizer": vit.replace(tokenizer=other)}}
        if p.long_epochs:
            longest = vit.replace(tokenizer="conv", epochs=p.long_epochs, minutes=0, cutout=p.long_cutout)
            chapters["02"][f"ViT, conv tokenizer, {p.long_epochs} epochs"] = longest
        start = chapters["02"][self.backbone_of(p.backbone)]
        chapters |= {"03": {"ViT, fine-tuned": self.on_from(start)}, "04": {}}
        for name, row in MODELS.items():
            if row.chapter == "03":
                chapters["03"][row.title] = self.on_from(start, model=name)
            elif row.chapter:
                chapters[row.chapter][row.title] = vit.replace(model=name)
        return chapters

    def backbone_of(self, tokenizer: str) -> str:
        """Name of chapter 02's ViT with this tokenizer; of two the one that was trained longer."""
        p = self.params
        if p.long_epochs and tokenizer == "conv":
            return f"ViT, conv tokenizer, {p.long_epochs} epochs"
        return "ViT" if tokenizer == p.tokenizer else f"ViT, {tokenizer} tokenizer"

    @property
    def backbone(self) -> str:
        """Name of the ViT that chapter 03 goes on from."""
        return self.backbone_of(self.params.backbone)

    def on_from(self, start: RunConfig, **changes: Any) -> RunConfig:
        """`start` trained on from its weights, for chapter 03's budget and at its rate, with `changes`.

        Weights that a model does not take over from it learn at the rate of chapter 02: `backbone_rate` says how far
        the others stay below it.
        """
        p = self.params
        changes = {"init_from": Run.of(Path(), start, self.source.digest).path.name} | changes
        changes |= {"epochs": p.fine_tune_epochs, "minutes": 0, "start_size": 0, "ema": p.fine_tune_ema or p.ema}
        if not hasattr(MODELS[changes.get("model", start.model)].build, "pace"):
            changes |= {"lr": p.fine_tune_lr, "muon_lr": p.muon_lr * p.fine_tune_lr / p.lr}
        return start.replace(**changes)

    @property
    def study_imbalance(self) -> str:
        """Profile of the study's class sizes: the parameter's, but "none" where the data come imbalanced themselves."""
        return "none" if self.source.imbalanced else self.params.study_imbalance

    @cached_property
    def study(self) -> dict[tuple[str, int], RunConfig]:
        """(remedy or BALANCED, seed) -> configuration of the imbalance study; all take the same number of steps."""
        p = self.params
        shaped = {"imbalance": self.study_imbalance, "imbalance_ratio": p.study_ratio, "imbalance_order": p.study_order}
        size = len(self.data_of(p.run(**shaped)).train)
        steps = p.study_epochs * max(1, size // min(p.batch_size, size))
        configs = {}
        for seed in range(p.seed, p.seed + p.study_seeds):
            if self.study_imbalance != "none":  # a folder that comes imbalanced has no balanced twin
                configs[BALANCED, seed] = p.run(seed=seed, steps=steps)
            for remedy in REMEDIES:
                configs[remedy, seed] = p.run(remedy=remedy, seed=seed, steps=steps, **shaped)
        return configs

    def data_of(self, config: RunConfig) -> Data:
        return split(self.source, config)

    @property
    def names(self) -> list[str]:
        """Of every run but the study's."""
        return [name for runs in self.chapters.values() for name in runs]

    @cached_property
    def configs(self) -> dict[str, RunConfig]:
        """Every run by name: those of the chapters, and of the study as "sampler, seed 0"."""
        study = {f"{remedy}, seed {seed}": config for (remedy, seed), config in self.study.items()}
        return {name: config for runs in self.chapters.values() for name, config in runs.items()} | study

    def config(self, name: str) -> RunConfig:
        if name not in self.configs:
            near = difflib.get_close_matches(name, self.configs, n=1, cutoff=0)[0]
            raise LabError(f"there is no run {name!r}: did you mean {near!r}? All of them: {'; '.join(self.configs)}")
        return self.configs[name]

    def chapter_of(self, name: str) -> str:
        """The chapter that makes this run; 01 makes the study."""
        return next((chapter for chapter, runs in self.chapters.items() if name in runs), "01")
