"""What chapter 1's numbers say of the study of imbalance. No gain inside the noise is called one."""

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from torch import Tensor

from vitlab.analysis.metrics import best_gain
from vitlab.analysis.sentences import points, words
from vitlab.config import BALANCED, POST_HOC, STUDIED
from vitlab.texts import listed
from vitlab.training.losses import DEFERRED, SWITCH

if TYPE_CHECKING:
    from collections.abc import Collection

    from vitlab.analysis.study import Study
    from vitlab.config import RunConfig

SELDOM = "; with class weights a rare image counts much, but seldom comes"
CONFUSIONS = (
    "Where do the rare ones go? Answers in percent of the true class (from 1 on), the commonest class first, all seeds "
    "together; left without a remedy, right with the best one. What stands left of the diagonal is taken for a "
    "commoner class."
)
CALIBRATION = (
    "Accuracy against calibration error: small marks are seeds, large ones their mean. A remedy changes what a "
    "probability means, so one that answers better need not know better how sure it is."
)

# ---------------------------------------------------------------- before any training


def studied(remedies: "Collection[str]") -> str:
    """Which of the remedies that the chapter explains this run's study has."""
    if {*remedies} >= {*STUDIED}:
        return "This run studies all of them."
    return f"This run studies, beside *none*: {', '.join(f'*{words(name)}*' for name in remedies if name != 'none')}."


def remedy_effects(remedies: "Collection[str]") -> str:
    """Caption of what remedies do to each class, of those that are drawn."""
    deferred = f" (of the deferred ones from {SWITCH:.0%} of the steps on)" if {*DEFERRED} & {*remedies} else ""
    ldam = " or, for LDAM, over any other, whose logits are cosines times 30" if "ldam_drw" in remedies else ""
    both = "; *both* tilts to the other side" if "both" in remedies else ""
    return (
        "What each remedy does to each class: its share of the images really drawn in the first epoch; the weight of "
        f"its loss{deferred}; the product, its share of the whole loss; and the margin by which its logit has to win, "
        f"over the commonest class{ldam}. A level share is fair{both}."
    )


def twice(effects: pd.DataFrame) -> str:
    """What doing the same correction twice amounts to, where there is something to correct; else "".

    effects: `study.remedy_effects`, the commonest class first.
    """
    ends = effects.groupby("remedy", sort=False).agg(["first", "last"])  # the commonest and the rarest class
    if "both" not in ends.index or ends["images"]["first"].iloc[0] < 2 * ends["images"]["last"].iloc[0]:
        return ""
    drawn, weight, share = (
        ends[name]["last"]["both"] / ends[name]["first"]["both"] for name in ("drawn", "weight", "share")
    )
    return (
        f"Twice is too much: under *both* the rarest class comes {drawn:.2f} times as often as the commonest, its few "
        f"images again and again, and then still counts {weight:.3g} times as much: {share:.3g} times the commonest "
        "class's share of the loss. That can hurt: rare classes are then answered too often, and the common ones pay "
        "with their recall."
    )


# ---------------------------------------------------------------- the study


def validation_of_rare(train: Tensor, val: Tensor) -> str:
    """Why validation chooses nothing in the study, from what it has of the rarest class; "" without validation images.

    train, val: (C,) images of each class.
    """
    if not val.any():
        return ""
    rarest = train.argmin()
    held, left = int(val[rarest]), int(train[rarest])
    reason = (
        "In practice one would train on the former instead."
        if held > left
        else "An epoch chosen by the former would bring their chance into the comparison."
    )
    return f"Images of the rarest class: {held:,} for validation, {left:,} for training. {reason}"


def _number(few: int) -> tuple[str, str]:
    return (f"{few} ", "classes") if few > 1 else ("", "class")


def scores(study: "Study", batch: int) -> str:
    """Caption of the study's figure."""
    few, vit = study.group, study.lab.plan.study_vit
    others, (many, kind) = ", the other" if len(study.class_names) > 2 * few else "", _number(few)
    return (
        f"Test scores by remedy ({vit}), seeds: {len(study.seeds)}, {study.steps:,} steps of batch {batch}. Recall: "
        f"of the {many}commonest{others} and the {many}rarest {kind}; the commonest show who pays, the rarest who "
        "gains."
    )


