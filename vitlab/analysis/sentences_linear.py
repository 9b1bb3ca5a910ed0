"""What chapter 4's numbers say: what linear attention does to accuracy, and whether it pays."""

import math
from typing import TYPE_CHECKING

import pandas as pd

from vitlab.analysis.metrics import shown
from vitlab.analysis.sentences import named, p_text, shapes, thin_lines, verdict
from vitlab.analysis.timing import LEAD, above, below
from vitlab.texts import markdown, signed

if TYPE_CHECKING:
    from vitlab.lab import Lab
    from vitlab.runs import Run

LINEAR = ("Linear ViT", "Linformer ViT", "InLine ViT")  # the local terms apart, which are a control
LEAST, LOCAL = "InLine ViT", "ViT with the local term"  # expected to lose least, and softmax with what it has besides
TWO_ORDERS = (
    "One product of three matrices in two orders, for one head of this chapter's models, drawn to scale but for sides "
    "too short for a letter (d = D/H). Softmax works on the weights, so that each of them has to be computed; without "
    "it keys and values can be summed up before any query asks."
)
STEPS = (
    "What each step changes in test accuracy, from one attention to the next, over the seeds that both have: where one "
    "of them has a single seed, the first of both, and so not the difference of Table 4.1's means. A step is shown "
    "where the paired test says so, corrected for all of this chapter's comparisons (Holm). Interval and p hold over "
    "images and, where any model has several seeds, over the chance of training, which these tell of."
)
Ratios = dict[str, tuple[float, float]]  # model -> `Costs.ratio`
CONTROL = "local term, on softmax: the control"
INJECTIVE = "injective normalisation"
# from, to, what is exchanged
CHANGES = (
    ("ViT", "Linear ViT", "kernel for softmax"),
    ("Linear ViT", "InLine ViT without its local term", INJECTIVE),
    ("InLine ViT without its local term", "InLine ViT", "local term, on InLine"),
    ("Linear ViT", "Linear ViT with the local term", "local term, on the kernel"),
    ("ViT", LOCAL, CONTROL),
    ("ViT", LEAST, "InLine for softmax, its local term included"),
    (LOCAL, LEAST, "InLine for softmax, both with the local term"),
    (LOCAL, "Linear ViT with the local term", "kernel for softmax, both with the local term"),
)


def yardstick(run: "Run", tokens: int, accuracy: str) -> str:
    """accuracy: of all its seeds, as of `tables.chapter_scores`."""
    config = run.config
    return (
        f"The yardstick is the ViT of chapter 2: {accuracy} of {run.summary['test']['n']:,} test images with {tokens} "
        f"tokens of width {config.dim} in {config.heads} heads."
    )


def same_result(difference: float) -> str:
    return f"Largest difference between both orders: {difference:.1e}, which is rounding."


def matrices(most: dict[str, float], tokens: int) -> str:
    """most: kind of attention -> its largest weight."""
    told = ", ".join(f"{value:.3f} ({name})" for name, value in most.items())
    return (
        f"Attention weights of one head for the same random queries and keys ({tokens} tokens, PyTorch's default "
        f"initialisation, not the models'); a row sums to 1. The largest weight is {told}: the "
        f"{min(most, key=most.get)} weights are the flattest. Of shorter queries and keys all are nearer 1/{tokens}."
    )


def curves(lab: "Lab", budget: str) -> str:
    ring = " The ring marks the epoch whose weights were kept." if len(lab.data.val) else ""
    return (
        f"The same Transformer with other attentions ({budget}, {len(lab.data.train):,} images, "
        f"{lab.plan.seed_numbers(['ViT', *lab.plan.chapters['04']])}).{ring}{thin_lines(lab)}"
    )


def scores(lab: "Lab", tokens: int, k: int, batch: int) -> str:
    return (
        f"Accuracy and cost at {tokens} tokens ({len(lab.data.test):,} test images, {lab.plan.seed_words}; float32, a "
        f"CPU with one thread, latency at batch 1, images a second in batches of {batch}, medians; ratios in the text "
        f"are taken within each round, a lead counts from {LEAD:.0%} on; MACs are multiply-adds). "
        f"Linformer's k is {k}.{shapes(lab.plan, '04')}"
    )


