"""The tables that chapters share: computed from the runs of a lab, and set for reading."""

import math
from collections import defaultdict
from itertools import combinations
from typing import TYPE_CHECKING, get_args

import numpy as np
import pandas as pd
import torch

from vitlab.analysis import metrics
from vitlab.config import Remedy, RunConfig
from vitlab.data.batches import epoch_order
from vitlab.models import registry
from vitlab.training import losses

if TYPE_CHECKING:
    from vitlab.lab import Lab

COSTS = ("parameters", "macs", "latency_ms", "images_per_second")

# ---------------------------------------------------------------- computed


def results(lab: "Lab") -> pd.DataFrame:
    """What each compared run scores and costs, the most accurate first. Only extra runs' cost may be measured.

    What a module of the reader's own costs is unknown, but for its parameters.
    """
    rows = []
    for name in lab.compared:
        run = lab.load(name)
        test = metrics.scores(*run.predictions)
        if isinstance(run.config, RunConfig):
            cost = lab.costs.of(run.config, only_read=name not in lab.extra)
        else:
            cost = dict.fromkeys(COSTS, math.nan) | {"parameters": run.summary["parameters"]}
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
                **{name: cost[name] for name in COSTS},
                "training_seconds": run.training_seconds,
                "epochs": run.summary["epochs"],
                "epoch_chosen": run.summary["epoch"],
                "test_images": test["n"],
                "seed": run.config.seed,
                "run": run.path.name,
            }
        )
    return pd.DataFrame(rows).sort_values("accuracy", ascending=False, kind="stable", ignore_index=True)


def pairs(lab: "Lab") -> pd.DataFrame:
    """`compare` of every two compared runs, columns a and b; p is corrected for making all these tests (Holm)."""
    names = combinations(lab.compared, 2)
    frame = pd.DataFrame([{"a": a, "b": b, **lab.compare(a, b)} for a, b in names])
    return frame.assign(p=metrics.holm(frame["p"].to_numpy()))


def reductions(lab: "Lab", unreduced: str = "ViT, fine-tuned") -> pd.DataFrame:
    """A row for each way to fewer tokens, compared with the ViT trained on without: model, accuracy, saved, `compare`.

    saved: the share of all multiply-adds; p is corrected for the number of ways (Holm).
    """
    whole, rows = sum(lab.costs.macs(lab.plan.config(unreduced)).values()), []
    for name in registry.reductions():
        saved = 1 - sum(lab.costs.macs(lab.plan.config(name)).values()) / whole
        score = lab.load(name).summary["test"]["accuracy"]
        rows.append({"model": name, "accuracy": score, "saved": saved, **lab.compare(unreduced, name)})
    frame = pd.DataFrame(rows)
    return frame.assign(p=metrics.holm(frame["p"].to_numpy()))


def recall_differences(lab: "Lab", reference: str, names: list[str] | None = None) -> pd.DataFrame:
    """Model, class, recall's difference to `reference`'s, and McNemar's p within the class, Holm over the table.

    Of the models `names`, or of all that are compared.
    """
    rows = []
    base, labels = lab.load(reference).predictions
    for name in names or lab.compared:
        logits = lab.load(name).predictions[0]
        for k, title in enumerate(lab.source.classes if name != reference else ()):
            two = metrics.mcnemar(base[labels == k], logits[labels == k], labels[labels == k])
            difference = (two["only_b"] - two["only_a"]) / max(1, (labels == k).sum())
            rows.append({"model": name, "class": title, "difference": difference, "p": two["p"]})
    frame = pd.DataFrame(rows)
    return frame.assign(p=metrics.holm(frame["p"].to_numpy()))