def scores_table(study: "Study") -> str:
    """Caption of the study's table."""
    several = "Mean ± standard deviation over the seeds."
    one = "In brackets the bootstrap's 95% intervals, none for the calibration error."
    return (
        f"Test scores ({len(study.lab.data.test):,} images), seeds: {len(study.seeds)}. "
        f"{several if len(study.seeds) > 1 else one} Last column: macro F1 against no remedy, with its 95% interval, "
        f"which holds for all remedies at once, over {_noise(len(study.seeds))}."
    )


def shapes_table(studies: list["Study"]) -> str:
    """Caption of the table of several class sizes, the first of them that of `scores_table`."""
    seeds = ", ".join(f"{len(study.seeds)} ({study.shape})" for study in studies)
    single = any(len(study.seeds) == 1 for study in studies) and len(studies[0].seeds) > 1
    chance = f"; where there is one, the chance of training is that of {studies[0].shape}" if single else ""
    return (
        "Macro F1 without a remedy, and what each remedy gains in points, by class sizes; the same number of steps "
        f"everywhere, intervals as in Table 1.1. Seeds: {seeds}{chance}."
    )


def rare_answers(matrices: dict[str, np.ndarray], few: int, rare: pd.Series) -> str:
    """How many images of the `few` rarest classes are taken for a commoner one, without and with the best remedy.

    matrices: two names -> `Study.confusion`, the commonest class first; rare: what the remedy changes in the recall of
    these classes, a row of `metrics.seed_differences`.
    """
    shares = [
        sum(matrix[row, :row].sum() for row in range(len(matrix) - few, len(matrix))) / max(matrix[-few:].sum(), 1)
        for matrix in matrices.values()
    ]
    _, best = matrices
    many, kind = _number(few)
    change = "a gain" if rare["low"] > 0 else "a loss" if rare["high"] < 0 else "no gain that is shown"
    return (
        f"Without a remedy {shares[0]:.1%} of the images of the {many}rarest {kind} are taken for a commoner one, "
        f"under {words(best)} {shares[1]:.1%}; in recall that is {change} ({points(rare)})."
    )


def sureness(scores: pd.DataFrame) -> str:
    """Under which remedy, or none, the calibration error is smallest, and whether macro F1 is highest there too.

    scores: `Study.scores`; `balanced` in it is no remedy, so it does not compete. What lies no further off than seeds
    do, by their standard deviation, is named beside the smallest.
    """
    remedies = scores[scores["remedy"] != BALANCED].groupby("remedy", sort=False)
    f1, errors = remedies["macro_f1"].mean(), remedies["calibration_error"].mean()
    best, least = f1.idxmax(), errors.idxmin()
    told = {name: "without a remedy" if name == "none" else f"under *{words(name)}*" for name in errors.index}
    among = "Trained on the imbalanced data, the" if (scores["remedy"] == BALANCED).any() else "The"
    text = f"{among} models have the smallest calibration error {told[least]} ({errors[least]:.3f})"
    spread = remedies["calibration_error"].std().fillna(0)
    near = [n for n in errors.index if n != least and errors[n] - errors[least] <= max(spread[n], spread[least])]
    beside = [f"{told[name]} ({errors[name]:.3f})" for name in near]
    text += f", hardly larger, by what seeds differ, {listed(beside)}" if beside else ""
    if best == least:
        return f"{text}, where macro F1 is highest too." if not near else f"{text}. Macro F1 is highest {told[best]}."
    none = f", and {told['none']} {errors['none']:.3f}" if "none" not in (best, least, *near) else ""
    return f"{text}; {told[best]}, where macro F1 is highest, it is {errors[best]:.3f}{none}."


def curves(remedies: "Collection[str]") -> str:
    """Caption of macro F1 over training."""
    shared = " Post-hoc adjustment has no curve, its training is that of none." if POST_HOC in remedies else ""
    return (
        f"Macro F1 on the validation images over training, mean over the seeds.{shared} At the end the learning rate "
        "falls to zero, and scores can rise for that alone: whether longer training would change the ranking, these "
        "curves cannot say."
    )


def imbalance(profile: str, counts: np.ndarray) -> str:
    """How the study's training data are shaped, with the ratio that was reached; counts (C,) images of each class."""
    return f"{'as they come' if profile == 'none' else profile}, {float(counts.max() / counts.min()):.3g}:1"


