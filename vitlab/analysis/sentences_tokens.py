"""What chapter 3's numbers say: which tokens were needed, and what each way to fewer of them loses and saves."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vitlab import texts
from vitlab.analysis.metrics import LEVEL, holm, shown
from vitlab.analysis.sentences import expected, named, p_text, verdict
from vitlab.analysis.timing import above, below
from vitlab.analysis.tokens import TRACED
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
    blocks = f"block{'s' * (len(stages) > 1)} {texts.listed(str(stage + 1) for stage in stages)}"
    return (
        f"Multiply-adds (MACs) an image at ρ = {ratio:g}, by the formula and as torch counts them: "
        f"{', '.join(map(str, left))} patches, fewer from {blocks} on. What differs is what the choice itself needs: "
        "DynamicViT's predictors, ToMe's similarities, EViT's fused token. The ViT with all tokens: "
        f"{whole:,.3f} million."
    )


def diagram(ratio: float) -> str:
    return (
        f"Fewer tokens, stage by stage, at ρ = {ratio:g}. Pruned, what a stage drops no later block sees; merged, one "
        "token stands for several. Which tokens stay is drawn as an example."
    )


def as_it_is(images: str) -> str:
    return (
        f"Two trained ViTs as they are, at ρ = 0.7, {images}. How alike tokens are after the first block (each image's "
        "mean subtracted; 200 images at most), and how far, in patches, a place is from the nearest one that was kept "
        "after the last stage (500 at most); both evenly from all classes."
    )


def curves(lab: "Lab", budget: str, rate: float) -> str:
    how = " Validation is done with tokens really gone." if len(lab.data.val) else ""
    seeds = lab.plan.seed_numbers([name for name, config in lab.plan.chapters["03"].items() if config.init_from])
    return (
        f"Trained on for {budget} from the same weights ({seeds}).{how} DynamicViT's ViT learns at {rate:.0%} of its "
        "predictors' rate, the others at one rate for all weights."
    )


def speeds(lab: "Lab", batch: int, smaller: bool) -> str:
    """smaller: whether ViTs that were built as small are among them."""
    long = f"for {lab.params.minutes:g} minutes" if lab.params.minutes else "on as many images"
    built = f", and the ViTs built as small, trained from the start {long}" if smaller else ""
    return (
        f"Trained on for as long, ρ = {lab.params.keep_ratio:g}{built}: accuracy on {len(lab.data.test):,} test "
        f"images ({lab.plan.seed_words}) against work and "
        f"time (float32, a CPU with one thread, batches of {batch}, and batch 1; medians of {lab.costs.rounds} rounds "
        "or more that take turns; × is a ratio to the first row within each round)."
    )


def is_it_faster(speed: pd.DataFrame) -> str:
    """Which ways to fewer tokens are faster than the ViT with all of them, in batches and alone.

    speed: `tables.speeds` of the ways; what a ratio differs from 1 by counts where it may not be as far off.
    """
    quick = above(speed["speed_up"], speed["speed_up_spread"])
    prompt = below(speed["latency_ratio"], speed["latency_ratio_spread"])

    def told(faster: pd.Series) -> str:
        return "all of them" if faster.all() else named(speed.index[faster]) or "none of them"

    return (
        f"Shown to be faster than the ViT with all tokens are, of the {len(speed)} ways to fewer, in batches "
        f"{told(quick)}; at one image alone, {told(prompt)}."
    )


def stands_for(left: int, ratio: float, images: int) -> str:
    return (
        f"What {left} tokens stand for after the last stage, ρ = {ratio:g}: the first test image of {images} classes, "
        "a row a method."
    )


def places(images: int, middle: dict[str, float]) -> str:
    """middle: method -> how often it keeps the middle of the image, over its mean."""
    told = ", ".join(f"{name} {times:.2f}" for name, times in middle.items())
    return (
        f"How often each place is kept, over {images:,} test images, evenly from all classes: the part of a token that "
        "a patch has after the last stage (1 alone, 1/n as one of n, 0 dropped). How often the middle of the image is "
        f"kept, over the mean place: {told}; chance has a draw for each of {min(images, TRACED)} places in a batch."
    )


def broken(name: str, reference: str, lost: int, won: int, images: int) -> str:
    """lost, won: test images that only the ViT with all tokens, and only the one with fewer, answers rightly."""
    return (
        f"Images that *{name}* loses: *{reference}* is right, *{name}* is wrong; below each what it still saw after "
        f"the last stage. Of {images:,} test images {lost:,} are such, and {won:,} the other way round; fewer tokens "
        "are one difference between the two, their training another."
    )


def over_tokens(images: str, ratio: float) -> str:
    return (
        f"Accuracy over the tokens that a block sees, on {images} with 95% intervals; dashed: all tokens. Right: "
        f"throughput at ρ = {ratio:g}."
    )


def savings(loss: float, images: str, chosen: bool) -> str:
    """loss: `tokens.small_loss` of these images; chosen: whether they chose the epochs of what was trained on."""
    best = ", whose epoch is the best on these images" if chosen else ""
    return (
        f"The largest saving at {100 * loss:.2g} points: the share of the blocks' multiply-adds that goes before so "
        "much accuracy is lost; as it is, against the same ViT with all its tokens, trained on, against *ViT, "
        f"fine-tuned*{best} ({images}; interpolated between keep ratios). None: lost before anything is saved."
    )


def order_of_loss(trained: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """Whether merging hurt least and chance most, and whether learning beat the rule, as was expected.

    trained: `tables.reductions`; pairs: `tables.pairs` of these ways. An expectation is met where every difference that
    it names is shown, and refuted where one of them is shown to be the other way round.
    """
    names = list(trained["model"])
    claims = {
        "merging loses least": [(MERGED, name) for name in names if name != MERGED],  # ahead, behind
        "chance loses most": [(name, BY_CHANCE) for name in names if name != BY_CHANCE],
        "learning beats the rule": [(LEARNED, BY_RULE)],
    }
    clear = pairs[shown(pairs)].itertuples()
    ahead = {(row.b, row.a) if row.difference > 0 else (row.a, row.b) for row in clear}
    told, unknown = [], []
    for claim, wanted in claims.items():
        against = [(a, b) for b, a in wanted if (a, b) in ahead]
        if against:
            told.append(f"{expected(False)}, {'; '.join(f'*{a}* is ahead of *{b}*' for a, b in against)}.")
        elif ahead.issuperset(wanted):
            told.append(f"{expected(True)}, {claim}.")
        else:
            unknown.append(claim)
    if unknown:
        told.append(f"Neither confirmed nor refuted: {'; '.join(unknown)}.")
    order = trained.sort_values("difference", ascending=False)
    points = ", ".join(f"*{row.model}* {signed(100 * row.difference)}" for row in order.itertuples())
    return f"{' '.join(told)} As measured, in points: {points} (tests corrected for all {len(pairs)} pairs, Holm)."


def learned(found: pd.DataFrame, images: str, chance: dict, validated: bool) -> str:
    """What DynamicViT reaches, and whether its predictors know more than chance gives.

    found: `tables.reductions`; chance: `metrics.compare`, on `images`, of its trained weights with random tokens and
    with those that it chooses; validated: whether these images also chose its epoch.
    """
    row = found.set_index("model").loc[LEARNED]
    long = verdict("the ViT trained on for as long", "it", row.to_dict())  # corrected for all ways
    drawn = verdict("random tokens", "its own choice", chance)
    return (
        f"DynamicViT answers **{row['accuracy']:.1%}** of the test images correctly with {row['saved']:.0%} fewer "
        f"multiply-adds: {long}. Did its predictors learn more than chance gives? With the same trained weights, on "
        f"{images}{', which also chose its epoch' if validated else ''}, {drawn}."
    )


def how_far(sweep: pd.DataFrame, tests: dict[float, dict], images: str, unpruned: str) -> str:
    """One sentence on the keep ratio down to which no test shows a loss against the model named by `unpruned`.

    sweep: keep_ratio and accuracy, falling; tests: keep ratio -> `metrics.mcnemar` of both.
    """
    p = holm(np.array([test["p"] for test in tests.values()]))
    lost = [q < LEVEL and test["only_a"] > test["only_b"] for q, test in zip(p, tests.values(), strict=True)]
    at = [f"ρ = {row.keep_ratio:g} ({row.accuracy:.1%})" for row in sweep.itertuples()]
    rule = f"the {images} can show {{}} against {unpruned} (McNemar, Holm over the {len(lost)} keep ratios)"
    if not any(lost):
        return f"Down to {at[-1]} {rule.format('no loss')}."
    first = lost.index(True)
    if first == 0:
        return f"Even at {at[0]} {rule.format('a loss')}."
    return f"Down to {at[first - 1]} {rule.format('no loss')}; at {at[first]} they show one."


def best_way(rows: pd.DataFrame) -> pd.Series | None:
    """The row of `tables.reductions` to take: of those that save work, with no shown loss, the one that loses least.

    By the difference, which is of the seeds that both have: means over unlike seeds would not compare.
    """
    fine = rows[~(shown(rows) & (rows["difference"] < 0)) & (rows["saved"] > 0)]
    return None if fine.empty else fine.loc[fine["difference"].idxmax()]


def which_reduction(rows: pd.DataFrame, unreduced: str) -> str:
    """Which way to fewer tokens to take, by the rule of `best_way`.

    rows: `tables.reductions`, each way compared with the model named by `unreduced`; shown: `metrics.shown`.
    """
    lost, best = rows[shown(rows) & (rows["difference"] < 0)], best_way(rows)
    which = "; ".join(f"*{row.model}* ({signed(100 * row.difference)} points)" for row in lost.itertuples())
    losses = f" A loss against *{unreduced}* is shown for {which}." if len(lost) else ""
    if best is None and len(lost) < len(rows):
        return f"At this keep ratio no way to fewer tokens saves work without a loss that is shown.{losses}"
    if best is None:
        return f"Every way to fewer tokens loses against *{unreduced}*, by a difference that is shown.{losses}"
    others = "; ".join(f"*{name}*" for name in rows["model"].drop([*lost.index, best.name]))
    low, high = (signed(100 * end) for end in best["interval"])
    text = (
        f"Of the ways to fewer tokens take **{best['model']}**: {best['saved']:.0%} fewer multiply-adds, "
        f"{signed(100 * best['difference'])} points ({low} to {high}) against *{unreduced}*, and no loss is shown for "
        "it"
    )
    return f"{text} (nor for {others}).{losses}" if others else f"{text}.{losses}"


def why_it_fails(rows: pd.DataFrame) -> str:
    """What the measurements say of the ViTs that tokens were taken from, a row a ViT.

    Columns vit, its name; chosen, random, merged: points lost by Top-K, random tokens, ToMe; alike: cosine of
    neighbours; apart: how far places are from the nearest that Top-K keeps, over the same at random; p: of McNemar's
    test between Top-K and random tokens.
    """
    lines = []
    for row in rows.itertuples():
        worse = f"{'more' if row.chosen > row.random else 'fewer'} than with random ones"
        merging = f"merging {'loses' if row.merged >= 0 else 'gains'} {abs(row.merged):.1f}"
        if row.p >= LEVEL:
            worse = "not shown to differ from random ones"
        chosen, drawn = (signed(points, "z.1f") for points in (row.chosen, row.random))
        lines.append(
            f"*{row.vit}*: with the tokens that Top-K chooses {chosen} points are lost, {worse} ({drawn}, "
            f"{p_text(row.p)}); {merging}. Neighbours have a cosine of {signed(row.alike, 'z.2f')}; a "
            f"place is {row.apart:.2f} times as far from the nearest that Top-K keeps as at random."
        )
    return " ".join(lines)
