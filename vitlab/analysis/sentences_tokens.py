"""What chapter 3's numbers say: which tokens were needed, and what each way to fewer of them loses and saves."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vitlab.analysis.metrics import LEVEL, holm
from vitlab.analysis.sentences import expected, listed, p_text, verdict
from vitlab.texts import signed

if TYPE_CHECKING:
    from vitlab.lab import Lab
    from vitlab.runs import Run

BY_CHANCE, BY_RULE, MERGED, LEARNED = "Random tokens", "Top-K", "ToMe", "DynamicViT"


def start(lab: "Lab", backbone: "Run") -> str:
    """The ViT that this chapter goes on from."""
    test, config = backbone.summary["test"], backbone.config
    low, high = test["interval"]
    return (
        f"We start from *{lab.plan.backbone}* of chapter 2: {test['accuracy']:.1%} of {test['n']:,} test images (95% "
        f"interval {low:.1%} to {high:.1%}), {config.num_tokens} tokens through {config.depth} blocks. We ask for a "
        f"keep ratio of ρ = {lab.params.keep_ratio:g} at each stage."
    )


def work(ratio: float, left: list[int], stages: list[int], whole: float) -> str:
    """Caption of the multiply-adds; left: patches, all and after each stage; whole: million MACs with all tokens."""
    *most, last = (str(stage + 1) for stage in stages)
    return (
        f"Multiply-adds an image at ρ = {ratio:g}, by the formula and as torch counts them: "
        f"{', '.join(map(str, left))} patches, the first reduction before blocks {', '.join(most)} and {last}. What "
        "differs is what the choice itself needs: DynamicViT's predictors, ToMe's similarities. The ViT with all "
        f"tokens: {whole:,.3f} million."
    )


def diagram(ratio: float) -> str:
    return (
        f"Fewer tokens, stage by stage, at ρ = {ratio:g}. Pruned, what a stage drops no later block sees; merged, one "
        "token stands for several. Which tokens stay is drawn as an example."
    )


def as_it_is(images: str) -> str:
    return (
        f"Two trained ViTs as they are, at ρ = 0.7, {images}. How alike tokens are after the first block (each image's "
        "mean subtracted), and how far, in patches, a place is from the nearest one that was kept after the last stage."
    )


def curves(lab: "Lab", budget: str, rate: float) -> str:
    return (
        f"Trained on for {budget} from the same weights ({lab.plan.seed_words}). Validation is done with tokens really "
        f"gone. DynamicViT's ViT learns at {rate:.0%} of its predictors' rate."
    )


def speeds(lab: "Lab", batch: int) -> str:
    return (
        f"Trained on for as long, ρ = {lab.params.keep_ratio:g}: accuracy on {len(lab.data.test):,} test images "
        f"against work and time (float32, medians of rounds that take turns, batches of {batch}, and batch 1)."
    )


def is_it_faster(speed_up: pd.Series, latency_ratio: pd.Series) -> str:
    """Which ways to fewer tokens are faster than the ViT with all of them, in batches and alone."""
    quick, prompt = speed_up.index[speed_up > 1], latency_ratio.index[latency_ratio < 1]

    def told(names: pd.Index) -> str:
        return "all of them" if len(names) == len(speed_up) else listed(list(names)) or "none of them"

    return f"Faster than the ViT with all tokens are, in batches, {told(quick)}; at one image alone, {told(prompt)}."


def stands_for(left: int, ratio: float, images: int) -> str:
    return (
        f"What {left} tokens stand for after the last stage, ρ = {ratio:g}: the first test image of {images} classes, "
        "a row a method."
    )


def places(images: int, middle: dict[str, float]) -> str:
    """middle: method -> how often it keeps the middle of the image, over its mean."""
    told = ", ".join(f"{name} {times:.2f}" for name, times in middle.items())
    return (
        f"How often each place is kept, over the first {images:,} test images: the part of a token that a patch has "
        "after the last stage (1 alone, 1/n as one of n, 0 dropped). In the middle of the image they keep "
        f"{told} times their mean."
    )


def broken(name: str, reference: str, lost: int, won: int, images: int) -> str:
    """lost, won: test images that only the ViT with all tokens, and only the one with fewer, answers rightly."""
    return (
        f"Images that fewer tokens broke: *{reference}* is right, *{name}* is wrong; below each what it still saw "
        f"after the last stage. Of {images:,} test images {lost:,} were broken in this way, and {won:,} mended."
    )


def over_tokens(images: str, ratio: float) -> str:
    return (
        f"Accuracy over the tokens that a block sees, on {images} with 95% intervals; dashed: all tokens. Right: "
        f"throughput at ρ = {ratio:g}."
    )


def savings(loss: float, images: str) -> str:
    return (
        f"The largest saving at half a point: the share of the blocks' multiply-adds that goes before {100 * loss:g} "
        f"points of accuracy are lost against the same ViT with all tokens, interpolated ({images})."
    )


def order_of_loss(trained: pd.DataFrame, apart: bool) -> str:
    """Whether merging hurt least and chance most, and whether learning beat the rule, as was expected.

    trained: `tables.reductions`; apart: whether a test tells the first of this order from the last, without which
    nothing is confirmed or refuted.
    """
    points = 100 * trained.set_index("model")["difference"]
    best, worst = points.idxmax(), points.idxmin()
    least = f"*{best}* loses least ({signed(points[best])} points)"
    most = f"*{worst}* most ({signed(points[worst])})"
    learned = points[LEARNED] > points[BY_RULE]
    rule = f"learning {'beats' if learned else 'does not beat'} the rule (*{LEARNED}* {signed(points[LEARNED])}, "
    rule += f"*{BY_RULE}* {signed(points[BY_RULE])})"
    if not apart:
        return (
            f"What was expected is neither confirmed nor refuted: as measured {least}, {most}, and {rule}, but not "
            "even the first and the last of this order can be told apart on these images."
        )
    return (
        f"{expected(best == MERGED)}, {least}; {expected(worst == BY_CHANCE).lower()}, {most}. {expected(learned)}, "
        f"{rule}."
    )


def learned(lab: "Lab", found: pd.DataFrame) -> str:
    """What DynamicViT reaches, and whether its predictors know more than chance gives; found: `tables.reductions`."""
    row = found.set_index("model").loc[LEARNED]
    long = verdict("the ViT trained on for as long", "it", row.to_dict())  # corrected for all ways
    chance = verdict("random tokens, trained on for as long,", LEARNED, lab.compare(BY_CHANCE, LEARNED))
    return (
        f"DynamicViT answers **{row['accuracy']:.1%}** of the test images correctly with {row['saved']:.0%} fewer "
        f"multiply-adds: {long}. Did its predictors learn more than chance gives? As measured, {chance}."
    )


def how_far(sweep: pd.DataFrame, tests: dict[float, dict], images: str, unpruned: str) -> str:
    """One sentence on the keep ratio down to which no test shows a loss against the model named by `unpruned`.

    sweep: keep_ratio and accuracy, falling; tests: keep ratio -> `metrics.mcnemar` of both.
    """
    p = holm(np.array([test["p"] for test in tests.values()]))
    lost = [q < LEVEL and test["only_a"] > test["only_b"] for q, test in zip(p, tests.values(), strict=True)]
    shown = [f"ρ = {row.keep_ratio:g} ({row.accuracy:.1%})" for row in sweep.itertuples()]
    rule = f"the {images} can show {{}} against {unpruned} (McNemar, Holm over the {len(lost)} keep ratios)"
    if not any(lost):
        return f"Down to {shown[-1]} {rule.format('no loss')}."
    first = lost.index(True)
    if first == 0:
        return f"Even at {shown[0]} {rule.format('a loss')}."
    return f"Down to {shown[first - 1]} {rule.format('no loss')}; at {shown[first]} they show one."


def which_reduction(rows: pd.DataFrame, unreduced: str) -> str:
    """Which way to fewer tokens to take, by rule: of those with no shown loss the one of the highest accuracy.

    rows: a row a method with model, difference, p (corrected for all of them), saved (share of the MACs) and accuracy;
    each is compared with the model named by `unreduced`.
    """
    lost = rows[(rows["p"] < LEVEL) & (rows["difference"] < 0)]
    fine = rows.drop(lost.index)
    named = "; ".join(f"*{row.model}* ({signed(100 * row.difference)} points)" for row in lost.itertuples())
    shown = f" A loss against *{unreduced}* is shown for {named}." if len(lost) else ""
    if fine.empty:
        return f"Every way to fewer tokens loses against *{unreduced}*, by a difference that these images show.{shown}"
    best = fine.loc[fine["accuracy"].idxmax()]
    others = "; ".join(f"*{name}*" for name in fine["model"].drop(best.name))
    text = (
        f"Of the ways to fewer tokens take **{best['model']}**: {best['saved']:.0%} fewer multiply-adds, "
        f"{signed(100 * best['difference'])} points against *{unreduced}*, and no loss that these images can show"
    )
    return f"{text} (nor for {others}).{shown}" if others else f"{text}.{shown}"


def why_it_fails(rows: pd.DataFrame) -> str:
    """What the measurements say of the ViTs that tokens were taken from, a row a ViT.

    Columns vit, its name; chosen, random, merged: points lost by Top-K, random tokens, ToMe; alike: cosine of
    neighbours; apart: how far places are from the nearest that Top-K keeps, over the same at random; p: of McNemar's
    test between Top-K and random tokens.
    """
    lines = []
    for row in rows.itertuples():
        worse = f"{'more' if row.chosen > row.random else 'fewer'} than with random ones"
        if row.p >= LEVEL:
            worse = "not shown to differ from random ones"
        chosen, drawn, merged = (signed(points, "z.1f") for points in (row.chosen, row.random, row.merged))
        lines.append(
            f"*{row.vit}*: with the tokens that Top-K chooses {chosen} points are lost, {worse} ({drawn}, "
            f"{p_text(row.p)}); merging loses {merged}. Neighbours have a cosine of {signed(row.alike, '.2f')}; a "
            f"place is {row.apart:.2f} times as far from the nearest that Top-K keeps as at random."
        )
    return " ".join(lines)
