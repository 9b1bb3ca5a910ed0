"""What the numbers say, as sentences: no gain inside the noise is called one."""

import numpy as np
import pandas as pd

from vitlab.analysis.metrics import LEVEL, holm, on_frontier, shown
from vitlab.texts import markdown

MOST_LISTED = 12  # pairs that are named one by one


def _model(name: str) -> str:
    """A model's name, which may be that of a user's directory."""
    return f"*{markdown(name)}*"


def p_text(p: float) -> str:
    return f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"


def verdict(a: str, b: str, comparison: dict) -> str:
    """One sentence on what `compare` found: b or a is ahead only where `metrics.shown` says so.

    That is where McNemar's p is below 0.05 and, of several seeds, the difference exceeds their spread.
    """
    points = comparison["difference"] * 100
    low, high = (end * 100 for end in comparison["interval"])
    several = comparison.get("seeds", 1) > 1
    over = f", spread over {comparison['seeds']} seeds {100 * comparison['spread']:.1f}" if several else ""
    if not shown(comparison):
        them = "these test images and seeds" if several else "this test set"
        return (
            f"between {a} and {b} there is no difference that {them} can show "
            f"({points:+z.1f} points, 95% interval {low:+z.1f} to {high:+z.1f}, {p_text(comparison['p'])}{over})"
        )
    if points < 0:
        a, b, points, low, high = b, a, -points, -high, -low
    figures = f"95% interval {low:.1f} to {high:.1f}, {p_text(comparison['p'])}{over}"
    return f"{b} is ahead of {a} by {points:.1f} points ({figures})"


def verdicts(pairs: pd.DataFrame) -> str:
    """What the tests can say of `tables.pairs`: the pairs with a difference or, if fewer, those without."""
    clear = shown(pairs)
    rest = f"In {(~clear).sum()} of {len(pairs)} pairs there is no difference that this test set can show"
    if min(clear.sum(), (~clear).sum()) > MOST_LISTED:
        return f"In {clear.sum()} of {len(pairs)} pairs it is shown which of the two is ahead, in the others not."
    if clear.sum() <= len(pairs) / 2:
        lines = [f"* {verdict(_model(row.a), _model(row.b), row._asdict())}." for row in pairs[clear].itertuples()]
        return "\n".join([*lines, f"* {rest}."] if lines else [f"{rest}."])
    found = f"In {clear.sum()} of {len(pairs)} pairs this test set shows which of the two is ahead."
    alike = "; ".join(f"{_model(row.a)} and {_model(row.b)}" for row in pairs[~clear].itertuples())
    return f"{found} {rest}: {alike}." if alike else found


