"""What chapter 3's numbers say: which tokens were needed, and what each way to fewer of them loses and saves."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vitlab import texts
from vitlab.analysis.findings import Speed, best_way, on_the_clock, paces
from vitlab.analysis.metrics import LEVEL, holm, shown
from vitlab.analysis.sentences import expected, named, p_text, shapes, thin_lines, verdict
from vitlab.analysis.timing import LEAD, above, below
from vitlab.analysis.tokens import TRACED
from vitlab.models.reduce import stages_of
from vitlab.texts import signed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vitlab.config import RunConfig
    from vitlab.lab import Lab
    from vitlab.runs import Run

PREFERS = 0.2  # by which a share may be above or below the mean before it counts as a preference
BY_CHANCE, BY_ATTENTION, MERGED, LEARNED = "Random tokens", ("Top-K", "EViT"), "ToMe", "DynamicViT"


def start(lab: "Lab", backbone: "Run") -> str:
    """The ViT that this chapter goes on from."""
    test, config = backbone.summary["test"], backbone.config
    low, high = test["interval"]
    return (
        f"We start from *{lab.plan.backbone}* of chapter 2: {test['accuracy']:.1%} of {test['n']:,} test images (seed "
        f"{config.seed}, 95% interval {low:.1%} to {high:.1%}), {config.num_tokens} tokens through {config.depth} "
        f"blocks. We ask for a keep ratio of ρ = {lab.params.keep_ratio:g} at each stage."
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


def training(config: "RunConfig") -> str:
    """Size and training of a ViT of chapter 2, where those that this chapter looks at may differ."""
    cutout = " with Cutout" if config.cutout else ""
    return f"width {config.dim}, {config.depth} blocks, {config.budget}{cutout}"


def as_it_is(images: str, trained: dict[str, str], seed: int, keep_ratio: float) -> str:
    """trained: tokenizer -> `training` of the ViT with it."""
    which = "Two trained ViTs as they are" if len(trained) > 1 else "A trained ViT as it is"
    how = "; ".join(f"{tokenizer} tokenizer: {told}" for tokenizer, told in trained.items())
    return (
        f"{which} ({how}; seed {seed}), at ρ = {keep_ratio:g}, {images}. How alike tokens are after the first block "
        "(each image's mean subtracted; 200 images at most), and how far, in patches, a place is from the nearest one "
        "that was kept after the last stage (500 at most); both evenly from all classes."
    )


def curves(lab: "Lab", whole: "RunConfig", dynamic: "RunConfig") -> str:
    """whole: of the ViT that is fine-tuned without a reduction; dynamic: of DynamicViT."""
    how = " Validation is done with tokens really gone." if len(lab.data.val) else ""
    seeds = lab.plan.seed_numbers([name for name, config in lab.plan.chapters["03"].items() if config.init_from])
    start = "the same weights within a seed" if len(lab.plan.seeds) > 1 else "the same weights"
    still = f", and not at all in the first {dynamic.frozen:.2g} of the training" if dynamic.frozen else ""
    return (
        f"Trained on for {whole.budget} from {start} ({seeds}).{how} DynamicViT's predictors learn at chapter 2's "
        f"rates, its ViT at {dynamic.backbone_rate:.2g} times these{still}; the others at "
        f"{whole.lr / dynamic.lr:.2g} times these. Its loss is of answers with tokens hidden.{thin_lines(lab)}"
    )


def departures(config: "RunConfig", published: "RunConfig") -> str:
    """Which departures of DynamicViT from its publication are switched on; "" where none is.

    published: a configuration with what was published for the rates.
    """
    told = []
    if config.backbone_rate != published.backbone_rate:
        usual = f"instead of {published.backbone_rate:.2g}"
        told.append(f"its ViT learns at {config.backbone_rate:.2g} times the predictors' rate {usual}")
    if config.frozen != published.frozen:
        still = f"only after {config.frozen:.0%} of the training" if config.frozen else "from the first step on"
        told.append(f"{still}, instead of after {published.frozen:.0%}")
    if config.settle:
        told.append(f"in the last {config.settle:.0%} the best-scored tokens stay, and none are drawn")
    if (stages := stages_of(config.depth, config.stages)) != (usual := stages_of(config.depth)):
        blocks, others = (texts.listed(str(stage + 1) for stage in of) for of in (stages, usual))
        published = f"at a quarter, a half and three quarters of the depth ({others} of {config.depth})"
        told.append(f"its stages, and those of all ways, stand before blocks {blocks}, not {published}")
    return f"Departures from DynamicViT as published that are switched on: {'; '.join(told)}." if told else ""


def speeds(lab: "Lab", batch: int, smaller: "Sequence[RunConfig]") -> str:
    """smaller: of the ViTs among them that were built as small."""
    long = f"for {smaller[0].budget}" if smaller and smaller[0].minutes else "on as many images"
    built = f", and the ViTs built as small, trained from the start {long}" if smaller else ""
    return (
        f"Trained on for as long, ρ = {lab.params.keep_ratio:g}{built}: accuracy on {len(lab.data.test):,} test "
        f"images ({lab.plan.seed_words}) against work and "
        f"time (float32, a CPU with one thread, batches of {batch}, and batch 1; medians of {lab.costs.rounds} rounds "
        f"or more that take turns; × is a ratio to the first row within each round, ± how far off the rounds leave it, "
        f"and a lead counts from {LEAD:.0%} on)."
        f"{shapes(lab.plan, '03')}"
    )


def is_it_faster(speed: pd.DataFrame) -> str:
    """Which ways to fewer tokens are faster than the ViT with all of them, in batches and alone.

    speed: `tables.speeds` of the ways; what a ratio differs from 1 by counts where it may not be as far off.
    """
    quick = above(speed["speed_up"], speed["speed_up_spread"])
    prompt = below(speed["latency_ratio"], speed["latency_ratio_spread"])

    def told(faster: pd.Series) -> str:
        names = [f"*{name}*" for name in speed.index[faster]] or ["none"]
        all_of_them = f"all {len(speed)} ways to fewer"
        return f"{all_of_them if faster.all() else texts.listed(names)} {'are' if faster.sum() > 1 else 'is'}"

    return f"In batches {told(quick)} shown to be faster than the ViT with all tokens; for one image {told(prompt)}."


def stands_for(left: int, ratio: float, images: int, seed: int) -> str:
    return (
        f"What {left} tokens stand for after the last stage, ρ = {ratio:g}: the first test image of {images} classes, "
        f"a row a method (seed {seed})."
    )


def places(images: int, middle: dict[str, float], seed: int) -> str:
    """middle: method -> how often it keeps the middle of the image, over its mean."""
    repeats = f"; random tokens, drawn by place in a batch of {TRACED}, repeat" if images > TRACED else ""
    told = ", ".join(f"{name} {times:.2f}" for name, times in middle.items())
    return (
        f"How often each place is kept, over {images:,} test images, evenly from all classes (seed {seed}): the part "
        "of a token that a patch has after the last stage (1 alone, 1/n as one of n, 0 dropped). How often the middle "
        f"of the image is kept, over the mean place: {told}{repeats}."
    )


def needed(middle: dict[str, float], pairs: pd.DataFrame) -> str:
    """Which tokens were needed: where each way that drops some keeps them, and whether it made a difference.

    middle: as of `places`; pairs: `tables.pairs` of these ways.
    """
    kept = {name: _kept(name, times) for name, times in middle.items()}
    told = []
    for where in dict.fromkeys(kept.values()):
        names = [f"*{name}* ({middle[name]:.2f})" for name in kept if kept[name] == where]
        told.append(f"{texts.listed(names)} {'keeps' if len(names) == 1 else 'keep'} {where}")
    unlike = pairs[pairs["a"].isin(middle) & pairs["b"].isin(middle)]
    unlike = unlike[unlike["a"].map(kept) != unlike["b"].map(kept)]
    text = f"**Which tokens were needed?** {'; '.join(told)} (how often the middle is kept, over the mean place)."
    if unlike.empty:
        return text
    clear = unlike[shown(unlike)]
    if clear.empty:
        return (
            f"{text} Trained on, no two that keep unlike places are shown to differ in accuracy: which place is kept "
            "is not shown to matter."
        )
    ahead = [
        f"*{row.b}* of *{row.a}*" if row.difference > 0 else f"*{row.a}* of *{row.b}*" for row in clear.itertuples()
    ]
    return f"{text} Trained on, of those that keep unlike places ahead is {'; '.join(ahead)}."


def _kept(name: str, times: float) -> str:
    """What a way keeps, by how often it keeps the middle over the mean place; chance prefers no place."""
    if name == BY_CHANCE or abs(times - 1) <= PREFERS:
        return "all places alike"
    more, less = ("middle", "border") if times > 1 else ("border", "middle")
    return f"the {more} of the image more than its {less}"


def broken(name: str, reference: str, lost: int, won: int, images: int, seed: int) -> str:
    """lost, won: test images that only the ViT with all tokens, and only the one with fewer, answers rightly."""
    return (
        f"Images that *{name}* loses (true class → its answer): *{reference}* is right; below each what *{name}* still "
        f"saw after the last stage. Of {images:,} test images {lost:,} are such, and {won:,} the other way round (seed "
        f"{seed}); fewer tokens are one difference between the two, their training another."
    )


def over_tokens(images: str, ratio: float, seed: int) -> str:
    return (
        f"Accuracy over the tokens that a block sees, on {images} with 95% intervals (seed {seed}); dashed: all "
        f"tokens. Right: throughput at ρ = {ratio:g}."
    )


def savings(loss: float, images: str, chosen: bool, seed: int) -> str:
    """loss: `tokens.small_loss` of these images; chosen: whether they chose the epochs of what was trained on."""
    best = ", whose epoch is the best on these images" if chosen else ""
    return (
        f"The largest saving at {100 * loss:.2g} points: the largest share of the blocks' multiply-adds that can go "
        "with no more accuracy lost; as it is, against the same ViT with all its tokens, trained on, against *ViT, "
        f"fine-tuned*{best} ({images}; seed {seed}; interpolated between keep ratios). None: at every keep ratio more "
        "is lost."
    )


def _claims(names: list[str]) -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """What the chapter expects -> the way that it is about, and the pairs in which the first should be ahead."""
    return {
        "merging loses least": (MERGED, [(MERGED, name) for name in names if name != MERGED]),
        "chance loses most": (BY_CHANCE, [(name, BY_CHANCE) for name in names if name != BY_CHANCE]),
        "learning, distilled besides, beats the rules that go by attention": (
            LEARNED,
            [(LEARNED, name) for name in names if name in BY_ATTENTION],
        ),
    }


def order_of_loss(trained: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """Whether merging hurt least and chance most, and whether learning beat attention, as was expected.

    trained: `tables.reductions`; pairs: `tables.pairs` of these ways. An expectation is met where every difference that
    it names is shown, and refuted where one of them is shown to be the other way round.
    """
    clear = pairs[shown(pairs)].itertuples()
    ahead = {(row.b, row.a) if row.difference > 0 else (row.a, row.b) for row in clear}
    told, unknown = [], []
    for claim, (subject, wanted) in _claims(list(trained["model"])).items():
        against = [(a, b) for b, a in wanted if (a, b) in ahead]
        if against:
            told.append(f"{expected(False)}, {'; '.join(f'*{a}* is ahead of *{b}*' for a, b in against)}.")
        elif ahead.issuperset(wanted):
            told.append(f"{expected(True)}, {claim}.")
        else:
            unknown.append(f"{claim}{_shown_beside(subject, wanted, ahead)}")
    if unknown:
        told.append(f"Neither confirmed nor refuted: {'; '.join(unknown)}.")
    order = trained.sort_values("difference", ascending=False)
    few = order["seeds"] < order["seeds"].max()
    single = [" (first seed alone)" if less else "" for less in few]
    points = ", ".join(
        f"*{row.model}* {signed(100 * row.difference)}{one}"
        for row, one in zip(order.itertuples(), single, strict=True)
    )
    return (
        f"Trained on: {' '.join(told)} As measured, in points: {points} (tests corrected for all {len(pairs)} pairs, "
        "Holm)."
    )


def _shown_beside(subject: str, wanted: list[tuple[str, str]], ahead: set[tuple[str, str]]) -> str:
    """Beside which of the others an expectation of `_claims` is shown, where it is for some."""
    others = {pair: next(name for name in pair if name != subject) for pair in wanted}
    found, open_ = ([f"*{other}*" for pair, other in others.items() if (pair in ahead) == yes] for yes in (True, False))
    return f" (shown beside {texts.listed(found)}, not beside {texts.listed(open_)})" if found else ""


def before(rows: pd.DataFrame) -> str:
    """Where Top-K loses more than chance before anything is trained on; rows: those of `why_it_fails`."""
    worse = [row for row in rows.itertuples() if row.p < LEVEL and row.chosen > row.random]
    told = "; ".join(f"*{row.vit}* ({row.chosen:.1f} against {row.random:.1f} points)" for row in worse)
    return f"Before it is trained on, a ViT can lose more by Top-K than by chance: {told}." if told else ""


def learned(found: pd.DataFrame, pairs: pd.DataFrame, images: str, chance: dict, validated: bool) -> str:
    """What DynamicViT reaches, and whether its predictors know more than chance gives.

    found: `tables.reductions`; pairs: `tables.pairs` of these ways; chance: `metrics.compare`, on `images`, of its
    trained weights with random tokens and with those that it chooses; validated: whether these images also chose its
    epoch.
    """
    row = found.set_index("model").loc[LEARNED]
    long = verdict("the ViT trained on for as long", "it", row.to_dict())  # corrected for all ways
    drawn = verdict("random tokens", "its own choice", chance)
    [both] = pairs[pairs["a"].isin([LEARNED, BY_CHANCE]) & pairs["b"].isin([LEARNED, BY_CHANCE])].to_dict("records")
    trained = verdict(f"*{both['a']}*", f"*{both['b']}*", both)
    return (
        f"DynamicViT answers **{row['accuracy']:.1%}** of the test images correctly with {row['saved']:.0%} fewer "
        f"multiply-adds: {long}. Did its predictors learn more than chance gives? With the same trained weights, on "
        f"{images}{', which also chose its epoch' if validated else ''}, {drawn}; but these weights know no other "
        f"choice than their own. Each trained on with its own, on the test images, {trained}."
    )


def how_far(
    sweeps: dict[str, tuple[pd.DataFrame, dict[float, dict]]], images: str, unpruned: str, seed: int, tested: str = ""
) -> str:
    """The keep ratio of each way down to which no test shows a loss against the model named by `unpruned`.

    sweeps: way -> keep_ratio and accuracy, falling, and keep ratio -> `metrics.mcnemar` of both, of this seed; tested:
    what the test images show, `at_test`.
    """
    told = []
    for name, (sweep, tests) in sweeps.items():
        p = holm(np.array([test["p"] for test in tests.values()]))
        lost = [q < LEVEL and test["only_a"] > test["only_b"] for q, test in zip(p, tests.values(), strict=True)]
        at = [f"{row.keep_ratio:g} ({row.accuracy:.1%})" for row in sweep.itertuples()]
        first = lost.index(True) if any(lost) else len(lost)
        to = f"down to {at[first - 1]}" if first else f"a loss even at {at[0]}"
        end = f", at {at[first]} they show one" if 0 < first < len(lost) else ", the least tried" if first else ""
        told.append(f"*{name}* {to}{end}")
    ratios = max(len(tests) for _, tests in sweeps.values())
    return (
        f"**Down to which keep ratio ρ?** The {images} show no loss against {unpruned} (seed {seed}; McNemar, Holm "
        f"over each way's {ratios} keep ratios): {'; '.join(told)}. That none is shown need not mean that there is "
        f"none.{tested}"
    )


def at_test(rows: pd.DataFrame, ratio: float, images: int) -> str:
    """For which ways the test images show a loss at the ratio of the training; rows: `tables.reductions`."""
    lost = rows[shown(rows) & (rows["difference"] < 0)]
    if lost.empty:
        return ""
    return f" At ρ = {ratio:g} the {images:,} test images show one for {named(lost['model'])}."


def which_reduction(rows: pd.DataFrame, unreduced: str, speed: Speed) -> str:
    """Which way to fewer tokens to take, by the rule of `best_way`, and what it does on the clock.

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
        f"it{f' (nor for {others})' if others else ''}"
    )
    clock = on_the_clock(best["model"], unreduced, speed)
    whole = "" if "faster" in paces(best["model"], unreduced, speed) else " What it is shown to save is work, not time."
    return f"{text}. On the clock it is {clock}.{whole}{losses}"


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


