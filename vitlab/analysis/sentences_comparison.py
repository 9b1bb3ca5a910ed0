"""What chapter 6's numbers say: which model to take, and which differences are real."""

from itertools import combinations
from typing import TYPE_CHECKING

import pandas as pd

from vitlab.analysis.chart_parts import MOST_LABELS
from vitlab.analysis.complexity import COURSE
from vitlab.analysis.findings import (
    Speed,
    ahead,
    behind_at_most,
    beside_smaller,
    first_seed,
    near_the_best,
    none_as_good,
    recommended,
)
from vitlab.analysis.metrics import on_frontier, shown
from vitlab.analysis.sentences import named, verdict
from vitlab.analysis.sentences_linear import LINEAR
from vitlab.analysis.timing import above, below
from vitlab.analysis.tokens import LOSS
from vitlab.texts import markdown

if TYPE_CHECKING:
    from vitlab.lab import Lab

FEW_MODELS = 6  # of which the pairs are listed one by one
MOST_LISTED = 12  # pairs that are named one by one


def verdicts(pairs: pd.DataFrame) -> str:
    """What the tests can say of `tables.pairs`: the pairs with a difference or, if fewer, those without."""
    clear = shown(pairs)
    rest = f"In {(~clear).sum()} of {len(pairs)} pairs no difference can be shown"
    if min(clear.sum(), (~clear).sum()) > MOST_LISTED:
        return f"In {clear.sum()} of {len(pairs)} pairs it is shown which of the two is ahead, in the others not."
    if clear.sum() <= len(pairs) / 2:
        lines = [f"* {verdict(named([row.a]), named([row.b]), row._asdict())}." for row in pairs[clear].itertuples()]
        return "\n".join([*lines, f"* {rest}."] if lines else [f"{rest}."])
    found = f"In {clear.sum()} of {len(pairs)} pairs it is shown which of the two is ahead."
    alike = "; ".join(f"{named([row.a])} and {named([row.b])}" for row in pairs[~clear].itertuples())
    return f"{found} {rest}: {alike}." if alike else found


