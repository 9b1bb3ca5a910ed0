"""The tables that chapters share: computed from the runs of a lab, and set for reading."""

import math
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vitlab.analysis import metrics
from vitlab.analysis.sentences import words
from vitlab.analysis.sentences_linear import CHANGES, LINEAR
from vitlab.config import POST_HOC, RunConfig
from vitlab.models import registry
from vitlab.texts import signed, unit_of_time

if TYPE_CHECKING:
    from vitlab.analysis.study import Study
    from vitlab.lab import Lab
    from vitlab.models.vit import ViT
    from vitlab.runs import Run

COSTS = ("parameters", "macs", "latency_ms", "images_per_second")
IMBALANCED, WITH_REMEDY = "imbalanced", "imbalanced, with a remedy"
# test accuracies on CIFAR-10 that the course quotes, from trainings on a GPU
QUOTED = {"ViT": 0.852, "DynamicViT": 0.843, "linear ViT": 0.825, IMBALANCED: 0.783, WITH_REMEDY: 0.821}

# ---------------------------------------------------------------- computed


def results(lab: "Lab", names: list[str] | None = None) -> pd.DataFrame:
    """What each run scores and costs, a row a run, the most accurate first; of the models `names`, or of all that are
    compared. Only extra runs' cost may be measured; what a module of the reader's own costs is unknown, but for its
    parameters. training_seconds and epochs include those of the run that it started from, epoch_chosen counts its own.
    """
    rows = []
    for name in names or lab.compared:
        for run in lab.load_seeds(name):
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
                    "epochs": run.spent("epochs"),
                    "epoch_chosen": run.summary["epoch"],
                    "test_images": test["n"],
                    "seed": run.config.seed,
                    "run": run.path.name,
                }
            )
    return pd.DataFrame(rows).sort_values("accuracy", ascending=False, kind="stable", ignore_index=True)


def by_model(results: pd.DataFrame) -> pd.DataFrame:
    """`results` with a row a model: means over its seeds, also of the intervals' ends, the best mean first.

    The time of training is the first seed's: what else the machine did differs. Three more columns: seeds, and the
    standard deviations over them, accuracy_spread and macro_f1_spread, NaN for one.
    """
    groups = results.groupby("model", sort=False)
    means = groups[[name for name in results if name not in ("model", "seed", "run")]].mean()
    whole = ["parameters", "epoch_chosen", "epochs", "test_images"]
    means[whole] = means[whole].round().astype(int)
    means["seeds"] = groups.size()
    firsts = (
        results.sort_values("seed", kind="stable").groupby("model", sort=False)[["run", "training_seconds"]].first()
    )
    means["run"], means["training_seconds"] = firsts["run"], firsts["training_seconds"]
    for name in ("accuracy", "macro_f1"):
        means[f"{name}_spread"] = groups[name].std()
    return means.reset_index().sort_values("accuracy", ascending=False, kind="stable", ignore_index=True)


def chapter_scores(lab: "Lab", name: str) -> dict[str, str]:
    """For a chapter's table: accuracy, of several seeds mean ± standard deviation, its 95% interval, and macro F1."""
    tests = [run.summary["test"] for run in lab.load_seeds(name)]
    low, high = np.mean([test["interval"] for test in tests], axis=0)
    f1, f1_spread = metrics.mean_and_spread([test["f1"]["macro"] for test in tests])
    return {
        "test accuracy": _share([test["accuracy"] for test in tests]),
        "95% interval": f"{low:.1%} – {high:.1%}",
        "macro F1": f"{f1:.3f}" + (f" ± {f1_spread:.3f}" if len(tests) > 1 else ""),
    }


def _share(of_seeds: list[float]) -> str:
    """A share of the test images; of several seeds mean ± standard deviation."""
    mean, spread = metrics.mean_and_spread(of_seeds)
    return f"{mean:.1%}" + (f" ± {100 * spread:.1f}" if len(of_seeds) > 1 else "")


def recalls(lab: "Lab", name: str) -> np.ndarray:
    """(C,) test recall of each class, the mean over the seeds."""
    return np.mean([run.summary["test"]["per_class"]["recall"] for run in lab.load_seeds(name)], axis=0)