def _with_gains(gains: pd.DataFrame) -> str:
    """Names with their gains in points and intervals, the largest first."""
    rows = gains.sort_values("gain", ascending=False).iterrows()
    return "; ".join(f"*{words(name)}* {points(row)}" for name, row in rows)


def _noise(seeds: int) -> str:
    return (
        "seeds and test images" if seeds > 1 else "test images (one seed says nothing about the spread between seeds)"
    )


def best_remedy(gains: pd.DataFrame, seeds: int) -> str:
    """Which remedies gain macro F1 over `none`: only where the interval of the gain leaves zero out.

    gains: `metrics.seed_differences` of all remedies to `none`, whose intervals hold at once.
    """
    best, better, worse = best_gain(gains), gains[gains["low"] > 0], gains[gains["high"] < 0]
    name, score = words(best.name), f"{best['score']:.3f}"
    base = gains["score"].iloc[0] - gains["gain"].iloc[0]
    against = f"against {base:.3f} without a remedy"
    over = f"95% intervals of all {len(gains)} together, over {_noise(seeds)}"
    lost = f" Worse than none: {_with_gains(worse)}." if len(worse) else ""
    if better.empty:
        return f"No remedy shows a gain {against}; the best is {name}, {score} ({points(best)}; {over}).{lost}"
    return (
        f"The best remedy that shows a gain is **{name}**: macro F1 {score} {against}. "
        f"{len(better)} of {len(gains)} remedies gain beyond the noise: {_with_gains(better)} ({over}).{lost}"
    )


def as_good(best: str, behind: pd.DataFrame) -> str:
    """Which remedies cannot be told from the best one; behind: `metrics.seed_differences` of the others to it."""
    open_ = behind[behind["high"] >= 0]
    if open_.empty:
        return f"Every other remedy is measurably behind {words(best)}."
    return f"Not measurably behind {words(best)}: {_with_gains(open_)}."


def who_pays(gains: pd.DataFrame, common: pd.DataFrame, rare: pd.DataFrame, few: int) -> str:
    """What the best remedy gives the rarest classes, and which remedies cost the commonest ones recall.

    gains, common, rare: `metrics.seed_differences` to `none` of macro F1 and of recall of the `few` commonest and
    rarest classes.
    """
    paying, free = common[common["high"] < 0], common[common["high"] >= 0]
    if (gains["low"] <= 0).all():
        costs = f", but the commonest classes pay under {_with_gains(paying)}" if len(paying) else ""
        return f"No remedy is shown to gain{costs}."
    best, (many, kind) = best_gain(gains).name, _number(few)
    text = (
        f"Under {words(best)} the recall of the {many}rarest {kind} changes by {points(rare.loc[best])}, and that of "
        f"the {many}commonest by {points(common.loc[best])}. "
    )
    if paying.empty:
        return f"{text}No remedy is shown to cost the commonest classes recall."
    text += f"The commonest classes pay measurably under {_with_gains(paying)}"
    return f"{text}; no loss is shown under {_with_gains(free)}." if len(free) else f"{text}."


def what_is_free(gains: pd.DataFrame, trained: pd.Series | None) -> str:
    """What adjusting the finished model's logits gains, without any training.

    gains: as in `best_remedy`; trained: the row of post_hoc in the differences to the best remedy that is trained,
    whose name it bears; None where none is.
    """
    row = gains.loc["post_hoc"]
    claim = "gains" if row["low"] > 0 else "loses" if row["high"] < 0 else "shows no gain"
    text = f"Free, because nothing is trained anew, is post-hoc logit adjustment: it {claim} ({points(row)})"
    if trained is None:
        return f"{text}."
    if trained["low"] <= 0 <= trained["high"]:
        return f"{text}; a difference to *{words(trained.name)}*, the best that is trained, can't be shown."
    side = "behind" if trained["gain"] < 0 else "ahead of"
    return f"{text}, and is measurably {side} *{words(trained.name)}*, the best that is trained ({points(trained)})."


def unlike_batches(config: "RunConfig") -> str:
    """Why a sampler's loss is not quite that of class weights: what one image's loss owes to others of its batch."""
    there = {"batch norm in the tokenizer": config.tokenizer != "patch", "MixUp": config.mixup, "CutMix": config.cutmix}
    names = [name for name, used in there.items() if used]
    return listed(names) if names else ""


