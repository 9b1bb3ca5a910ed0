"""Which runs each chapter makes: names and configurations, from the parameters and the size of the data alone."""

import difflib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vitlab.config import BALANCED, POST_HOC, LabConfig, RunConfig
from vitlab.data.splits import Data, Source, split
from vitlab.errors import LabError
from vitlab.machine import ROOT
from vitlab.models.registry import MODELS
from vitlab.runs import Run

NOTEBOOKS = {path.name[:2]: path for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))}


def how_to_make(chapter: str) -> str:
    notebook = NOTEBOOKS[chapter].relative_to(ROOT)
    return f"run {notebook} first, in JupyterLab or with `papermill {notebook} out.ipynb` and the same parameters"


@dataclass(frozen=True, repr=False)
class Plan:
    """The runs of one lab; the same parameters and data give the same configurations, whichever chapter asks."""

    params: LabConfig
    source: Source

    def __repr__(self) -> str:
        return f"Plan({'; '.join(self.names)}; a study of {len(self.study_configs)} runs)"

    @cached_property
    def chapters(self) -> dict[str, dict[str, RunConfig]]:
        """Chapter -> name -> configuration of every run but the study's. Only what a name says differs."""
        p = self.params
        vit = p.run(model="vit")
        longer = {
            "init_from": Run.of(Path(), vit, self.source.digest).path.name,
            "epochs": p.fine_tune_epochs,
            "minutes": 0,
            "start_size": 0,
            "lr": p.fine_tune_lr,
            "muon_lr": p.muon_lr * p.fine_tune_lr / p.lr,
        }
        other = "conv" if p.tokenizer == "patch" else "patch"
        chapters = {"02": {"ViT": vit, f"ViT, {other} tokenizer": vit.replace(tokenizer=other)}}
        if p.long_epochs:
            longest = vit.replace(tokenizer="conv", epochs=p.long_epochs, minutes=0, cutout=p.long_cutout)
            chapters["02"][f"ViT, conv tokenizer, {p.long_epochs} epochs"] = longest
        chapters |= {"03": {"ViT, fine-tuned": vit.replace(**longer)}, "04": {}}
        for name, row in MODELS.items():
            if row.chapter:
                changes = longer if row.chapter == "03" else {}
                chapters[row.chapter][row.title] = vit.replace(model=name, **changes)
        return chapters

    @property
    def study_imbalance(self) -> str:
        """Profile of the study's class sizes: the parameter's, but "none" where the data come imbalanced themselves."""
        return "none" if self.source.imbalanced else self.params.study_imbalance

    @cached_property
    def studies(self) -> dict[str, dict[tuple[str, int], RunConfig]]:
        """Class sizes, as "linear 10:1" -> (remedy or BALANCED, seed) -> configuration of a run of the imbalance study.

        All take the same number of steps, whose last weights count: validation images, of which rare classes have more
        than training does, choose nothing here. `POST_HOC` needs no run.
        """
        p, steps, studies = self.params, 0, {}
        shapes = [("none", 1.0)] if self.study_imbalance == "none" else p.study_shapes
        for imbalance, ratio in shapes:
            shaped = {"imbalance": imbalance, "imbalance_ratio": ratio, "imbalance_order": p.study_order}
            size = len(self.data_of(p.run(**shaped)).train)
            steps = steps or p.study_epochs * max(1, size // min(p.batch_size, size))
            budget = {"steps": steps, "patience": 0, "keep_epoch": "last"}
            configs = {}
            for seed in range(p.seed, p.seed + p.study_seeds):
                if imbalance != "none":  # a folder that comes imbalanced has no balanced twin
                    configs[BALANCED, seed] = p.run(seed=seed, **budget)
                for remedy in p.remedies:
                    if remedy != POST_HOC:
                        configs[remedy, seed] = p.run(remedy=remedy, seed=seed, **budget, **shaped)
            studies["as they come" if imbalance == "none" else f"{imbalance} {ratio:g}:1"] = configs
        return studies

    @property
    def study(self) -> dict[tuple[str, int], RunConfig]:
        """The study of the class sizes that the chapter's conclusions speak of."""
        return next(iter(self.studies.values()))

    @property
    def study_configs(self) -> dict[str, RunConfig]:
        """Every run of the studies by name: "sampler, seed 0"; of further class sizes "none, linear 10:1, seed 0"."""
        first, *further = self.studies
        named = {f"{remedy}, seed {seed}": config for (remedy, seed), config in self.studies[first].items()}
        for shape in further:
            for (remedy, seed), config in self.studies[shape].items():
                if remedy != BALANCED:  # the same run
                    named[f"{remedy}, {shape}, seed {seed}"] = config
        return named

    def data_of(self, config: RunConfig) -> Data:
        return split(self.source, config)

    @property
    def names(self) -> list[str]:
        """Of every run but the study's."""
        return [name for runs in self.chapters.values() for name in runs]

    @cached_property
    def configs(self) -> dict[str, RunConfig]:
        """Every run by name: those of the chapters, and of the study."""
        return {name: config for runs in self.chapters.values() for name, config in runs.items()} | self.study_configs

    def config(self, name: str) -> RunConfig:
        if name not in self.configs:
            near = difflib.get_close_matches(name, self.configs, n=1, cutoff=0)[0]
            raise LabError(f"there is no run {name!r}: did you mean {near!r}? All of them: {'; '.join(self.configs)}")
        return self.configs[name]

    def chapter_of(self, name: str) -> str:
        """The chapter that makes this run; 01 makes the study."""
        return next((chapter for chapter, runs in self.chapters.items() if name in runs), "01")