def parameters_by_part(model: "ViT") -> pd.DataFrame:
    """Where a ViT's parameters sit: part -> count."""
    parts = {
        "tokenizer": [model.embed],
        "attention, all blocks": [block.attention for block in model.blocks],
        "MLP, all blocks": [block.mlp for block in model.blocks],
        "head": [model.head],
    }
    counts = {name: sum(p.numel() for part in of for p in part.parameters()) for name, of in parts.items()}
    rest = "norms, positions" + (", class token" if model.cls_token is not None else "")
    counts[rest] = sum(p.numel() for p in model.parameters()) - sum(counts.values())
    return pd.DataFrame({"count": counts})


def pairs(lab: "Lab", names: list[str] | None = None) -> pd.DataFrame:
    """`compare` of every two models, columns a and b; p is corrected for making all these tests (Holm).

    Of the models `names`, or of all that are compared; then the chance of training is pooled over all chapters.
    """
    every = combinations(names or lab.compared, 2)
    found = metrics.corrected({(a, b): lab.compare(a, b, everywhere=names is None) for a, b in every})
    return pd.DataFrame([{"a": a, "b": b, **comparison} for (a, b), comparison in found.items()])


def against(lab: "Lab", name: str, others: list[str]) -> pd.DataFrame:
    """`pairs` of one model with each of the others alone; p is corrected for these tests (Holm)."""
    found = metrics.corrected({other: lab.compare(name, other) for other in others if other != name})
    return pd.DataFrame([{"a": name, "b": other, **comparison} for other, comparison in found.items()])


def flat(pairs: pd.DataFrame) -> pd.DataFrame:
    """`pairs` for a file: an interval becomes two columns, its name with _low and _high; p is called `p_holm`."""
    ends = {
        f"{name}_{end}": pairs[name].str[i]
        for name in ("interval", "f1_interval")
        for i, end in enumerate(("low", "high"))
    }
    return pairs.drop(columns=["interval", "f1_interval"]).rename(columns={"p": "p_holm"}).assign(**ends)


def reductions(lab: "Lab", unreduced: str = "ViT, fine-tuned") -> pd.DataFrame:
    """A row for each way to fewer tokens, compared with the ViT trained on without: model, accuracy, saved, `compare`.

    accuracy: the mean over its seeds, while difference is that of the seeds which both have; saved: the share of
    all multiply-adds; p is corrected for the number of ways (Holm).
    """
    whole, rows = sum(lab.costs.macs(lab.plan.config(unreduced)).values()), []
    ways = registry.reductions()
    for name, comparison in metrics.corrected({name: lab.compare(unreduced, name) for name in ways}).items():
        saved = 1 - sum(lab.costs.macs(lab.plan.config(name)).values()) / whole
        score = np.mean([run.summary["test"]["accuracy"] for run in lab.load_seeds(name)])
        rows.append({"model": name, "accuracy": score, "saved": saved, **comparison})
    return pd.DataFrame(rows)


def attentions(lab: "Lab") -> dict[tuple[str, str], dict]:
    """`compare` of chapter 4's pairs: with the ViT, from step to step, linear attentions among themselves.

    p is corrected for all of these tests (Holm), whichever of them a sentence speaks of.
    """
    names = list(lab.plan.chapters["04"])
    steps = [(a, b) for a, b, _ in CHANGES if {a, b} <= {"ViT", *names}]
    wanted = dict.fromkeys([*(("ViT", name) for name in names), *steps, *combinations(LINEAR, 2)])
    return metrics.corrected({(a, b): lab.compare(a, b) for a, b in wanted})


def speeds(lab: "Lab", names: list[str], reference: str) -> pd.DataFrame:
    """The clock of models that are measured together, a row each: images_per_second and latency_ms, medians.

    speed_up and latency_ratio are relative to `reference`, within each round, and with _spread how far off they may be.
    """
    rows = {}
    for name in names:
        config, other = lab.plan.config(name), lab.plan.config(reference)
        row = {column: lab.costs.of(config)[column] for column in ("images_per_second", "latency_ms")}
        for column, what in (("speed_up", "images_per_second"), ("latency_ratio", "latency")):
            row[column], row[f"{column}_spread"] = lab.costs.ratio(config, other, what)
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def recall_differences(lab: "Lab", reference: str, names: list[str] | None = None) -> pd.DataFrame:
    """Model, class, recall's difference to `reference`'s, and its p within the class as of `metrics.compare`, Holm over
    the table. Of the models `names`, or of all that are compared.
    """
    rows = []
    for name in names or lab.compared:
        base, logits, labels = lab.paired(reference, name)
        variance, freedom = lab.training_noise(reference, name, "recall")
        for k, title in enumerate(lab.source.classes if name != reference else ()):
            first, second = (part[:, labels == k] for part in (base, logits))
            exact = metrics.mcnemar(first, second, labels[labels == k])["p"]
            gains = ((second.argmax(-1) == k).astype(float) - (first.argmax(-1) == k)).mean(0)  # of each image
            by_images = gains.var(ddof=1) / len(gains) if len(gains) > 1 else 0.0
            difference = float(gains.mean())
            p = metrics.p_value(difference, 2 * variance / len(base), freedom, by_images, exact)
            rows.append({"model": name, "class": title, "difference": difference, "p": p})
    frame = pd.DataFrame(rows)
    return frame.assign(p=metrics.holm(frame["p"].to_numpy()))