def leaders(results: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """Sentences on the most accurate model, and on the one of fewest MACs that the tests cannot tell from it.

    results: model, accuracy, accuracy_low, accuracy_high, macs; pairs: a, b, difference, p, corrected for the number of
    tests, and of several seeds spread.
    """
    best = results.loc[results["accuracy"].idxmax()]
    unclear = pairs[~shown(pairs) & ((pairs["a"] == best["model"]) | (pairs["b"] == best["model"]))]
    peers = results[results["model"].isin({*unclear["a"], *unclear["b"]} - {best["model"]})]
    text = (
        f"The highest accuracy was measured for *{_model(best['model'])}*: {best['accuracy']:.1%} "
        f"(95% interval {best['accuracy_low']:.1%} to {best['accuracy_high']:.1%})."
    )
    if peers.empty:
        return f"{text} It differs significantly from every other model."
    text += f" This test set can show no difference between it and {'; '.join(map(_model, peers['model']))}"
    lighter = peers[peers["macs"] < best["macs"]]  # without those of unknown cost
    if lighter.empty:
        needs = "needs" if results["macs"].notna().all() else "is known to need"
        return f"{text}, none of which {needs} fewer multiply-adds."
    light = lighter.loc[lighter["macs"].idxmin()]
    share = light["macs"] / best["macs"]
    return f"{text}; of these *{_model(light['model'])}* needs the fewest multiply-adds, {share:.1%} of the best one's."


def imbalance(profile: str, counts: np.ndarray) -> str:
    """How the study's training data are shaped, with the ratio that was reached; counts (C,) images of each class."""
    return f"{'as they come' if profile == 'none' else profile}, {float(counts.max() / counts.min()):.3g}:1"


def _named(gains: pd.DataFrame) -> str:
    """Names with their gains in points and intervals, the largest first."""
    rows = gains.sort_values("gain", ascending=False).iterrows()
    return "; ".join(f"*{words(name)}* {points(row)}" for name, row in rows)


def points(gain: pd.Series) -> str:
    """A row of `metrics.seed_differences` in points."""
    return f"{100 * gain['gain']:+z.1f} points, {100 * gain['low']:+z.1f} to {100 * gain['high']:+z.1f}"


def words(name: str) -> str:
    """A remedy's name for reading."""
    return {"drw": "DRW", "ldam_drw": "LDAM-DRW"}.get(name, name.replace("_", " "))


def _noise(seeds: int) -> str:
    return (
        "seeds and test images" if seeds > 1 else "test images (one seed says nothing about the spread between seeds)"
    )


def best_remedy(gains: pd.DataFrame, seeds: int) -> str:
    """Which remedies gain macro F1 over `none`: only where the interval of the gain leaves zero out.

    gains: `metrics.seed_differences` of all remedies to `none`, whose intervals hold at once.
    """
    best, better, worse = gains["gain"].idxmax(), gains[gains["low"] > 0], gains[gains["high"] < 0]
    base = gains["score"].iloc[0] - gains["gain"].iloc[0]
    against = f"against {base:.3f} without a remedy (95% intervals of all {len(gains)} together, over {_noise(seeds)})"
    lost = f" Worse than none: {_named(worse)}." if len(worse) else ""
    if better.empty:
        row = gains.loc[best]
        return f"No remedy shows a gain {against}; the best is {words(best)}, {row['score']:.3f} ({points(row)}).{lost}"
    return (
        f"The best remedy is **{words(best)}**: macro F1 {gains.loc[best, 'score']:.3f} {against}. "
        f"{len(better)} of {len(gains)} remedies gain beyond the noise: {_named(better)}.{lost}"
    )


def as_good(best: str, behind: pd.DataFrame) -> str:
    """Which remedies cannot be told from the best one; behind: `metrics.seed_differences` of the others to it."""
    open_ = behind[(behind["high"] >= 0) & (behind["low"] <= 0)]
    if open_.empty:
        return f"Every other remedy is measurably behind {words(best)}."
    return f"No difference to the best, {words(best)}, can be shown for {_named(open_)}."


def who_pays(gains: pd.DataFrame, common: pd.DataFrame, rare: pd.DataFrame, few: int) -> str:
    """What the remedies that gain cost the commonest classes, and what they give the rarest.

    gains, common, rare: `metrics.seed_differences` to `none` of macro F1 and of recall of the `few` commonest and
    rarest classes.
    """
    better = gains.index[gains["low"] > 0]
    if better.empty:
        return "Where no remedy gains, nobody has to pay."
    paying = [name for name in better if common.loc[name, "high"] < 0]
    best = gains["gain"].idxmax()
    text = (
        f"Under {words(best)} the recall of the {few} rarest classes changes by {points(rare.loc[best])}, and that of "
        f"the {few} commonest by {points(common.loc[best])}. "
    )
    if not paying:
        return f"{text}No remedy that gains is shown to cost the commonest classes recall."
    free = [name for name in better if name not in paying]
    text += f"The commonest classes pay measurably under {_named(common.loc[paying])}"
    return f"{text}; no loss is shown under {_named(common.loc[free])}." if free else f"{text}."


def what_is_free(gains: pd.DataFrame, trained: pd.Series | None) -> str:
    """What adjusting the finished model's logits gains, without any training.

    gains: as in `best_remedy`; trained: the row of post_hoc in the differences to the best remedy that is trained,
    whose name it bears; None where none is.
    """
    row = gains.loc["post_hoc"]
    claim = "gains" if row["low"] > 0 else "loses" if row["high"] < 0 else "shows no gain:"
    text = f"Free, because nothing is trained anew, is post-hoc logit adjustment: it {claim} ({points(row)})"
    if trained is None:
        return f"{text}."
    if trained["low"] <= 0 <= trained["high"]:
        return f"{text}; a difference to *{words(trained.name)}*, the best that is trained, can't be shown."
    side = "behind" if trained["gain"] < 0 else "ahead of"
    return f"{text}, and is measurably {side} *{words(trained.name)}*, the best that is trained ({points(trained)})."


def same_gradient(difference: pd.Series, noise: pd.Series) -> str:
    """What sampler and class weights, which follow the same gradient on average, differ by.

    difference: the row of class_weights in the differences to the sampler; noise: `study.gradient_noise`.
    """
    apart = "differ" if difference["low"] > 0 or difference["high"] < 0 else "can't be told apart"
    return (
        f"Sampler and class weights minimise the same expected loss and {apart} in macro F1 (class weights against "
        f"sampler {points(difference)}). What differs is the noise of a step: the gradient of one batch is "
        f"{noise['class_weights']:.2g} times as long in its chance part as in its mean under class weights, "
        f"{noise['sampler']:.2g} times under the sampler; a rare image then counts much, but seldom comes."
    )


def price_of_imbalance(gap: pd.Series, gains: pd.DataFrame, missing: int) -> str:
    """What the imbalance cost in macro F1.

    gap: `metrics.seed_differences` of `balanced` to `none`; gains: of the remedies; missing: training images that the
    imbalanced data lack.
    """
    figures = f"({points(gap)})"
    if gap["low"] <= 0 <= gap["high"]:
        return f"Between training on all the images and on the imbalanced ones no difference can be shown {figures}."
    than = f"than on the imbalanced ones without a remedy {figures}"
    if gap["gain"] < 0:
        return f"Trained on all the images the model scores worse {than}."
    text = f"Trained on all the images the model scores better {than}"
    best = gains.loc[gains["gain"].idxmax()]
    if best["low"] > 0:
        text += f"; the best remedy, {words(best.name)}, wins {100 * best['gain']:.1f} of these points back"
    return (
        f"{text}. This is the price of uneven data and of {missing:,} missing images together; a remedy can only mend "
        "the first."
    )


def elsewhere(gains: dict[str, pd.DataFrame]) -> str:
    """Which remedies gain at which class sizes: class sizes -> `metrics.seed_differences` of the remedies to `none`."""
    better = {shape: set(frame.index[frame["low"] > 0]) for shape, frame in gains.items()}
    best = "; ".join(
        f"{shape}: *{words(f['gain'].idxmax())}* ({points(f.loc[f['gain'].idxmax()])})" for shape, f in gains.items()
    )
    always = [name for name in next(iter(gains.values())).index if all(name in names for names in better.values())]
    told = ", ".join(f"*{words(name)}*" for name in always) or "none"
    return f"The most was gained at {best}. Remedies whose gain is shown at all these class sizes: {told}."


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


def what_predictors_know(by_chance: float, learned: float, comparison: dict) -> str:
    """Accuracy of one DynamicViT with tokens drawn at random and with those its predictors choose, and what it shows.

    comparison: `metrics.compare` of the former with the latter.
    """
    points, (low, high) = 100 * comparison["difference"], (100 * end for end in comparison["interval"])
    measured = (
        "How much of this do the predictors know? The same network, given as many tokens drawn at random, answers "
        f"{by_chance:.1%} of these images correctly, and {learned:.1%} with the tokens that the predictors choose "
        f"({points:+z.1f} points, 95% interval {low:+z.1f} to {high:+z.1f}, {p_text(comparison['p'])})."
    )
    if comparison["p"] >= LEVEL:
        meaning = "That is no difference that these images can show: whether they know which tokens matter stays open."
    elif points > 0:
        meaning = "What is above chance is what they have learned."
    else:
        meaning = "So far they choose worse than chance."
    return f"{measured} {meaning}"


def which_reduction(rows: pd.DataFrame, unreduced: str) -> str:
    """Which way to fewer tokens to take, by rule: of those with no shown loss the one of the highest accuracy.

    rows: a row a method with model, difference, p (corrected for all of them), saved (share of the MACs) and accuracy;
    each is compared with the model named by `unreduced`.
    """
    lost = rows[(rows["p"] < LEVEL) & (rows["difference"] < 0)]
    fine = rows.drop(lost.index)
    named = "; ".join(f"*{row.model}* ({100 * row.difference:+z.1f} points)" for row in lost.itertuples())
    shown = f" A loss against *{unreduced}* is shown for {named}." if len(lost) else ""
    if fine.empty:
        return f"Every way to fewer tokens loses against *{unreduced}*, by a difference that these images show.{shown}"
    best = fine.loc[fine["accuracy"].idxmax()]
    others = "; ".join(f"*{name}*" for name in fine["model"].drop(best.name))
    text = (
        f"Of the ways to fewer tokens take **{best['model']}**: {best['saved']:.0%} fewer multiply-adds, "
        f"{100 * best['difference']:+z.1f} points against *{unreduced}*, and no loss that these images can show"
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
        worse = "more than" if row.chosen > row.random else "less than"
        if row.p >= LEVEL:
            worse = "no difference that these images can show to"
        lines.append(
            f"*{row.vit}*: with the tokens that Top-K chooses {row.chosen:z.1f} points are lost, {worse} random ones "
            f"({row.random:z.1f}, {p_text(row.p)}); merging loses {row.merged:z.1f}. Neighbours have a cosine of "
            f"{row.alike:.2f}; a place is {row.apart:.2f} times as far from the nearest that Top-K keeps as at random."
        )
    return " ".join(lines)


def frontier(results: pd.DataFrame) -> str:
    """One sentence naming the models on the frontiers of accuracy and MACs, and of accuracy and latency."""

    def best(cost: str) -> str:
        """Names apart by semicolons: some hold commas."""
        return "; ".join(map(_model, results[on_frontier(results, cost)].sort_values(cost)["model"]))

    return (
        "On the measured values, noise included, no model is more accurate than these at the same or fewer "
        f"multiply-adds: {best('macs')}; and than these at the same or a shorter latency: {best('latency_ms')}."
    )


def at_equal_minutes(histories: dict[str, pd.DataFrame]) -> str:
    """One sentence on name -> history with validation: what each had reached when the first of them was done.

    The last epoch that was over by then counts; a run with none over is left out. The clock is that of each history.
    """
    end = min(history["seconds"].iloc[-1] for history in histories.values())
    reached = {}
    for name, history in histories.items():
        over = history[history["seconds"] <= end]
        if len(over):
            reached[name] = over["val_accuracy"].iloc[-1]
    order = sorted(reached, key=lambda name: -reached[name])
    clock = f"{end / 60:.1f} minutes" if end >= 60 else f"{end:.0f} seconds"
    return (
        f"After {clock} of training, when the first of them was done, they classified of the validation images: "
        + "; ".join(f"*{name}* {reached[name]:.1%}" for name in order)
        + ". Those that went on had a learning rate that had not fallen yet, which is worth points at the end."
    )


def smaller_or_lighter(light: str, smaller: list[str], results: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """One sentence, by rule: take the lighter model, or rather a smaller ViT that costs as little?

    light: the model; smaller: names of the ViTs of its cost, of which the most accurate is compared. The lighter model
    is worth its machinery only where it is ahead; where no difference can be shown the plain ViT is the better choice,
    having nothing to explain, unless it is slower.
    """
    rows = results.set_index("model")
    other = rows.loc[smaller, "accuracy"].idxmax()
    ahead = _ahead(pairs, light, other)
    speed = rows.loc[other, "images_per_second"] / rows.loc[light, "images_per_second"]
    cost = (
        f"{rows.loc[light, 'accuracy']:.1%} against {rows.loc[other, 'accuracy']:.1%} at "
        f"{rows.loc[light, 'macs'] / 1e6:,.2f} and {rows.loc[other, 'macs'] / 1e6:,.2f} million multiply-adds; the "
        f"latter's throughput is {speed:.2f} times the former's"
    )
    if ahead == light:
        return f"**{light}** is the better choice than a ViT built as small, *{other}*: {cost}."
    if ahead == other:
        return f"A ViT built as small, **{other}**, is the better choice than *{light}*: {cost}."
    neither = f"a ViT built as small, *{other}*, no difference in accuracy is shown"
    if speed >= 1:
        return f"Between *{light}* and {neither}, and it is no slower: **{other}** is the better choice ({cost})."
    return (
        f"Between *{light}* and {neither}, and it is slower: **{light}** is the better choice where "
        f"throughput counts ({cost})."
    )


def convolution_or_attention(cnn: str, results: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """One sentence, by rule: when is the convolutional network `cnn` the better choice?

    Where no model that needs no more multiply-adds is shown to be ahead of it; models that are, for more work, are
    named with what they cost. Models of unknown cost are left out.
    """
    rows = results.dropna(subset=["macs"]).set_index("model")
    own = rows.loc[cnn]
    winner = {name: _ahead(pairs, cnn, name) for name in rows.index if name != cnn}
    ahead, behind = [n for n, w in winner.items() if w == n], [n for n, w in winner.items() if w == cnn]
    lighter = [name for name in ahead if rows.loc[name, "macs"] <= own["macs"]]

    def listed(names: list[str]) -> str:
        return "; ".join(f"*{name}*" for name in names)

    what = (
        f"The convolutional network **{cnn}** ({own['accuracy']:.1%}, {own['macs'] / 1e6:,.1f} million multiply-adds, "
        f"{own['latency_ms']:.2f} ms an image)"
    )
    if lighter:
        return f"{what} is not the better choice: ahead of it, for no more work, is {listed(lighter)}."
    beats = f"It is ahead of {listed(behind)}." if behind else "It is shown to be ahead of none."
    if ahead:
        more = min(rows.loc[name, "macs"] for name in ahead) / own["macs"]
        return (
            f"{what} is the better choice up to its cost; ahead of it, for {more:.1f} times its multiply-adds or more, "
            f"is {listed(ahead)}. {beats}"
        )
    return f"{what} is the better choice: no model is shown to be ahead of it. {beats}"


def _ahead(pairs: pd.DataFrame, one: str, other: str) -> str:
    """Which of two models is shown to be ahead in `tables.pairs`; "" where neither is."""
    [pair] = pairs[
        ((pairs["a"] == one) & (pairs["b"] == other)) | ((pairs["a"] == other) & (pairs["b"] == one))
    ].to_dict("records")
    return (pair["b"] if pair["difference"] > 0 else pair["a"]) if shown(pair) else ""