def remedy_effects(lab: "Lab") -> pd.DataFrame:
    """What each remedy does before any training, a row a remedy and class, the commonest class first.

    drawn: the class's share of the images really drawn in the first epoch; weight: of its loss; share: of the
    whole loss, drawn times weight; shift: added to its logit.
    """
    train, counts = lab.data_of(lab.plan.study["none", lab.params.seed]).train, study_counts(lab)
    rows = []
    for remedy in get_args(Remedy):
        weights = losses.sampling_weights(remedy, train.labels, counts)
        order = epoch_order(train.labels, weights, lab.params.seed, epoch=0)
        drawn = train.labels[order].bincount(minlength=len(counts)) / len(order)
        weight = losses.class_weights(remedy, counts)
        weight = torch.ones(len(counts)) if weight is None else weight
        shift = losses.logit_shift(remedy, counts)
        shift = torch.zeros(len(counts)) if shift is None else shift
        columns = {"drawn": drawn, "weight": weight, "share": drawn * weight / (drawn * weight).sum(), "shift": shift}
        rows.append(pd.DataFrame({"remedy": remedy, "class": lab.source.classes, "images": counts} | columns))
    return pd.concat(rows).sort_values("images", ascending=False, kind="stable").reset_index(drop=True)


def study_counts(lab: "Lab") -> torch.Tensor:
    """(classes,) training images of each class in the study."""
    return lab.data_of(lab.plan.study["none", lab.params.seed]).class_counts