def beside_the_course(lab: "Lab", results: pd.DataFrame, study: "Study") -> pd.DataFrame:
    """What the course quotes for CIFAR-10, and what this lab's models of the kind have: quoted, model, accuracy, low,
    high (its 95% interval), parameters; a row for each of `QUOTED`, but for imbalance where the study has none.

    results: `by_model`. The ViT is the one that chapter 3 goes on from, the linear one the best of `LINEAR`, and the
    remedy the one of the best macro F1.
    """
    models = results.set_index("model")
    linear = models.loc[list(LINEAR), "accuracy"].idxmax()
    named = {"ViT": lab.plan.backbone, "DynamicViT": "DynamicViT", "linear ViT": linear}
    columns = {"accuracy": "accuracy", "low": "accuracy_low", "high": "accuracy_high", "parameters": "parameters"}
    rows = {
        what: {"model": name, **{mine: models.loc[name, of] for mine, of in columns.items()}}
        for what, name in named.items()
    }
    scores = study.scores.groupby("remedy")[["accuracy", "accuracy_low", "accuracy_high"]].mean()
    trained = {IMBALANCED: "none", WITH_REMEDY: metrics.best_gain(study.gains()).name}
    for what, name in trained.items() if lab.plan.study_imbalance != "none" else ():
        accuracy, low, high = scores.loc[name]
        run = study.runs["none" if name == POST_HOC else name, study.seeds[0]]
        rows[what] = {"model": name, "accuracy": accuracy, "low": low, "high": high}
        rows[what]["parameters"] = run.summary["parameters"]
    frame = pd.DataFrame.from_dict(rows, orient="index")
    return frame.assign(quoted=[QUOTED[what] for what in frame.index])


# ---------------------------------------------------------------- for reading


def course_table(found: pd.DataFrame) -> pd.DataFrame:
    """`beside_the_course` for reading, with whether the interval leaves the quoted figure below it."""
    columns = {
        "the course (%)": [f"{100 * value:.1f}" for value in found["quoted"]],
        "here (%)": [f"{100 * value:.1f}" for value in found["accuracy"]],
        "95% interval": [f"{100 * row.low:.1f} – {100 * row.high:.1f}" for row in found.itertuples()],
        "by": [words(name) for name in found["model"]],
        "parameters": [f"{value:,}" for value in found["parameters"]],
        "passed": np.select([found["low"] > found["quoted"], found["high"] < found["quoted"]], ["yes", "no"], "even"),
    }
    return pd.DataFrame(columns, index=found.index)


def shares(counts: pd.DataFrame) -> pd.DataFrame:
    """`parameters_by_part` for reading."""
    total = counts["count"].sum()
    columns = {
        "parameters": counts["count"].map("{:,}".format),
        "share": (counts["count"] / total).map("{:.1%}".format),
    }
    return pd.DataFrame(columns)


def training(lab: "Lab", runs: dict[str, "Run"]) -> pd.DataFrame:
    """What the runs of a chapter score, and of the first seed which epoch was kept, and how long it was trained."""
    unit, length, digits = unit_of_time(run.summary["seconds"] for run in runs.values())
    rows = {
        name: chapter_scores(lab, name)
        | {
            "top-2": _share([metrics.top_k(*one.predictions, 2) for one in lab.load_seeds(name)]),
            "epoch kept": f"{run.summary['epoch']} of {run.summary['epochs']}",
            "training": f"{run.summary['seconds'] / length:{digits}} {unit}",
            "training images/s": f"{run.summary['images_per_second']:,.0f}",
        }
        for name, run in runs.items()
    }
    return pd.DataFrame(rows).T


