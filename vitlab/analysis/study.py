"""Chapter 01's imbalance study: what each remedy does before any training, and what its runs answered after it."""

import math
from collections.abc import Callable
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from vitlab import machine
from vitlab.analysis import metrics, sentences, sentences_study
from vitlab.config import BALANCED, POST_HOC
from vitlab.data.augment import augment
from vitlab.data.batches import epoch_order, training_batches
from vitlab.texts import signed
from vitlab.training import losses
from vitlab.training.step import seed_step

if TYPE_CHECKING:
    from vitlab.lab import Lab
    from vitlab.runs import Run

SCORES = {
    "macro_f1": "macro F1",
    "recall_common": "recall, commonest",
    "recall_middle": "recall, middle",
    "recall_rare": "recall, rarest",
}


def remedy_effects(lab: "Lab") -> pd.DataFrame:
    """What each remedy does before any training, a row a remedy and class, the commonest class first.

    drawn: the class's share of the images really drawn in the first epoch; weight: of its loss, at the end of training
    where weights are deferred; share: of the whole loss, drawn times weight; margin: how far its logit has to be ahead
    of the commonest class's (LDAM: of any other's) for the loss that it would have without a remedy at a tie.
    """
    data = lab.data_of(lab.plan.study["none", lab.params.seed])
    labels, counts = data.train.labels, data.class_counts
    rows = []
    for remedy in (name for name in lab.params.remedies if name != POST_HOC):
        order = epoch_order(labels, losses.sampling_weights(remedy, labels, counts), lab.params.seed, epoch=0)
        drawn = labels[order].bincount(minlength=len(counts)) / len(order)
        weight = losses.class_weights(remedy, counts)
        weight = torch.ones(len(counts)) if weight is None else weight
        shift, margin = losses.logit_shift(remedy, counts), losses.margins(remedy, counts)
        if margin is None:
            margin = torch.zeros(len(counts)) if shift is None else shift.max() - shift
        columns = {"drawn": drawn, "weight": weight, "share": drawn * weight / (drawn * weight).sum(), "margin": margin}
        rows.append(pd.DataFrame({"remedy": remedy, "class": lab.source.classes, "images": counts} | columns))
    return pd.concat(rows).sort_values("images", ascending=False, kind="stable").reset_index(drop=True)


def gradient_noise(lab: "Lab", batches: int = 20) -> pd.Series:
    """Remedy -> length of the chance part of one batch's gradient over the length of its mean; sampler, class weights.

    Both have the same mean, but for what `sentences_study.unlike_batches` names. Measured with the weights of the
    trained model without a remedy, on batches as training draws them. For g of mean m, √(E|g − m|²) / |m|, without the
    bias that a mean of few batches has; inf where chance explains all of that mean.
    """
    seed = lab.params.seed
    model = lab.load_study()["none", seed].model(device=lab.params.device).train()
    found = {}
    for remedy in ("sampler", "class_weights"):
        config = lab.plan.study[remedy, seed]
        data, device = lab.data_of(config), machine.device(config.device)
        objective = losses.Objective(model, config, data.class_counts).to(device)
        drawing = losses.sampling_weights(remedy, data.train.labels, data.class_counts)
        total, squares = 0.0, 0.0
        for at, (images, labels) in enumerate(islice(training_batches(data.train, config, device, drawing), batches)):
            seed_step(seed, at, device)
            loss, _ = objective(*augment(images, labels, len(data.classes), config))
            gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
            total, squares = total + gradient.double(), squares + float(gradient.double().square().sum())
        length = float((total / batches).square().sum())
        variance = (squares - batches * length) / (batches - 1)
        unbiased = length - variance / batches
        found[remedy] = math.sqrt(variance / unbiased) if unbiased > 0 else math.inf
    return pd.Series(found)