def group_size(num_classes: int) -> int:
    """How many classes count as the commonest, and as the rarest: three, or fewer so that the two do not meet."""
    return max(1, min(3, num_classes // 2))


def study_scores(lab: "Lab") -> pd.DataFrame:
    """A row for each run of the study: scores, recall of common and rare classes, with <name>_low and _high."""
    rows = []
    for (remedy, seed), run in lab.load_study().items():
        logits, labels = run.predictions
        order = _commonest_first(lab, seed)
        row = {"remedy": remedy, "seed": seed, **_study_row(metrics.tally(logits, labels), order)}
        for name, values in _study_row(metrics.resampled(logits, labels), order).items():
            row[f"{name}_low"], row[f"{name}_high"] = metrics.interval(values)
        right = int((logits.argmax(1) == labels).sum())
        row["accuracy_low"], row["accuracy_high"] = metrics.wilson(right, len(labels))
        error = metrics.calibration_error(logits, labels)
        rows.append(row | {"calibration_error": error, "run": run.path.name})
    return pd.DataFrame(rows)


def study_recall(lab: "Lab") -> pd.DataFrame:
    """Recall by class (rows, the commonest first) and remedy (columns), the mean over the seeds.

    Where seeds draw their own rare classes, a row is the k-th commonest, named by its number of images.
    """
    orders = {seed: _commonest_first(lab, seed) for _, seed in lab.plan.study}
    recalls = defaultdict(list)
    for (remedy, seed), run in lab.load_study().items():
        recalls[remedy].append(metrics.recall(metrics.tally(*run.predictions))[orders[seed]])
    names = [lab.source.classes[k] for k in orders[lab.params.seed]]
    if len({tuple(order) for order in orders.values()}) > 1:
        names = [f"{n:,} images" for n in study_counts(lab).sort(descending=True).values]
    frame = pd.DataFrame({remedy: np.mean(values, 0) for remedy, values in recalls.items()}, index=names)
    return frame[["none", *frame.columns.drop("none")]]


def study_f1(lab: "Lab") -> tuple[dict[str, list[float]], dict[str, np.ndarray]]:
    """Remedy -> macro F1 of each seed; and remedy -> (resamples,) the seeds' mean in the paired bootstrap."""
    f1, drawn = defaultdict(list), defaultdict(list)
    for (remedy, _), run in lab.load_study().items():
        f1[remedy].append(float(metrics.macro_f1(metrics.tally(*run.predictions))))
        drawn[remedy].append(metrics.macro_f1(metrics.resampled(*run.predictions)))
    return f1, {remedy: np.mean(values, 0) for remedy, values in drawn.items()}


def _study_row(tally: np.ndarray, order: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of `metrics.tally` (3, ..., C); order: the classes, the commonest first."""
    few = group_size(tally.shape[-1])
    return {
        "accuracy": metrics.accuracy(tally),
        "balanced_accuracy": metrics.mean_recall(tally),
        "macro_f1": metrics.macro_f1(tally),
        "recall_common": metrics.mean_recall(tally[..., order[:few]]),
        "recall_rare": metrics.mean_recall(tally[..., order[-few:]]),
    }


def _commonest_first(lab: "Lab", seed: int) -> np.ndarray:
    """(C,) classes by falling number of images in the study's imbalanced runs with this seed."""
    return lab.data_of(lab.plan.study["none", seed]).class_counts.argsort(descending=True, stable=True).numpy()


# ---------------------------------------------------------------- for reading


def scores_table(results: pd.DataFrame) -> pd.DataFrame:
    """`results` for reading: a row a model, every score with its 95% interval, costs with their units."""

    def percent(name: str) -> list[str]:
        return [f"{100 * v:.1f}" for v in results[name]]

    def between(low: str, high: str, digits: str, unit: float = 1) -> list[str]:
        return [f"{a * unit:{digits}} – {b * unit:{digits}}" for a, b in zip(results[low], results[high], strict=True)]

    def known(name: str, digits: str, unit: float = 1) -> list[str]:
        return ["–" if math.isnan(v) else f"{v * unit:{digits}}" for v in results[name]]

    columns = {
        "accuracy (%)": percent("accuracy"),
        "95% interval": between("accuracy_low", "accuracy_high", ".1f", 100),
        "macro F1": [f"{v:.3f}" for v in results["macro_f1"]],
        "its interval": between("macro_f1_low", "macro_f1_high", ".3f"),
        "top-2 (%)": percent("top_2"),
        "calibration error": [f"{v:.3f}" for v in results["calibration_error"]],
        "parameters": [f"{v:,}" for v in results["parameters"]],
        "million MACs": known("macs", ",.2f", 1e-6),
        "latency (ms)": known("latency_ms", ".2f"),
        "images/s": known("images_per_second", ",.0f"),
        "training (min)": [f"{v / 60:.1f}" for v in results["training_seconds"]],
    }
    return pd.DataFrame(columns, index=list(results["model"]))


def readme_table(results: pd.DataFrame) -> str:
    """The main columns of `scores_table` in Markdown, as the README shows them."""
    scores, costs = ["accuracy (%)", "95% interval"], ["parameters", "million MACs", "latency (ms)", "images/s"]
    shown = [*scores, *costs, "training (min)"]
    frame = scores_table(results)[shown]
    rows = [("model", *shown), ("---", *["---:"] * len(shown)), *frame.itertuples(name=None)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def pairs_table(pairs: pd.DataFrame) -> pd.DataFrame:
    """`pairs` for reading: differences B − A in points, each with the paired bootstrap's 95% interval."""
    rows = [
        {
            "A": row.a,
            "B": row.b,
            "accuracy, B − A": f"{100 * row.difference:+z.1f}",
            "95% interval": f"{100 * row.interval[0]:+z.1f} to {100 * row.interval[1]:+z.1f}",
            "macro F1, B − A": f"{100 * row.f1_difference:+z.1f}",
            "its interval": f"{100 * row.f1_interval[0]:+z.1f} to {100 * row.f1_interval[1]:+z.1f}",
            "only A right": row.only_a,
            "only B right": row.only_b,
            "p": f"{row.p:.2g}" if row.p >= 0.001 else "< 0.001",
        }
        for row in pairs.itertuples()
    ]
    return pd.DataFrame(rows)


def study_table(scores: pd.DataFrame, few: int) -> pd.DataFrame:
    """`study_scores` for reading: mean ± standard deviation over seeds; of one seed, the bootstrap's interval."""
    names = {
        "accuracy": "accuracy",
        "balanced_accuracy": "balanced accuracy",
        "macro_f1": "macro F1",
        "recall_common": f"recall, {few} commonest",
        "recall_rare": f"recall, {few} rarest",
        "calibration_error": "calibration error",
    }
    rows = {}
    for remedy, runs in scores.groupby("remedy", sort=False):
        row = rows[remedy.replace("_", " ")] = {}
        for name, label in names.items():
            row[label] = f"{runs[name].mean():.3f}"
            if len(runs) > 1:
                row[label] += f" ± {runs[name].std():.3f}"
            elif f"{name}_low" in runs:
                row[label] += f" ({runs[f'{name}_low'].item():.3f} – {runs[f'{name}_high'].item():.3f})"
    return pd.DataFrame(rows).T