def overlap(apart: pd.DataFrame, alike: dict[str, float], trained: dict[str, str]) -> str:
    """Whether tokens that overlap can be spared more easily than patches, and whether the reason given for it holds.

    apart: `tokens.losses_apart` of the ViT with the convolutional tokenizer, beside that with patches; alike: cosine of
    neighbours, trained: `training`, of both by tokenizer.
    """
    less, more = (shown(apart) & (sign * apart["difference"] > 0) for sign in (-1, 1))
    if more.any():
        told = f"{expected(False)}, the ViT whose tokens overlap loses more by {named(apart['method'][more])}"
    elif less.all():
        told = f"{expected(True)}, the ViT whose tokens overlap loses less, whichever of the {len(apart)} ways is taken"
    else:
        told = f"That the ViT whose tokens overlap loses less is shown for {named(apart['method'][less]) or 'no way'}"
    cosines = [signed(alike[tokenizer], "z.2f") for tokenizer in ("conv", "patch")]
    closer = round(alike["conv"], 2) > round(alike["patch"], 2)  # as far as the table tells
    reason = "as the reason given has it" if closer else "so that this measure does not show the reason given"
    text = (
        f"{told} (Holm over the ways). Its neighbours are {'' if closer else 'no '}more alike ({' and '.join(cosines)})"
        f", {reason}."
    )
    if trained["conv"] == trained["patch"]:
        return text
    both = "; ".join(trained[tokenizer] for tokenizer in ("conv", "patch"))
    return f"{text} The two differ otherwise as well ({both}): the tokenizer is not all that parts them."