def same_gradient(difference: pd.Series, noise: pd.Series, config: "RunConfig") -> str:
    """What sampler and class weights, which follow the same gradient on average, differ by.

    difference: the row of class_weights in the differences to the sampler; noise: `study.gradient_noise`; config:
    of one of these runs.
    """
    unlike = unlike_batches(config)
    same = f"nearly the same expected loss (but for {unlike}, to which a batch's classes matter)"
    apart = "differ" if difference["low"] > 0 or difference["high"] < 0 else "can't be told apart"
    text = (
        f"Sampler and class weights minimise {same if unlike else 'the same expected loss'} and {apart} in macro F1 "
        f"(class weights against sampler {points(difference)}). What differs is the noise of a step:"
    )
    if drowned := [words(name) for name, times in noise.items() if math.isinf(times)]:
        under = listed(drowned)
        return f"{text} under {under} it is too long, against the gradient's mean, to be told from so few batches."
    return (
        f"{text} the gradient of one batch is {noise['class_weights']:,.1f} times as long in its chance part as in its "
        f"mean under class weights, {noise['sampler']:,.1f} times under the sampler (at the weights that the run "
        f"without a remedy ended with){'' if noise['sampler'] > noise['class_weights'] else SELDOM}."
    )


def price_of_imbalance(gap: pd.Series, gains: pd.DataFrame, missing: int) -> str:
    """What the imbalance cost in macro F1.

    gap: `metrics.seed_differences` of `balanced` to `none`; gains: of the remedies; missing: training images that
    `balanced` saw and the imbalanced data lack.
    """
    figures = f"({points(gap)})"
    if gap["low"] <= 0 <= gap["high"]:
        return f"Between training on all the images and on the imbalanced ones no difference can be shown {figures}."
    than = f"than on the imbalanced ones without a remedy {figures}"
    if gap["gain"] < 0:
        return f"Trained on all the images the model scores worse {than}."
    text = f"Trained on all the images the model scores better {than}"
    best = best_gain(gains)
    if best["low"] > 0:
        won, more = f"{100 * best['gain']:.1f}", best["gain"] > gap["gain"]
        text += f"; the best remedy, {words(best.name)}, "
        text += f"gains {won} points, more than that" if more else f"wins {won} of these points back"
    fewer = f" and of {missing:,} missing images together" if missing else ", as neither has seen an image twice"
    return f"{text}. The gap is the price of uneven data{fewer}."


def elsewhere(gains: dict[str, pd.DataFrame]) -> str:
    """Which remedies gain at which class sizes: class sizes -> `metrics.seed_differences` of the remedies to `none`."""
    better = {shape: set(frame.index[frame["low"] > 0]) for shape, frame in gains.items()}
    best = {shape: best_gain(frame) for shape, frame in gains.items()}
    at = "; ".join(f"{shape}: *{words(row.name)}* ({points(row)})" for shape, row in best.items())
    always = [name for name in next(iter(gains.values())).index if all(name in names for names in better.values())]
    told = ", ".join(f"*{words(name)}*" for name in always) or "none"
    return f"Best by class sizes: {at}. Remedies whose gain is shown at all these class sizes: {told}."


def answer(ratio: float, gap: pd.Series | None, gains: pd.DataFrame, missing: int = 0) -> str:
    """The chapter's question in one sentence: what imbalance does, and which remedy helps.

    ratio: images of the commonest class over the rarest's; gap: `metrics.seed_differences` of `balanced` to `none`,
    None where there is no such run; gains: of the remedies; missing: as in `price_of_imbalance`.
    """
    what, fewer = f"imbalance of {ratio:.3g}:1", f", with {missing:,} images fewer," if missing else ""
    if gap is None:
        cost = f"What an {what} costs can't be told here"
    elif gap["low"] > 0:
        cost = f"An {what}{fewer} costs {100 * gap['gain']:.1f} points of macro F1"
    else:
        cost = f"An {what}{fewer} costs no macro F1 that these runs can show"
    best = best_gain(gains)
    if best["low"] > 0:
        gain = f"gains {100 * best['gain']:.1f} points over no remedy"
        return f"**{cost}, and {words(best.name)}, the best of those shown to help, {gain}.**"
    return f"**{cost}, and no remedy is shown to help.**"
