"""The tables that chapters share: computed from the runs of a lab, and set for reading."""

from collections import defaultdict
from itertools import combinations

import numpy as np
import pandas as pd
import torch

from vitlab import losses, metrics
from vitlab.augment import epoch_order
from vitlab.lab import REMEDIES, Lab

# ---------------------------------------------------------------- computed


def results(lab: Lab) -> pd.DataFrame:
    """What each compared run scores and costs, the most accurate first. Only extra runs' cost may be measured."""
    rows = []
    for name in lab.compared:
        run = lab.load(name)
        test = metrics.scores(*run.predictions)
        cost = lab.cost(run.config, only_read=name not in lab.extra)
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
                **{name: cost[name] for name in ("parameters", "macs", "latency_ms", "images_per_second")},
                "training_seconds": run.training_seconds,
                "epochs": run.summary["epochs"],
                "epoch_chosen": run.summary["epoch"],
                "test_images": test["n"],
                "seed": run.config.seed,
                "run": run.path.name,
            }
        )
    return pd.DataFrame(rows).sort_values("accuracy", ascending=False, kind="stable", ignore_index=True)


def pairs(lab: Lab) -> pd.DataFrame:
    """`compare` of every two compared runs, columns a and b; p is corrected for making all these tests (Holm)."""
    names = combinations(lab.compared, 2)
    frame = pd.DataFrame([{"a": a, "b": b, **lab.compare(a, b)} for a, b in names])
    return frame.assign(p=metrics.holm(frame["p"].to_numpy()))


def recall_differences(lab: Lab, reference: str, names: list[str] | None = None) -> pd.DataFrame:
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


def remedy_effects(lab: Lab) -> pd.DataFrame:
    """What each remedy does before any training, a row a remedy and class, the commonest class first.

    drawn: the class's share of the images really drawn in the first epoch; weight: of its loss; share: of the
    whole loss, drawn times weight; shift: added to its logit.
    """
    train, counts = lab.data_of(lab.study["none", lab.params.seed]).train, lab.study_counts
    rows = []
    for remedy in REMEDIES:
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


def study_scores(lab: Lab) -> pd.DataFrame:
    """A row for each run of the study: scores, recall of common and rare classes, with <name>_low and _high."""
    rows = []
    for (remedy, seed), run in lab.load_study().items():
        logits, labels = run.predictions
        order = _commonest_first(lab, seed)
        row = {"remedy": remedy, "seed": seed, **_study_row(lab, metrics.counts(logits, labels), order)}
        for name, values in _study_row(lab, metrics.resampled(logits, labels), order).items():
            row[f"{name}_low"], row[f"{name}_high"] = metrics.interval(values)
        right = int((logits.argmax(1) == labels).sum())
        row["accuracy_low"], row["accuracy_high"] = metrics.wilson(right, len(labels))
        error = metrics.calibration_error(logits, labels)
        rows.append(row | {"calibration_error": error, "run": run.path.name})
    return pd.DataFrame(rows)


def study_recall(lab: Lab) -> pd.DataFrame:
    """Recall by class (rows, the commonest first) and remedy (columns), the mean over the seeds.

    Where seeds draw their own rare classes, a row is the k-th commonest, named by its number of images.
    """
    orders = {seed: _commonest_first(lab, seed) for _, seed in lab.study}
    recalls = defaultdict(list)
    for (remedy, seed), run in lab.load_study().items():
        recalls[remedy].append(metrics.recall(metrics.counts(*run.predictions))[orders[seed]])
    names = [lab.source.classes[k] for k in orders[lab.params.seed]]
    if len({tuple(order) for order in orders.values()}) > 1:
        names = [f"{n:,} images" for n in lab.study_counts.sort(descending=True).values]
    frame = pd.DataFrame({remedy: np.mean(values, 0) for remedy, values in recalls.items()}, index=names)
    return frame[["none", *frame.columns.drop("none")]]


def study_f1(lab: Lab) -> tuple[dict[str, list[float]], dict[str, np.ndarray]]:
    """Remedy -> macro F1 of each seed; and remedy -> (resamples,) the seeds' mean in the paired bootstrap."""
    f1, drawn = defaultdict(list), defaultdict(list)
    for (remedy, _), run in lab.load_study().items():
        f1[remedy].append(float(metrics.macro_f1(metrics.counts(*run.predictions))))
        drawn[remedy].append(metrics.macro_f1(metrics.resampled(*run.predictions)))
    return f1, {remedy: np.mean(values, 0) for remedy, values in drawn.items()}


def _study_row(lab: Lab, counts: np.ndarray, order: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of `metrics.counts` (3, ..., C); order: the classes, the commonest first."""
    return {
        "accuracy": metrics.accuracy(counts),
        "balanced_accuracy": metrics.mean_recall(counts),
        "macro_f1": metrics.macro_f1(counts),
        "recall_common": metrics.mean_recall(counts[..., order[: lab.few]]),
        "recall_rare": metrics.mean_recall(counts[..., order[-lab.few :]]),
    }


def _commonest_first(lab: Lab, seed: int) -> np.ndarray:
    """(C,) classes by falling number of images in the study's imbalanced runs with this seed."""
    return lab.data_of(lab.study["none", seed]).counts.argsort(descending=True, stable=True).numpy()


# ---------------------------------------------------------------- for reading


def scores_table(results: pd.DataFrame) -> pd.DataFrame:
    """`results` for reading: a row a model, every score with its 95% interval, costs with their units."""

    def percent(name: str) -> list[str]:
        return [f"{100 * v:.1f}" for v in results[name]]

    def between(low: str, high: str, digits: str, unit: float = 1) -> list[str]:
        return [f"{a * unit:{digits}} – {b * unit:{digits}}" for a, b in zip(results[low], results[high], strict=True)]

    columns = {
        "accuracy (%)": percent("accuracy"),
        "95% interval": between("accuracy_low", "accuracy_high", ".1f", 100),
        "macro F1": [f"{v:.3f}" for v in results["macro_f1"]],
        "its interval": between("macro_f1_low", "macro_f1_high", ".3f"),
        "top-2 (%)": percent("top_2"),
        "calibration error": [f"{v:.3f}" for v in results["calibration_error"]],
        "parameters": [f"{v:,}" for v in results["parameters"]],
        "million MACs": [f"{v / 1e6:,.2f}" for v in results["macs"]],
        "latency (ms)": [f"{v:.2f}" for v in results["latency_ms"]],
        "images/s": [f"{v:,.0f}" for v in results["images_per_second"]],
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