def group_size(num_classes: int) -> int:
    """How many classes count as the commonest, and as the rarest: three, or fewer so that the two do not meet."""
    return max(1, min(3, num_classes // 2))


class Study:
    """What the runs of one study answered: of one kind of class sizes every remedy, and `balanced`, in every seed.

    Classes stand in the order of their training images, the commonest first. Where the seed draws which classes are
    rare, the k-th commonest is another one in each.
    """

    def __init__(self, lab: "Lab", shape: str = "") -> None:
        """shape: a key of `lab.plan.studies`, by default the first. LabError if a run is missing."""
        self.lab, self.shape = lab, shape or next(iter(lab.plan.studies))
        self.runs = lab.load_study(self.shape)
        self.seeds = sorted({seed for _, seed in self.runs})
        self.names = [*([BALANCED] if (BALANCED, self.seeds[0]) in self.runs else []), *lab.params.remedies]
        self.remedies = [name for name in lab.params.remedies if name != "none"]
        self.counts = {seed: torch.tensor(self.runs["none", seed].record["counts"]) for seed in self.seeds}
        self.order = {s: counts.argsort(descending=True, stable=True).numpy() for s, counts in self.counts.items()}
        self.group = group_size(len(lab.source.classes))

    @property
    def steps(self) -> int:
        return self.runs["none", self.seeds[0]].summary["steps"]

    @cached_property
    def class_names(self) -> list[str]:
        """Of the classes, the commonest first; where seeds draw their own, by their number of training images."""
        if len({tuple(order) for order in self.order.values()}) == 1:
            return [self.lab.source.classes[k] for k in self.order[self.seeds[0]]]
        sizes = self.counts[self.seeds[0]].sort(descending=True).values.tolist()
        return [f"{n:,} image{'s' * (n != 1)}" for n in sizes]

    def answers(self, run: "Run") -> tuple[np.ndarray, np.ndarray]:
        """Logits (N, C) and labels (N,) that the runs are compared by: of the test images."""
        return run.predictions

    @cached_property
    def predictions(self) -> dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]:
        """(name, seed) -> `answers`, logits (N, C) and labels (N,), the classes numbered as in the data."""
        found = {key: self.answers(run) for key, run in self.runs.items()}
        if POST_HOC in self.names:
            for seed in self.seeds:
                logits, labels = found["none", seed]
                found[POST_HOC, seed] = losses.post_hoc(torch.from_numpy(logits), self.counts[seed]).numpy(), labels
        return {(name, seed): found[name, seed] for name in self.names for seed in self.seeds}

    @cached_property
    def tallies(self) -> dict[tuple[str, int], np.ndarray]:
        """(name, seed) -> `metrics.tally` (3, C), the commonest class first."""
        return {key: metrics.tally(*pair)[..., self.order[key[1]]] for key, pair in self.predictions.items()}

    @cached_property
    def resampled(self) -> dict[tuple[str, int], np.ndarray]:
        """(name, seed) -> `metrics.resampled` (3, resamples, C), the same draws for all, the commonest class first."""
        return {key: metrics.resampled(*pair)[..., self.order[key[1]]] for key, pair in self.predictions.items()}

    # ------------------------------------------------ scores

    def statistics(self) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
        """Name of a score -> function of a tally (3, ..., C), the commonest class first."""
        few = self.group
        parts = {"common": slice(None, few), "middle": slice(few, -few), "rare": slice(-few, None)}
        recalls = {
            f"recall_{name}": lambda tally, part=part: metrics.mean_recall(tally[..., part])
            for name, part in parts.items()
            if name != "middle" or len(self.class_names) > 2 * few
        }
        return {"accuracy": metrics.accuracy, "macro_f1": metrics.macro_f1, **recalls}

    @cached_property
    def scores(self) -> pd.DataFrame:
        """A row for each name and seed: its scores, with <score>_low and _high over the test images."""
        rows = []
        for (name, seed), tally in self.tallies.items():
            row = {"remedy": name, "seed": seed}
            for score, statistic in self.statistics().items():
                row[score] = float(statistic(tally))
                row[f"{score}_low"], row[f"{score}_high"] = metrics.interval(statistic(self.resampled[name, seed]))
            row["calibration_error"] = metrics.calibration_error(*self.predictions[name, seed])
            rows.append(row)
        return pd.DataFrame(rows)

    def noise(self, score: str, names: list[str] | None = None) -> tuple[float, float]:
        """`metrics.training_noise` of the score over `names`, by default `none` and the remedies that are trained.

        A single seed cannot tell it: then that of the lab's first study, where it has more. Post hoc, which shares the
        training of `none`, counts only where there is no other remedy.
        """
        first = next(iter(self.lab.plan.studies))
        if len(self.seeds) == 1 and self.shape != first:
            return type(self)(self.lab, first).noise(score, names)
        trained = [name for name in ("none", *self.remedies) if name != POST_HOC]
        names = names or (trained if len(trained) > 1 else ["none", *self.remedies])
        return metrics.training_noise({name: self._by_seed(score, name) for name in names})

    def _by_seed(self, score: str, name: str) -> list[float]:
        return [float(self.statistics()[score](self.tallies[name, seed])) for seed in self.seeds]

    def gains(
        self, score: str = "macro_f1", names: list[str] | None = None, base: str = "none", tests: int = 0
    ) -> pd.DataFrame:
        """`metrics.seed_differences` of the score between each of `names`, by default all remedies, and `base`.

        The chance of training is that of all remedies (`noise`), whichever are compared; but between `balanced` and
        another that of these two alone: which classes are rare, as a seed may draw it, is nothing to `balanced`.
        """
        statistic = self.statistics()[score]
        seeds = {name: self._by_seed(score, name) for name in self.names}
        drawn = {n: np.mean([statistic(self.resampled[n, seed]) for seed in self.seeds], 0) for n in self.names}
        names = [name for name in self.remedies if name != base] if names is None else names
        noise = self.noise(score, [base, BALANCED] if BALANCED in names else None)
        return metrics.seed_differences(seeds, drawn, base, names, noise, tests)

    def against(self, base: str) -> pd.DataFrame:
        """`gains` of all remedies over one of them, corrected for every pair: the best was chosen by these scores."""
        tried = len(self.remedies) + 1
        return self.gains(base=base, tests=tried * (tried - 1) // 2)

    def behind_the_best(self) -> pd.DataFrame:
        """`against` the best remedy."""
        return self.against(metrics.best_gain(self.gains()).name)

    @property
    def price(self) -> pd.Series | None:
        """What `balanced` gains over `none`, a row of `gains`; None where the study has no such runs."""
        return self.gains(names=[BALANCED]).loc[BALANCED] if BALANCED in self.names else None

    def confusion(self, name: str) -> np.ndarray:
        """(C, C) test images of all seeds by true class (rows) and answer, the commonest class first."""
        total = 0
        for seed in self.seeds:
            logits, labels = self.predictions[name, seed]
            place = np.argsort(self.order[seed])  # of each class in the order
            pairs = place[labels] * len(place) + place[logits.argmax(1)]
            total = total + np.bincount(pairs, minlength=len(place) ** 2).reshape(len(place), -1)
        return total

    @property
    def curves(self) -> dict[str, pd.DataFrame]:
        """Name -> step and macro F1 on the validation images, the seeds' mean; of what was trained and validated."""
        found = {}
        for name in self.names:
            histories = [self.runs[name, seed].history for seed in self.seeds if (name, seed) in self.runs]
            if histories and "val_macro_f1" in histories[0]:
                found[name] = pd.concat(histories).groupby("step", as_index=False)["val_macro_f1"].mean()
        return found


# ---------------------------------------------------------------- for reading


def conclusion(study: Study) -> list[str]:
    """What the study says, a sentence or two each: the answer, how sure, who pays, what is free, at which price."""
    gains, counts = study.gains(), study.counts[study.seeds[0]]
    best = metrics.best_gain(gains).name
    common, rare = study.gains("recall_common"), study.gains("recall_rare")
    gap = study.price
    missing = 0
    if gap is not None:
        run = study.runs[BALANCED, study.seeds[0]]
        missing = max(0, min(run.summary["train_images"], study.steps * run.config.batch_size) - int(counts.sum()))
    told = [sentences_study.answer(float(counts.max() / counts.min()), gap, gains, missing)]
    told.append(sentences_study.best_remedy(gains, len(study.seeds)))
    if len(gains) > 1:
        told.append(sentences_study.as_good(best, study.behind_the_best()))
    told.append(sentences_study.who_pays(gains, common, rare, study.group))
    if POST_HOC in gains.index:
        trained = gains.drop(POST_HOC)
        top = metrics.best_gain(trained).name if len(trained) else None
        free = study.against(top).loc[POST_HOC].rename(top) if top else None
        told.append(sentences_study.what_is_free(gains, free))
    if gap is not None:
        told.append(sentences_study.price_of_imbalance(gap, gains, missing))
    return told


def study_table(study: Study) -> pd.DataFrame:
    """Scores by remedy, and the gain over `none`: mean ± deviation over seeds; of one seed the interval over images."""
    names = {"accuracy": "accuracy", **SCORES, "calibration_error": "calibration error"}
    gains = study.gains()
    rows = {}
    for remedy, runs in study.scores.groupby("remedy", sort=False):
        row = rows[sentences.words(remedy)] = {}
        for name, label in names.items():
            if name not in runs:
                continue
            row[label] = f"{runs[name].mean():.3f}"
            if len(runs) > 1:
                row[label] += f" ± {runs[name].std():.3f}"
            elif f"{name}_low" in runs:
                row[label] += f" ({runs[f'{name}_low'].item():.3f} – {runs[f'{name}_high'].item():.3f})"
        row["gain of F1 (points)"] = _points(gains.loc[remedy]) if remedy in gains.index else "–"
    return pd.DataFrame(rows).T


def shapes_table(studies: list[Study]) -> pd.DataFrame:
    """Macro F1 of `none`, and each remedy's gain over it, by the class sizes of the study."""
    columns = {}
    for study in studies:
        gains = study.gains()
        base = f"{gains['score'].iloc[0] - gains['gain'].iloc[0]:.3f}"
        columns[study.shape] = {"none": base} | {sentences.words(name): _points(row) for name, row in gains.iterrows()}
    return pd.DataFrame(columns)


def _points(row: pd.Series) -> str:
    return f"{signed(100 * row['gain'])} ({signed(100 * row['low'])} to {signed(100 * row['high'])})"