def steps(feature_map: str, inline_map: str) -> tuple[tuple[str, str, str], ...]:
    """`CHANGES`, saying that a step changes the feature map φ as well, where it does."""
    if feature_map == inline_map:
        return CHANGES
    both = f"{INJECTIVE}, with φ {inline_map} for {feature_map}"
    return tuple((a, b, both if what == INJECTIVE else what) for a, b, what in CHANGES)


def steps_table(found: dict[str, dict]) -> pd.DataFrame:
    """What is exchanged -> `metrics.compare`, for reading."""
    rows = {
        what: {
            "points": signed(100 * c["difference"]),
            "95% interval": f"{signed(100 * c['interval'][0])} to {signed(100 * c['interval'][1])}",
            "p": p_text(c["p"]),
            "seeds": str(c["seeds"]),
            "shown": "yes" if shown(c) else "no",
        }
        for what, c in found.items()
    }
    return pd.DataFrame(rows).T


def which_step(found: dict[str, dict]) -> str:
    """Which part of a remedy helps: the steps whose gain is shown."""
    gains = [what for what, c in found.items() if shown(c) and c["difference"] > 0]
    losses = [what for what, c in found.items() if shown(c) and c["difference"] < 0]
    text = f"A gain is shown for {named(gains)}" if gains else "No step is shown to gain"
    if losses:
        text += f"; a loss {'' if gains else 'is shown '}for {named(losses)}."
    else:
        text += f", and {'no loss for any' if gains else 'none to lose'}."
    if CONTROL in found:
        return text
    return (
        f"{text} InLine brings its local term, a 3×3 convolution: without the control, softmax with that term, these "
        "runs cannot say how much of a difference is the attention's."
    )


def looking(flat: dict[str, float]) -> str:
    """flat: model -> T Σ w², `attention.concentration`: how far rows of weights are from uniform."""
    apart = [name for name, value in flat.items() if math.isnan(value)]
    flat = {name: value for name, value in flat.items() if name not in apart}
    told = ", ".join(f"{name} {value:.2f}" for name, value in flat.items())
    text = (
        "What trained attention gives to each patch in the last block, one colour scale for all, 1 for a mean share of "
        "rows that sum to 1 (a local term is not in it). How far rows are from uniform, T Σ w² (1: all alike), the "
        f"mean over rows and heads of these images: {told}. The nearest to uniform is that of "
        f"{min(flat, key=flat.get)}, the farthest that of {max(flat, key=flat.get)}."
    )
    if not apart:
        return text
    return (
        f"{text} Of {', '.join(apart)} there is no such number: drawn are its weights on the projected tokens times "
        "the learned projection of values, which may be negative and need not sum to 1."
    )


def where_the_work_is(parts: dict[str, int], tokens: int) -> str:
    """parts: component of the softmax ViT -> MACs."""
    share = parts["attention"] / sum(parts.values())
    return (
        f"Multiply-adds of one image by component, from the formula. Attention between {tokens} tokens is {share:.1%} "
        "of the softmax ViT's work: more can't be saved here."
    )


def break_even(head: float, tokens: int, k: int) -> str:
    """Where the formulas meet; head: D/H, k: Linformer's."""
    meet = {"kernel": head + 0.5, "InLine": head + 4.5, "Linformer": 2 * k}
    pays = [name for name, at in meet.items() if tokens > at]
    others = [name for name in meet if name not in pays]
    enough = f"enough for {named(pays)}" if pays else "enough for none of them"
    short = f", not for {named(others)}" if pays and others else ""
    return (
        "The formulas say from where on it pays: $2 T^2 D$ for softmax against $2 T D^2 / H + T D$ for the kernel "
        f"($T D$ for the normaliser) meet at $T = D/H + \\tfrac{{1}}{{2}} = {meet['kernel']:g}$ tokens, InLine's "
        "$2 T D^2 / H + 9 T D$ (a 3×3 convolution, and no normaliser) at "
        f"$T = D/H + \\tfrac{{9}}{{2}} = {meet['InLine']:g}$, Linformer's $4 T k D$ at $T = 2k = {meet['Linformer']}$. "
        f"Our {tokens} are {enough}{short}. Chapter 5 asks the clock."
    )


def by_class(images: int, classes: int) -> str:
    return (
        "Recall of each class: ring, the ViT; diamond, the model above the panel. A class has "
        f"{images // classes:,} test images on average, so one image moves a marker by about "
        f"{100 * classes / images:.1f} points."
    )


