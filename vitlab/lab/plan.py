"""Which runs each chapter makes: names and configurations, from the parameters and the size of the data alone."""

import difflib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vitlab.analysis.complexity import macs, smaller_vit
from vitlab.config import BALANCED, POST_HOC, PRESETS, LabConfig, RunConfig
from vitlab.data.splits import Data, Source, split
from vitlab.errors import LabError
from vitlab.machine import ROOT
from vitlab.models.registry import MODELS
from vitlab.runs import Run
from vitlab.texts import listed

NOTEBOOKS = {path.name[:2]: path for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))}


def how_to_make(chapter: str) -> str:
    notebook = NOTEBOOKS[chapter].relative_to(ROOT)
    return f"run {notebook} first, in JupyterLab or with `papermill {notebook} out.ipynb` and the same parameters"


def no_such_run(name: str, names: Collection[str]) -> str:
    title = MODELS[name].title if name in MODELS else ""
    near = title if title in names else difflib.get_close_matches(name, names, n=1, cutoff=0)[0]
    return f"{name!r}: did you mean {near!r}? All of them: {'; '.join(names)}"


@dataclass(frozen=True, repr=False)
class Plan:
    """The runs of one lab; the same parameters and data give the same configurations, whichever chapter asks."""

    params: LabConfig
    source: Source

    def __repr__(self) -> str:
        try:
            return f"Plan({'; '.join(self.names)}; a study of {len(self.study_configs)} runs)"
        except LabError as error:  # of a model that these parameters do not fit: a debugger asks for this text as well
            return f"Plan(cannot be made: {error})"

    @cached_property
    def chapters(self) -> dict[str, dict[str, RunConfig]]:
        """Chapter -> name -> configuration of every run but the study's, of the lab's first seed."""
        return self._of_seed(self.params.seed)

    def _of_seed(self, seed: int) -> dict[str, dict[str, RunConfig]]:
        """`chapters` with another seed. Only what a name says differs."""
        p = self.params
        titles: dict[str, str] = {}
        for name, row in MODELS.items():
            if (other := titles.setdefault(row.title, name)) != name:
                raise LabError(f"{other} and {name} in MODELS have one title, {row.title!r}: give each its own")
        vit = p.run(model="vit", seed=seed)
        chapters = {"02": self._chapter_02(seed), "03": {}, "04": {}}
        start = chapters["02"][self.backbone]
        chapters["03"]["ViT, fine-tuned"] = self.on_from(start)
        for name, row in MODELS.items():
            if row.chapter == "03":
                chapters["03"][row.title] = self.on_from(start, model=name)
            elif row.chapter == "04" and (not row.asked or name in p.ablations):
                chapters["04"][row.title] = vit.replace(model=name)
        for (model, name), shape in self.equal_cost.items():
            # as many images as the lighter model has seen, with those of the ViT that it went on from
            whole = start.replace(epochs=start.epochs + p.fine_tune_epochs) if MODELS[model].chapter == "03" else vit
            chapters[MODELS[model].chapter][name] = whole.replace(**shape)
        return chapters

    def _chapter_02(self, seed: int) -> dict[str, RunConfig]:
        p = self.params
        vit = p.run(model="vit", seed=seed)
        configs = {name: vit.replace(tokenizer=tokenizer) for tokenizer, name in self.tokenizers.items()}
        configs |= {f"ViT-{size.title()}": vit.replace(preset=size) for size in p.sizes}
        configs |= {row.title: vit.replace(model=name) for name, row in MODELS.items() if row.chapter == "02"}
        for name, (reference, changes) in self.longer.items():
            configs[name] = configs[reference].replace(**changes)
        return configs

    def backbone_of(self, tokenizer: str) -> str:
        """Name of chapter 02's ViT with this tokenizer; of several the one that was trained longest, and is largest."""
        configs = self._chapter_02(self.params.seed)
        vits = [name for name in (self.tokenizers[tokenizer], *self.longer) if configs[name].model == "vit"]
        return [name for name in vits if configs[name].tokenizer == tokenizer][-1]

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
        budget = {"init_from": Run.of(Path(), start, self.source.digest).path.name}
        budget |= {"epochs": p.fine_tune_epochs, "minutes": 0, "start_size": 0, "ema": p.fine_tune_ema or p.ema}
        if not hasattr(MODELS[changes.get("model", start.model)].build, "pace"):
            budget |= {"lr": p.fine_tune_lr, "muon_lr": p.muon_lr * p.fine_tune_lr / p.lr}
        return start.replace(**budget | changes)

    @property
    def tokenizers(self) -> dict[str, str]:
        """Tokenizer -> name of the run with it, of those that chapter 02 compares; the lab's own comes first."""
        own = self.params.tokenizer
        return {own: "ViT"} | {name: f"ViT, {name} tokenizer" for name in self.params.tokenizers if name != own}

    @property
    def study_vit(self) -> str:
        """What the model of the imbalance study is called: the name of chapter 02's run with its tokenizer."""
        name = self.params.study_tokenizer
        return self.tokenizers.get(name, f"ViT, {name} tokenizer")

    @property
    def longer(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Name of a longer training of chapter 02 -> name of the run that it is compared with, and what differs."""
        p = self.params
        if not p.long_epochs:
            return {}
        shorter = {"ViT, conv tokenizer": self.tokenizers["conv"]}
        shorter |= {row.title: row.title for row in MODELS.values() if row.chapter == "02"}
        more = {"epochs": p.long_epochs, "minutes": 0, "cutout": p.long_cutout}
        longer = {f"{name}, {p.long_epochs} epochs": (short, more) for name, short in shorter.items()}
        size = PRESETS.get(p.long_preset, {"depth": 0, "dim": 0})
        if size["depth"] * size["dim"] ** 2 > p.depth * p.dim**2:
            conv, patch = (
                f"ViT-{p.long_preset.title()}, {t} tokenizer, {p.long_epochs} epochs" for t in ("conv", "patch")
            )
            longer[conv] = (next(iter(longer)), {"preset": p.long_preset})
            longer |= {patch: (conv, {"tokenizer": "patch"})} if "patch" in self.tokenizers else {}
        return longer

    @cached_property
    def equal_cost(self) -> dict[tuple[str, str], dict[str, float]]:
        """(model, name of a smaller ViT's run) -> shape of that ViT, which costs as much as the model.

        A model that is no lighter than the ViT has none.
        """
        p, shapes = self.params, {}
        images = self.source.train.pool.shape[1], len(self.source.classes)
        for model in p.equal_cost:
            vit = self._chapter_02(p.seed)[self.backbone] if MODELS[model].chapter == "03" else p.run(model="vit")
            target = sum(macs(vit.replace(model=model), *images).values())
            if target < sum(macs(vit, *images).values()):
                for how, words in {"depth": "fewer blocks", "dim": "narrower"}.items():
                    name = f"ViT, {words}, as {MODELS[model].title}"
                    shapes[model, name] = smaller_vit(vit, target, how, *images)
        return shapes

    @property
    def seeds(self) -> range:
        """Of the runs of chapters 02 to 04."""
        return range(self.params.seed, self.params.seed + self.params.seeds)

    @property
    def seed_words(self) -> str:
        """For a caption: "seed 0", or what the figures of several seeds are."""
        first, *further = self.seeds
        if not further:
            return f"seed {first}"
        others = f"; in rows without a ±, of seed {first}" if self.params.repeated else ""
        return f"mean ± standard deviation over seeds {first} to {further[-1]}{others}"

    @property
    def one_seed(self) -> str:
        """For a caption of what is shown of the first seed alone: " (seed 0)", "" where there is no other."""
        return f" (seed {self.params.seed})" if self.params.seeds > 1 else ""

    def seed_numbers(self, names: Iterable[str]) -> str:
        """For a caption of the runs of these names, each for itself: "seed 0", or "seeds 0 to 2"."""
        again = {name: len(self.repeats[name]) > 1 for name in names}
        if not any(again.values()):
            return f"seed {self.params.seed}"
        some = "" if all(again.values()) else f"; for some models seed {self.params.seed} only"
        return f"seeds {self.seeds[0]} to {self.seeds[-1]}{some}"

    @cached_property
    def repeats(self) -> dict[str, list[RunConfig]]:
        """Name of a run of the chapters -> its configuration with each of `seeds`, or with the first alone."""
        _, *further = self.seeds
        repeats = {name: [config] for runs in self.chapters.values() for name, config in runs.items()}
        again = set(self.params.repeated or repeats)
        if unknown := again - repeats.keys():
            raise LabError(f"repeated names a run that is not there: {no_such_run(min(unknown), repeats)}")
        if any(repeats[name][0].init_from for name in again):
            again.add(self.backbone)
        for seed in further:
            for runs in self._of_seed(seed).values():
                for name in again & runs.keys():
                    repeats[name].append(runs[name])
        return repeats

    @property
    def study_imbalance(self) -> str:
        """Profile of the study's class sizes: the parameter's, but "none" where the data come imbalanced themselves."""
        return "none" if self.source.imbalanced else self.params.study_imbalance

    @cached_property
    def studies(self) -> dict[str, dict[tuple[str, int], RunConfig]]:
        """Class sizes, as "linear 10:1" -> (remedy or BALANCED, seed) -> configuration of a run of the imbalance study.

        All take the same number of steps, whose last weights count: validation images choose nothing here. `POST_HOC`
        needs no run.
        """
        p, steps, studies = self.params, 0, {}
        shapes = [("none", 1.0)] if self.study_imbalance == "none" else p.study_shapes
        seeds = [p.study_seeds] + [p.study_more_seeds] * (len(shapes) - 1)
        for (imbalance, ratio), repeats in zip(shapes, seeds, strict=True):
            shaped = {"imbalance": imbalance, "imbalance_ratio": ratio, "imbalance_order": p.study_order}
            size = self.num_train(p.run(**shaped))
            steps = steps or p.study_epochs * max(1, size // min(p.batch_size, size))
            common = {"tokenizer": p.study_tokenizer, "cutout": p.study_cutout or p.cutout}
            common |= {"steps": steps, "patience": 0, "keep_epoch": "last"}
            configs = {}
            for seed in range(p.seed, p.seed + repeats):
                if imbalance != "none":  # a folder that comes imbalanced has no balanced twin
                    configs[BALANCED, seed] = p.run(seed=seed, **common)
                for remedy in p.remedies:
                    if remedy != POST_HOC:
                        configs[remedy, seed] = p.run(remedy=remedy, seed=seed, **common, **shaped)
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
                where = "" if remedy == BALANCED else f", {shape}"  # all class sizes share the balanced run
                named[f"{remedy}{where}, seed {seed}"] = config
        return named

    def data_of(self, config: RunConfig) -> Data:
        return split(self.source, config)

    def num_train(self, config: RunConfig) -> int:
        """Images that a run trains on; counted once for all that split alike, which takes a second for ten of them."""
        alike = config.seed, config.val_fraction, config.imbalance, config.imbalance_ratio, config.imbalance_order
        if alike not in self._sizes:
            self._sizes[alike] = len(self.data_of(config).train)
        return self._sizes[alike]

    @cached_property
    def _sizes(self) -> dict[tuple, int]:
        return {}

    @property
    def names(self) -> list[str]:
        """Of every run but the study's; those of further seeds go by the same names."""
        return [name for runs in self.chapters.values() for name in runs]

    @cached_property
    def configs(self) -> dict[str, RunConfig]:
        """Every run by name: "ViT", of a further seed "ViT, seed 1", and those of the study."""
        runs = {name: config for runs in self.chapters.values() for name, config in runs.items()}
        further = {
            f"{name}, seed {config.seed}": config for name, configs in self.repeats.items() for config in configs[1:]
        }
        return runs | further | self.study_configs

    def config(self, name: str) -> RunConfig:
        if not isinstance(name, str):
            raise LabError(f"a run goes by its name, as 'ViT', and not by {name!r}")
        if name not in self.configs:
            model, _, seed = name.rpartition(", seed ")
            if model in self.repeats and seed == str(self.repeats[model][0].seed):
                return self.configs[model]
            if model in self.repeats and seed.isdecimal():
                have = listed(str(config.seed) for config in self.repeats[model])
                raise LabError(f"there is no run {name!r}: {model} has seed {have}; the parameter seeds says how many")
            raise LabError(f"there is no run {no_such_run(name, self.configs)}")
        return self.configs[name]

    def chapter_of(self, name: str) -> str:
        """The chapter that makes this run; 01 makes the study."""
        if name not in self.names and name.rpartition(", seed ")[0] in self.repeats:
            name = name.rpartition(", seed ")[0]
        return next((chapter for chapter, runs in self.chapters.items() if name in runs), "01")
