"""Page one: the question, what was found, the whole lab in a picture and a table; and what the appendix lists."""

import datetime
from typing import Any

import pandas as pd

from vitlab.analysis import complexity, findings, plots, sentences, sentences_linear, tables
from vitlab.analysis.drawing import drawing
from vitlab.analysis.figure_data import data_of
from vitlab.analysis.study import Study
from vitlab.analysis.typefaces import typeset
from vitlab.config import PRESETS, LabConfig
from vitlab.lab.results import Lab
from vitlab.machine import commit
from vitlab.models.registry import MODELS, reductions
from vitlab.texts import markdown

TITLE = "Vision Transformers, built, trained and measured"
SUBTITLE = "A lab report on ViT, DynamicViT and linear attention for small images"


def title_page(lab: Lab, profile: str, results: pd.DataFrame) -> dict[str, Any]:
    """What `render` sets on the first pages and in the appendix; every number is read from the runs.

    results: `tables.by_model(tables.results(lab))`.
    """
    params, figure = lab.params, plots.hero(results)
    values, n = data_of(figure), int(results["test_images"].iloc[0])
    with typeset(figure):
        shown, _ = drawing(figure)
    caption = (
        f"**The whole lab in a picture.** Accuracy on {n:,} test images, with 95% intervals, over measured speed "
        "(better to the right) and over work (better to the left), on logarithmic axes; dotted: the models that no "
        f"other beats at their cost.{' Of several seeds the mean.' if params.seeds > 1 else ''}"
    )
    hero = {"number": "overview", "drawing": shown, "caption": caption, "csv": values.to_csv(index=False)}
    hero["alt"] = "Test accuracy of each model over images per second and over million multiply-adds."
    table = {
        "html": findings.shortlist_table(results).to_html(border=0),
        "caption": findings.shortlist_caption(results, lab.costs.of(lab.plan.config("ViT"), only_read=True)["batch"]),
    }
    runs = [*(run for name in lab.plan.names for run in lab.load_seeds(name)), *lab.studied]
    environments = [environment for run in runs for environment in run.environments]
    machines, commits = ("; ".join(dict.fromkeys(texts)) for texts in zip(*map(_described, environments), strict=True))
    facts = [
        ("Profile", profile),
        ("Data", f"{lab.data_name}, {params.image_size}×{params.image_size} pixels, digest {lab.source.digest}"),
        ("Seed", lab.plan.seed_numbers(lab.plan.names).partition(" ")[2]),
        ("Hardware", machines),
        ("Commit of the runs", commits),
        ("Rendered", f"{datetime.date.today().isoformat()}, commit {commit()}"),
    ]
    # paths of this machine say nothing to the reader
    values, meaning = params.model_dump(exclude={"data_dir", "runs_dir", "extra_runs"}), LabConfig.help()
    rows = [(name, str(value), meaning[name]) for name, value in values.items()]
    page = {"title": TITLE, "subtitle": SUBTITLE, "summary": summary(lab, results), "hero": hero, "table": table}
    return page | {"facts": facts, "parameters": rows}


def summary(lab: Lab, results: pd.DataFrame) -> str:
    """The question, and the answers: Markdown."""
    vit, pairs, whole = results.set_index("model").loc["ViT"], tables.pairs(lab), "ViT, fine-tuned"
    ways = tables.reductions(lab, whole)  # as chapters 3 and 6 test them
    question = (
        f"How well do Vision Transformers learn {len(lab.data.train):,} images of {lab.data_title} without "
        "pre-training, and what do fewer tokens or cheaper attention buy? The yardstick is a ViT of "
        f"{vit['parameters']:,} parameters, at {vit['accuracy']:.1%}."
    )
    of_chapter = {number: [row.title for row in MODELS.values() if row.chapter == number] for number in ("03", "04")}
    attentions = tables.attentions(lab)
    linear = {name: attentions["ViT", name] for name in sentences_linear.LINEAR}
    width = PRESETS["tiny"]["dim"]  # of the layer that chapter 5's conclusion speaks of
    growth = lab.costs.latest("growth", dim=width)
    kinds = [kind for kind in growth["attention"].unique() if kind != "softmax"]
    measured = int(growth["tokens"].min()), int(growth["tokens"].max())
    crossed = {k: complexity.over_rounds(growth, lambda one, k=k: complexity.crossover(one, k))[0] for k in kinds}
    config = lab.plan.config("ViT")
    way, as_small = findings.best_way(ways), ""
    pairs_of_cost = [(MODELS[model].chapter, name) for model, name in lab.plan.equal_cost]
    smaller = {n: [name for chapter, name in pairs_of_cost if chapter == n] for n in of_chapter}  # built as small
    if way is not None and smaller["03"]:
        tested = tables.pairs(lab, [way["model"], *smaller["03"]])
        as_small = " " + findings.built_as_small(way["model"], smaller["03"], results, tested, lab.speed)
    found = [
        findings.best_model(results, pairs, lab.speed),
        imbalance(lab),
        findings.tokens(ways, whole, tokens_left(lab), lab.speed) + as_small,
        findings.linear(linear, lab.speed, crossed, measured, width, config.num_tokens + (config.pool == "cls")),
        findings.worth(results, {b: of_chapter[n] + smaller[n] for b, n in ((whole, "03"), ("ViT", "04"))}, lab.speed),
    ]
    return "\n".join([question, "", *(f"* {sentence}" for sentence in found), "", markdown(lab.params.notes)])


def imbalance(lab: Lab) -> str:
    """`findings.imbalance` of the lab's first study."""
    study = Study(lab)
    price = study.price
    counts = study.counts[study.seeds[0]]
    gains = study.gains()
    others = study.behind_the_best() if len(gains) > 1 else gains[:0]
    alike = int(((others["low"] <= 0) & (others["high"] >= 0)).sum())
    images, ratio = (int(counts.sum()), len(lab.data.train)), float(counts.max() / counts.min())
    return findings.imbalance(ratio, images, price, gains.rename(index=sentences.words), alike)


def tokens_left(lab: Lab) -> tuple[int, int]:
    """Patches in the last block of chapter 3's models, and in the first."""
    config = next(lab.plan.config(title) for title in reductions())
    by_block = MODELS[config.model].build.patches_by_block(config)
    return int(by_block[-1]), int(by_block[0])


def _described(machine: dict[str, Any]) -> tuple[str, str]:
    """Machine with software, and commit, of a run's environment.json."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    hardware = f"{machine['device']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB, {machine['system']}"
    return f"{hardware}; Python {machine['python']}, {versions}", machine["commit"]
