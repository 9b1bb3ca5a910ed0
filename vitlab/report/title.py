"""Page one: the question, what was found, the whole lab in a picture and a table; and what the appendix lists."""

import datetime
from typing import Any

import pandas as pd

from vitlab.analysis import complexity, findings, plots, sentences, tables
from vitlab.analysis.drawing import drawing
from vitlab.analysis.figure_data import data_of
from vitlab.config import LabConfig
from vitlab.lab.results import Lab
from vitlab.machine import environment
from vitlab.models.registry import MODELS

TITLE = "Vision Transformers, built, trained and measured"
SUBTITLE = "A lab report on ViT, DynamicViT and linear attention for small images"


def title_page(lab: Lab, profile: str, results: pd.DataFrame) -> dict[str, Any]:
    """What `render` sets on the first pages and in the appendix; every number is read from the runs.

    results: `tables.results(lab)`.
    """
    params, figure = lab.params, plots.hero(results)
    values, n = data_of(figure), int(results["test_images"].iloc[0])
    shown, _ = drawing(figure)
    caption = (
        f"**The whole lab in a picture.** Accuracy on {n:,} test images, with 95% intervals, over measured speed and "
        "over work, both on logarithmic axes. To the right is better on the left, to the left on the right; the dotted "
        "line joins the models that no other beats at their cost."
    )
    hero = {"number": "overview", "drawing": shown, "caption": caption, "csv": values.to_csv(index=False)}
    hero["alt"] = "Test accuracy of each model over images per second and over million multiply-adds."
    table = {
        "html": findings.shortlist_table(results).to_html(border=0),
        "caption": "**The models in short**, most accurate first. Chapter 6 has all, and how they were measured.",
    }
    runs = [*(lab.load(name) for name in lab.plan.names), *lab.load_study().values()]
    environments = [environment for run in runs for environment in run.environments]
    machines, commits = ("; ".join(dict.fromkeys(texts)) for texts in zip(*map(_described, environments), strict=True))
    facts = [
        ("Profile", profile),
        ("Data", f"{lab.data_name}, {params.image_size}×{params.image_size} pixels, digest {lab.source.digest}"),
        ("Seed", str(params.seed)),
        ("Hardware", machines),
        ("Commit of the runs", commits),
        ("Rendered", f"{datetime.date.today().isoformat()}, commit {environment()['commit']}"),
    ]
    # paths of this machine say nothing to the reader
    values, meaning = params.model_dump(exclude={"data_dir", "runs_dir", "extra_runs"}), LabConfig.help()
    rows = [(name, str(value), meaning[name]) for name, value in values.items()]
    page = {"title": TITLE, "subtitle": SUBTITLE, "summary": summary(lab, results), "hero": hero, "table": table}
    return page | {"facts": facts, "parameters": rows}


def summary(lab: Lab, results: pd.DataFrame) -> str:
    """The question, and the answers: Markdown."""
    vit, pairs = results.set_index("model").loc["ViT"], tables.pairs(lab)
    question = (
        f"How well do Vision Transformers learn {len(lab.data.train):,} images of {lab.data_name} without "
        "pre-training, and what do fewer tokens or cheaper attention buy? The yardstick is a ViT of "
        f"{vit['parameters']:,} parameters, at {vit['accuracy']:.1%}."
    )
    by_chapter = {chapter: list(runs) for chapter, runs in lab.plan.chapters.items()}
    reduced = [row.title for row in MODELS.values() if row.chapter == "03"]
    linear = [row.title for row in MODELS.values() if row.chapter == "04"]
    reference = next(name for name in by_chapter["03"] if name not in reduced)
    growth = lab.costs.latest("growth")
    crossed = {kind: complexity.crossover(growth, kind) for kind in growth["attention"].unique() if kind != "softmax"}
    found = [
        findings.best_model(results, pairs),
        imbalance(lab),
        findings.tokens(results, pairs, reference, reduced),
        findings.linear(results, pairs, linear, crossed, int(growth["tokens"].max())),
        findings.worth(results),
    ]
    return "\n".join([question, "", *(f"* {sentence}" for sentence in found), "", lab.params.notes])


def imbalance(lab: Lab) -> str:
    """`findings.imbalance` of the lab's study."""
    scores, resampled = tables.study_f1(lab)
    price, remedy, gain = sentences.price_and_gain(scores, resampled)
    counts = tables.study_counts(lab)
    return findings.imbalance(float(counts.max() / counts.min()), price, remedy.replace("_", " "), gain)


def _described(machine: dict[str, Any]) -> tuple[str, str]:
    """Machine with software, and commit, of a run's environment.json."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    hardware = f"{machine['device']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB, {machine['system']}"
    return f"{hardware}; Python {machine['python']}, {versions}", machine["commit"]