def noticed(differences: pd.DataFrame) -> str:
    """Which classes notice; differences: `tables.recall_differences`."""
    clear = differences[shown(differences)]
    tests = "the tests (within the class, with one chance of training for all classes, Holm over all)"
    text = f"Of these {len(differences)} differences to the ViT {tests} can show "
    if clear.empty:
        return f"{text}none."
    told = []
    for model, rows in clear.groupby("model", sort=False):
        classes = ", ".join(f"{markdown(r['class'])} {signed(100 * r.difference)}" for _, r in rows.iterrows())
        told.append(f"*{model}*: {classes}")
    loses = "" if (clear["difference"] < 0).any() else ". No class is shown to lose"
    return f"{text}{len(clear)}, in points: {'; '.join(told)}{loses}."


# ---------------------------------------------------------------- the conclusion


def answer(against: dict[str, dict], speed: Ratios, wait: Ratios, tokens: int) -> str:
    """The chapter's question in one sentence: what the linear cost does to accuracy, and whether it pays here.

    against: linear attention -> `metrics.compare` with softmax; speed, wait: its throughput in batches and its time for
    one image over softmax's, and how far off these may be, as of `Costs.ratio`, which a gain has to exceed.
    """
    lost = [name for name, found in against.items() if shown(found) and found["difference"] < 0]
    faster = [name for name in against if above(*speed[name])]
    prompt = [name for name in against if below(*wait[name])]
    if not lost:
        cost = "The linear cost takes no accuracy that these runs can show"
    elif len(lost) == len(against):
        cost = "The linear cost takes accuracy, whichever attention has it"
    else:
        cost = f"The linear cost takes accuracy with {named(lost)}, and none that can be shown with the others"
    pays = (
        f"{named(faster) or 'none'} {'are' if len(faster) > 1 else 'is'} shown to be faster than softmax in batches, "
        f"and {named(prompt) or 'none'} for one image"
    )
    return f"**{cost}; at our {tokens} tokens {pays}.**"


def like_with_like(compared: dict[tuple[str, str], dict]) -> str:
    """What is InLine's attention, and what its local term; compared: `tables.attentions`."""
    if (LOCAL, LEAST) in compared:
        return f"With the same local term on both sides, {verdict(f'*{LOCAL}*', f'*{LEAST}*', compared[LOCAL, LEAST])}."
    return f"*{LEAST}* has a local term, a 3×3 convolution, that the softmax ViT lacks: its difference is that of both."


def as_expected(against: dict[str, dict], among: dict[tuple[str, str], dict]) -> str:
    """Whether linear attention loses, and InLine least, as was expected.

    against: `metrics.compare` of linear attentions with softmax; among: of those, (a, b), among themselves.
    """
    lost = [name for name, found in against.items() if shown(found) and found["difference"] < 0]
    points = "; ".join(f"*{name}* {signed(100 * found['difference'])}" for name, found in against.items())
    text = f"A loss is shown for {named(lost)}" if lost else "With few tokens little was to lose: no loss is shown"
    clear = {pair: found for pair, found in among.items() if LEAST in pair and shown(found)}
    ahead = [b if found["difference"] > 0 else a for (a, b), found in clear.items()]
    better = [name for name in ahead if name != LEAST]
    if better:
        best = f"Against the expectation, {named(better)} {'is' if len(better) == 1 else 'are'} ahead of *{LEAST}*"
    elif len(ahead) == len(against) - 1:
        others = named(name for name in against if name != LEAST)
        best = f"As expected, *{LEAST}* is ahead of {others}, none of which has its local term"
    else:
        best = f"That *{LEAST}* does best is neither confirmed nor refuted"
    return f"{text} (in points: {points}). {best}."


def each(against: dict[str, dict], works: dict[str, float], speed: Ratios, tokens: int) -> str:
    """A line an attention: how sure its difference is, and what it costs of softmax's work and throughput."""
    return "\n".join(
        f"* **{name}:** {verdict('the softmax ViT', 'it', found)}. It needs {works[name]:.1%} of the ViT's "
        f"multiply-adds and has {speed[name][0]:.2f} times its throughput at {tokens} tokens."
        for name, found in against.items()
    )