def by_class(test: dict, classes: tuple[str, ...]) -> pd.DataFrame:
    """Precision, recall and F1 of each class, and their means; test: a run's `summary["test"]`."""
    table = pd.DataFrame(test["per_class"], index=classes).map("{:.3f}".format)
    table["test images"] = [f"{sum(row):,}" for row in test["confusion"]]
    for mean, title in (("macro", "mean, all classes alike"), ("weighted", "mean, weighted by images")):
        table.loc[title] = [*(f"{test[name][mean]:.3f}" for name in ("precision", "recall", "f1")), f"{test['n']:,}"]
    return table


def scores_table(results: pd.DataFrame) -> pd.DataFrame:
    """`by_model` for reading: a row a model, every score with its 95% interval, costs with their units.

    Of several seeds accuracy and macro F1 are mean ± standard deviation.
    """
    once = pd.Series(math.nan, results.index)

    def percent(name: str) -> list[str]:
        return spread(name, ".1f", 100)

    def spread(name: str, digits: str, unit: float = 1) -> list[str]:
        both = zip(results[name], results.get(f"{name}_spread", once), strict=True)
        return [f"{v * unit:{digits}}" + ("" if math.isnan(s) else f" ± {s * unit:{digits}}") for v, s in both]

    def between(low: str, high: str, digits: str, unit: float = 1) -> list[str]:
        return [f"{a * unit:{digits}} – {b * unit:{digits}}" for a, b in zip(results[low], results[high], strict=True)]

    def known(name: str, digits: str, unit: float = 1) -> list[str]:
        return ["–" if math.isnan(v) else f"{v * unit:{digits}}" for v in results[name]]

    unit, length, digits = unit_of_time(results["training_seconds"])
    columns = {
        "accuracy (%)": percent("accuracy"),
        "95% interval": between("accuracy_low", "accuracy_high", ".1f", 100),
        "macro F1": spread("macro_f1", ".3f"),
        "its interval": between("macro_f1_low", "macro_f1_high", ".3f"),
        "top-2 (%)": percent("top_2"),
        "calibration error": [f"{v:.3f}" for v in results["calibration_error"]],
        "parameters": [f"{v:,}" for v in results["parameters"]],
        "million MACs": known("macs", ",.2f", 1e-6),
        "latency (ms)": known("latency_ms", ".2f"),
        "images/s": known("images_per_second", ",.0f"),
        f"training ({unit})": [f"{v:{digits}}" for v in results["training_seconds"] / length],
    }
    return pd.DataFrame(columns, index=list(results["model"]))


def readme_table(results: pd.DataFrame) -> str:
    """The main columns of `scores_table` in Markdown, as the README shows them."""
    scores, costs = ["accuracy (%)", "95% interval"], ["parameters", "million MACs", "latency (ms)", "images/s"]
    table = scores_table(results)
    shown = [*scores, *costs, table.columns[-1]]  # the last says the unit of the training's time
    frame = table[shown]
    rows = [("model", *shown), ("---", *["---:"] * len(shown)), *frame.itertuples(name=None)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def pairs_table(pairs: pd.DataFrame) -> pd.DataFrame:
    """`pairs` for reading: differences B − A in points, each with its 95% interval."""
    rows = [
        {
            "A": row.a,
            "B": row.b,
            "accuracy, B − A": signed(100 * row.difference),
            "95% interval": f"{signed(100 * row.interval[0])} to {signed(100 * row.interval[1])}",
            "macro F1, B − A": signed(100 * row.f1_difference),
            "its interval": f"{signed(100 * row.f1_interval[0])} to {signed(100 * row.f1_interval[1])}",
            "only A right": row.only_a,
            "only B right": row.only_b,
            "p": f"{row.p:.2g}" if row.p >= 0.001 else "< 0.001",
        }
        for row in pairs.itertuples()
    ]
    return pd.DataFrame(rows)


def pairs_matrix(pairs: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """`pairs` of many models at a glance, a row and a column for each of `names`, columns by their numbers.

    A cell says by how many points of accuracy the row's model is above the column's; a star marks what is shown.
    """
    rows = {name: dict.fromkeys(names, "") for name in names}
    for row, star in zip(pairs.itertuples(), metrics.shown(pairs), strict=True):
        for ahead, behind, points in ((row.b, row.a, row.difference), (row.a, row.b, -row.difference)):
            rows[ahead][behind] = signed(100 * points) + ("*" if star else "")
    frame = pd.DataFrame(rows).T
    numbered = [f"{i}. {name}" for i, name in enumerate(names, 1)]
    return frame.set_axis(numbered, axis=0).set_axis([str(i) for i in range(1, len(names) + 1)], axis=1)