def leaders(results: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """Sentences on the most accurate model, and on the one of fewest MACs that the tests cannot tell from it.

    results: model, accuracy, accuracy_low, accuracy_high, macs; pairs: a, b, difference, p, corrected for the number of
    tests.
    """
    best = results.loc[results["accuracy"].idxmax()]
    first = results.loc[results["accuracy"] == best["accuracy"], "model"]
    unclear = pairs[~shown(pairs) & ((pairs["a"] == best["model"]) | (pairs["b"] == best["model"]))]
    peers = results[results["model"].isin({*unclear["a"], *unclear["b"]} - {best["model"]})]
    text = (
        f"The highest accuracy was measured for {'; '.join(f'*{named([n])}*' for n in first)}: {best['accuracy']:.1%} "
        f"(95% interval {best['accuracy_low']:.1%} to {best['accuracy_high']:.1%})."
    )
    if peers.empty:
        return f"{text} It differs significantly from every other model."
    it = "it" if len(first) == 1 else named(first[:1])
    text += f" Tested in all {len(pairs)} pairs, no difference is shown between {it} and {named(peers['model'])}"
    lighter = peers[peers["macs"] < best["macs"]]  # without those of unknown cost
    if lighter.empty:
        needs = "needs" if results["macs"].notna().all() else "is known to need"
        return f"{text}, none of which {needs} fewer multiply-adds."
    light = lighter.loc[lighter["macs"].idxmin()]
    share = light["macs"] / best["macs"]
    return (
        f"{text}; of these *{named([light['model']])}* needs the fewest multiply-adds, {share:.1%} of the best one's."
    )


def frontier(results: pd.DataFrame) -> str:
    """One sentence naming the models on the frontiers of accuracy and MACs, and of accuracy and latency."""

    def best(cost: str) -> str:
        return named(results[on_frontier(results, cost)].sort_values(cost)["model"])

    return (
        "On the measured values, noise included, no model is more accurate than these at the same or fewer "
        f"multiply-adds: {best('macs')}; and than these at the same or a shorter latency: {best('latency_ms')}."
    )


def smaller_or_lighter(light: str, smaller: list[str], results: pd.DataFrame, pairs: pd.DataFrame, speed: Speed) -> str:
    """One sentence, by rule: take the lighter model, or rather a smaller ViT that costs as little?

    light: the model; smaller: names of the ViTs of its cost, of which the most accurate is compared. The lighter model
    is worth its machinery only where it is ahead; where the plain ViT is behind by `LOSS` at most it is the better
    choice, having nothing to explain, unless it is slower. That no difference is shown decides nothing alone.
    """
    rows = results.set_index("model")
    other, better, *time = beside_smaller(light, smaller, results, pairs, speed)
    seed = first_seed(results, light, other)
    scores = (f"{rows.loc[name, 'accuracy']:.1%}" for name in (other, light))
    work = (f"{rows.loc[name, 'macs'] / 1e6:,.2f}" for name in (other, light))
    cost = (
        f"accuracy{', each over its own seeds,' if seed else ''} {' against '.join(scores)}, {' against '.join(work)} "
        f"million multiply-adds, in batches {time[0]:.2f} times as many images a second"
    )
    if better == light:
        return f"**{light}** is a better choice{seed} than a smaller ViT (*{other}*: {cost})."
    if better == other:
        return f"A smaller ViT (**{other}**) is a better choice{seed} than *{light}* ({cost})."
    neither = f"Between *{light}* and a smaller ViT (*{other}*) no difference in accuracy is shown{seed}"
    pace = "slower" if below(*time) else "faster" if above(*time) else "not shown to be slower"
    if (behind := behind_at_most(pairs, light, other)) > LOSS:
        return (
            f"{neither}, but the smaller ViT may be up to {100 * behind:.1f} points behind; it is {pace}. Which is the "
            f"better choice is open ({cost})."
        )
    if pace == "slower":
        return (
            f"{neither}, and the smaller ViT is slower: **{light}** is the better choice where throughput counts "
            f"({cost})."
        )
    return (
        f"{neither}; the smaller ViT is at most {100 * max(behind, 0):.1f} points behind and {pace}: it is the better "
        f"choice ({cost})."
    )


def convolution_or_attention(cnn: str, budget: str, results: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """One sentence, by rule: when is the convolutional network `cnn` the better choice?

    results: of models trained for the same budget, in words; pairs: of `cnn` with each of them, corrected for these
    tests alone; models of unknown cost are left out. It is the better choice where it is shown to be ahead of every
    model that needs fewer multiply-adds, and not where such a one is ahead, or behind by `LOSS` at most; else it is
    open. Models that are ahead of it, for more work, are named with what they cost.
    """
    rows = results.dropna(subset=["macs"]).set_index("model")
    own = rows.loc[cnn]
    winner = {name: ahead(pairs, cnn, name) for name in rows.index if name != cnn}
    better, behind = [n for n, w in winner.items() if w == n], [n for n, w in winner.items() if w == cnn]
    lighter = [name for name in better if rows.loc[name, "macs"] <= own["macs"]]

    what = (
        f"Of the models trained from the start for {budget}: the convolutional network **{cnn}** "
        f"({own['accuracy']:.1%}, {own['macs'] / 1e6:,.1f} million multiply-adds, "
        f"{own['latency_ms']:.2f} ms an image)"
    )
    if lighter:
        return f"{what} is not the better choice: ahead of it, for no more work, is {named(lighter)}."
    alone = f" (corrected for {len(winner)} test{'s' * (len(winner) != 1)})"
    beats = f"It is ahead of {named(behind)}{alone}." if behind else f"It is shown to be ahead of none of them{alone}."
    ties = {n: behind_at_most(pairs, cnn, n) for n, w in winner.items() if not w and rows.loc[n, "macs"] < own["macs"]}
    if ties:
        alike = [name for name, points in ties.items() if points <= LOSS]
        light = min(alike or ties, key=rows["macs"].get)
        needs = f"needs {rows.loc[light, 'macs'] / own['macs']:.0%} of its multiply-adds"
        far = f"{100 * max(ties[light], 0):.1f} points behind"
        if alike:
            whole = f"{what} is not the better choice where work counts: *{markdown(light)}* is at most {far} it, and"
            return f"{whole} {needs}. {beats}"
        whole = f"{what} is not shown to be ahead of *{markdown(light)}*, which {needs} and may be up to {far}"
        return f"{whole}: which is the better choice where work counts is open. {beats}"
    if better:
        more = min(rows.loc[name, "macs"] for name in better) / own["macs"]
        return (
            f"{what} is the better choice up to its cost; ahead of it, for {more:.1f} times its multiply-adds or more, "
            f"is {named(better)}. {beats}"
        )
    if not behind:
        return f"{what} can be told from none of the others by its accuracy: what it costs decides."
    dearer = own["macs"] / rows.loc[[*winner], "macs"]
    if (dearer > 1).all():
        more = f"{dearer.min():.1f} to {dearer.max():.1f}" if len(dearer) > 1 else f"{dearer.min():.1f}"
        whole = f"{what} is the better choice where accuracy counts, for {more} times the multiply-adds of the others"
        return f"{whole}: none is shown to be ahead of it. {beats}"
    return f"{what} is the better choice: none is shown to be ahead of it. {beats}"


# ---------------------------------------------------------------- captions


def scores(lab: "Lab", images: int) -> str:
    extra = "; runs from elsewhere are single ones of seeds of their own" if lab.extra else ""
    return f"What each model scores on {images:,} test images, best first; {lab.plan.seed_words}{extra}."


def costs(lab: "Lab") -> str:
    vit = lab.plan.config("ViT")
    where, batch = lab.costs.where(vit), lab.costs.of(vit, only_read=True)["batch"]
    extra = ", of runs from elsewhere over all pairs of rounds" if lab.extra else ""
    once = "once a seed (here the first one's)" if lab.params.seeds > 1 else "once"
    return (
        f"What each model costs: float32 inference on {where['device']} (a CPU with one thread), latency at batch 1, "
        f"images a second in batches of {batch}, medians of {lab.costs.rounds} rounds or more; ratios in the text are "
        f"taken within each round{extra}. "
        f"Training was timed {once}, beside whatever else the machine did; that of chapter 3 includes the ViT it "
        "started from."
    )


def against_cost(images: int, seeds: int) -> str:
    dots = " Dots are single seeds, where a model has several." if seeds > 1 else ""
    return (
        f"Accuracy with its 95% interval ({images:,} test images) against three kinds of cost, the time of training "
        "among them, which depends on what else the machine did. Up and to the left is better; the dotted frontier "
        "joins the models that no other beats at the same or a lower cost. Where intervals overlap widely, look at the "
        f"paired tests below before preferring a model.{dots}"
    )


def paired(lab: "Lab", pairs: int, images: int) -> str:
    """Caption of the pairs: listed one by one, or at a glance."""
    text = f"All {pairs} pairs of models on the same {images:,} test images,"
    if lab.params.seeds > 1:
        over = "over images and the chance of training"
        text += (
            " over the seeds that both have (of the first alone where one has no other, so that differences need not"
        )
        text += " be those of Table 6.1's means),"
    else:
        over = "over images alone, as these are single runs"
    if len(lab.compared) <= FEW_MODELS:
        return (
            f"{text} differences in points with 95% intervals, images that only one model gets right, and p, "
            f"two-sided, corrected after Holm; intervals and p are {over}."
        )
    return (
        f"{text} by how many points of accuracy the row's model is above the column's. A star: shown, by a two-sided p "
        f"{over}, corrected after Holm. Intervals and p-values of all pairs stand beside the report, in `pairs.csv`."
    )


def by_class(differences: pd.DataFrame) -> str:
    """differences: `tables.recall_differences`; of many classes the figure writes no numbers."""
    text = "Recall of each class by each model minus that of the ViT, in points"
    tests = "(within the class, with one chance of training for all classes, Holm over the figure)"
    found = f"{shown(differences).sum()} of {len(differences)}"
    if differences["class"].nunique() > MOST_LABELS:
        return f"{text}. Shown by tests {tests}: {found}."
    stars = f"A star marks a difference that is shown {tests}: {found}."
    return f"{text}; the ViT's recall stands below the class. {stars}"


def unlike_mistakes(differences: pd.DataFrame, recalls: pd.DataFrame) -> str:
    """Whether ideas help different classes, and whether all fail on the same; differences: `tables.recall_differences`.

    recalls: (models, classes), the mean over seeds.
    """
    worst = recalls.idxmin(axis=1).value_counts()
    which = f"*{markdown(worst.index[0])}* is recognised worst by {worst.iloc[0]} of the {len(recalls)} models"
    if worst.iloc[0] > len(recalls) / 2:
        which += ": there the difficulty lies in the data"
    clear = differences[shown(differences)]
    helped, hurt = (
        {n: set(rows["class"]) for n, rows in clear[clear["difference"] * sign > 0].groupby("model")}
        for sign in (1, -1)
    )
    apart = [(a, b) for a, b in combinations(helped, 2) if not helped[a] & helped[b]]
    if not helped:
        text = "No model is shown to help any class over the ViT"
    elif len(helped) == 1:
        text = f"Over the ViT only {named(helped)} is shown to help a class"
    elif apart:
        text = f"Shown to help different classes: {'; '.join(f'*{a}* and *{b}*' for a, b in apart[:MOST_LISTED])}"
    else:
        text = f"Of the {len(helped)} models that are shown to help a class every two have one in common"
    lose = f"; a class is shown to lose by {named(hurt)}" if hurt else "; none is shown to lose by any"
    return f"{which}. {text}{lose}."


def course(lab: "Lab", base: int) -> str:
    """Caption of what the course quotes; base: parameters of ViT-Base as it is configured there."""
    here = lab.load("ViT").environments[-1]
    *_, quoted, _ = COURSE["ViT-Base"]
    sizes = " The remedy is chapter 1's best, likewise; the course's imbalanced data need not have had its class sizes."
    uneven = sizes if lab.plan.study_imbalance != "none" else ""
    return (
        f"Test accuracies that the course quotes from a GPU, for a ViT said to have {quoted / 1e6:.1f} million "
        f"parameters (as it is configured there: {base / 1e6:.2f} million), beside what was reached here "
        f"({here['device']}, {here['cores']} CPU cores). Passed: yes where the quoted figure lies below our interval, "
        "no where above, even where inside. The ViT is the one that chapter 3 goes on from, the linear ViT the best of "
        f"*{'*, *'.join(LINEAR)}* by these very images.{uneven}"
    )


def study(lab: "Lab", shape: str, few: int) -> str:
    """Caption of the study in short; few: classes that count as the rarest."""
    how = (
        "mean ± standard deviation over seeds" if lab.params.study_seeds > 1 else "with 95% intervals of the bootstrap"
    )
    where = f"Chapter 1's study in short (training data: {shape}), on the test images"
    return (
        f"{where}: {how}; *none*: without a remedy, *balanced*: all the images of every class; the gain with its "
        "95% interval, which holds for all remedies at once. Recall, rarest: that "
        f"of the {f'{few} classes' if few > 1 else 'class'} with the fewest images."
    )


# ---------------------------------------------------------------- the conclusion


def answer(results: pd.DataFrame, pairs: pd.DataFrame, speed: Speed) -> str:
    """Which model to take (`findings.recommended`), and why.

    results: `tables.by_model`; pairs: `tables.pairs`.
    """
    best, take = results.loc[results["accuracy"].idxmax()], recommended(results, pairs, speed)
    others = [name for name in results["model"] if name != best["model"]]
    real = f"{shown(pairs).sum() or 'none'} of the {len(pairs)} differences between two models can be shown"
    if all(ahead(pairs, best["model"], name) == best["model"] for name in others):
        why = "it is shown to be ahead of every other model"
    elif take["model"] == best["model"]:
        why = f"its accuracy is the highest, and {none_as_good(results, pairs, speed)}"
    else:
        times, _ = speed(take["model"], best["model"])
        why = f"{near_the_best(take, best)}, it classifies {times:.1f} times as many images a second"
    return f"**Take {markdown(take['model'])}, {take['accuracy']:.1%}: {why}.** {real[0].upper()}{real[1:]}."
