"""The answers of page one: a sentence a question, each by a rule from what was measured.

results: `tables.by_model`; pairs: `tables.pairs`; speed: `Lab.speed`. A difference counts where `metrics.shown` says
so; a gain where its interval leaves zero out; a model is faster where its lead exceeds what the rounds leave open,
and `timing.LEAD`.
"""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd

from vitlab.analysis.complexity import EQUAL_COST
from vitlab.analysis.metrics import best_gain, shown
from vitlab.analysis.sentences import named
from vitlab.analysis.sentences_linear import LEAST
from vitlab.analysis.theme import own_words
from vitlab.analysis.timing import above, below
from vitlab.texts import listed, signed, unit_of_time

MOST_ROWS = 7  # of page one's table
KINDS = (("dynamicvit",), ("tome", "evit", "top-k", "random"), ("linformer", "inline", "linear"), ("resnet",))
NAMES = {  # what page one's names say
    ", as ": "*as X* means built to cost as much as X",
    "fine-tuned": "*fine-tuned* means trained on with all tokens, as long as those with fewer",
}
LIGHTER = 0.005  # share of the work from which less of it counts as less
FASTER = 1.08  # times as fast: a smaller lead is not worth another model
Speed = Callable[..., tuple[float, float]]


def _names(models: list[str]) -> str:
    *most, last = (named([name]) for name in models)
    return f"{'; '.join(most)} and {last}" if most else last


def ahead(pairs: pd.DataFrame, one: str, other: str) -> str:
    """Which of two models is shown to be ahead in `pairs`; "" where neither is, as where they are one."""
    clear = pairs[shown(pairs) & pairs["a"].isin([one, other]) & pairs["b"].isin([one, other])]
    if clear.empty:
        return ""
    pair = clear.iloc[0]
    return pair["b"] if pair["difference"] > 0 else pair["a"]


def behind_at_most(pairs: pd.DataFrame, one: str, other: str) -> float:
    """By how much of accuracy `other` may be behind `one`, as the interval of their difference in `pairs` has it."""
    [pair] = pairs[pairs["a"].isin([one, other]) & pairs["b"].isin([one, other])].itertuples()
    low, high = pair.interval
    return -low if pair.b == other else high


def recommended(results: pd.DataFrame, pairs: pd.DataFrame, speed: Speed) -> pd.Series:
    """The row of the model to take: the fastest in batches of those that are as good as the most accurate one.

    As good: within one standard error of its accuracy (Breiman et al. 1984, the rule of one standard error), and not
    shown to be behind it. The most accurate one where none of them is shown to be `FASTER`, or where its speed is
    unknown, as of a module of the reader's own.
    """
    best, times = results.loc[results["accuracy"].idxmax()], _times_of_as_good(results, pairs, speed)
    faster = {name: ratio for name, (ratio, off) in times.items() if ratio > max(FASTER, 1 + off)}
    return results[results["model"] == max(faster, key=faster.get)].iloc[0] if faster else best


def _times_of_as_good(results: pd.DataFrame, pairs: pd.DataFrame, speed: Speed) -> dict[str, tuple[float, float]]:
    """The others that are as good as the most accurate model, by the rule of `recommended` -> their speed beside it."""
    best = results.loc[results["accuracy"].idxmax()]
    error = math.sqrt(best["accuracy"] * (1 - best["accuracy"]) / best["test_images"])
    near = results.loc[results["accuracy"] >= best["accuracy"] - error, "model"].drop(best.name)
    return {name: speed(name, best["model"]) for name in near if ahead(pairs, best["model"], name) != best["model"]}


def none_as_good(results: pd.DataFrame, pairs: pd.DataFrame, speed: Speed) -> str:
    """Why `recommended` takes the most accurate model, which the sentence calls it."""
    times = _times_of_as_good(results, pairs, speed)
    if not times:
        return "every other is shown to be behind it, or more than one standard error below"
    known = {name: ratio for name, (ratio, _) in times.items() if ratio > FASTER}  # NaN is not known
    none = f"of the {len(times)} within one standard error of it none is"
    if len(times) == 1:
        none = f"{_names(list(times))}, the only one within one standard error of it, is not"
    none += f" shown to be faster by more than {FASTER - 1:.0%}"
    if not known:
        return none
    quick = max(known, key=known.get)
    return f"{none} ({_names([quick])} was measured {known[quick]:.2f} times as fast, which the rounds leave open)"


def near_the_best(take: pd.Series, best: pd.Series) -> str:
    """How accurate the recommended model is against the most accurate one; rows of `tables.by_model`."""
    if take["accuracy"] == best["accuracy"]:
        return f"as accurate as {_names([best['model']])}"
    return f"within one standard error of {_names([best['model']])}, the most accurate"


def best_model(results: pd.DataFrame, pairs: pd.DataFrame, speed: Speed) -> str:
    """Which model is most accurate, and which to take."""
    best, take = results.loc[results["accuracy"].idxmax()], recommended(results, pairs, speed)
    first = list(results.loc[results["accuracy"] == best["accuracy"], "model"])
    text = (
        f"**Which model?** {_names(first)} {'have' if len(first) > 1 else 'has'} the highest accuracy: "
        f"{best['accuracy']:.1%} of {best['test_images']:,} test images (95% interval {best['accuracy_low']:.1%} to "
        f"{best['accuracy_high']:.1%})"
    )
    others = results.loc[results["model"] != best["model"], "model"]
    behind = sum(ahead(pairs, best["model"], name) == best["model"] for name in others)
    if behind == len(others):
        return f"{text}, ahead of each of the other {behind} by the paired tests of chapter 6."
    it = "it" if len(first) == 1 else _names(first[:1])
    text += f"; {behind or 'none'} of the other {len(others)} can be told from {it} where all pairs are tested. "
    if take["model"] == best["model"]:
        return f"{text}Take {it}: {none_as_good(results, pairs, speed)}."
    times, _ = speed(take["model"], best["model"])
    own = f", {take['accuracy']:.1%}: {near_the_best(take, best)}"
    return f"{text}Take {_names([take['model']])}{own}, it classifies {times:.1f} times as many images a second."


def imbalance(
    ratio: float, images: tuple[int, int], price: pd.Series | None, gains: pd.DataFrame, alike: int = 0
) -> str:
    """What imbalance costs, and which remedy to take.

    ratio: images of the commonest class over the rarest's; images: in all, of the uneven data and of all; price:
    `metrics.seed_differences` of macro F1 between all the images and the uneven ones, None where there are no more;
    gains: between every remedy and none, the names as they are read; alike: remedies that cannot be told from the best.
    """
    text = f"**What does imbalance cost?** With {ratio:.3g} images of the commonest class to one of the rarest"
    if price is None:
        text += ", as the data come, the cost cannot be measured"
    else:
        loss = f"macro F1 falls by {_points(price)}" if price["low"] > 0 else "no loss of macro F1 can be shown"
        fewer = f", and {images[0]:,} of the {images[1]:,} training images," if images[0] < images[1] else ""
        text += f"{fewer} {loss}"
    best = best_gain(gains)
    if best["low"] <= 0:
        return f"{text}; no remedy shows a gain (the best, *{best.name}*: {_points(best)})."
    others = f"; {alike} of the other {len(gains) - 1} remedies cannot be told from it" if alike else ""
    lost = price is not None and price["low"] > 0 and price["gain"] >= best["gain"]  # what is to be given back
    gives = f"gives {_points(best)} back" if lost else f"gains {_points(best)}"
    return f"{text}; take *{best.name}*, which {gives}{others}."


def _points(row: pd.Series) -> str:
    gain, low, high = (signed(100 * row[name], "z.1f") for name in ("gain", "low", "high"))
    return f"{gain} points ({low} to {high})"


def best_way(rows: pd.DataFrame) -> pd.Series | None:
    """The row of `tables.reductions` to take: of those that save work, with no shown loss, the one that loses least.

    Of those with the most seeds: what fewer seeds say does not stand against them. By the difference, which is of the
    seeds that both have.
    """
    return _loses_least(rows[~(shown(rows) & (rows["difference"] < 0)) & (rows["saved"] > 0)])


def _loses_least(rows: pd.DataFrame) -> pd.Series | None:
    several = rows[rows["seeds"] == rows["seeds"].max()]
    return None if several.empty else several.loc[several["difference"].idxmax()]


def tokens(rows: pd.DataFrame, reference: str, left: tuple[int, int], speed: Speed) -> str:
    """How many tokens can go: with the `best_way`.

    rows: `tables.reductions` against `reference`, the model trained as long with all its tokens; left: tokens after the
    last stage, and all.
    """
    text = f"**How many tokens can go?** Of {left[1]} tokens {left[0]} are left in the end:"
    take, least = best_way(rows), _loses_least(rows[rows["saved"] > 0])
    if least is None:
        return f"{text} at this keep ratio none saves any work against *{reference}*."
    best = least if take is None else take
    saves, points = f"saves {best['saved']:.0%} of the multiply-adds", 100 * best["difference"]
    clock = f"On the clock it is {on_the_clock(best['model'], reference, speed)}."
    if take is not None:
        told = f"{saves} without a loss that shows against *{reference}* ({signed(points)} points)"
        return f"{text} *{best['model']}* {told}. {clock}"
    loses = f"loses {-points:.1f} points against *{reference}*"
    return f"{text} none does it without a loss; the best, *{best['model']}*, {saves} and {loses}. {clock}"


def on_the_clock(name: str, reference: str, speed: Speed) -> str:
    """How fast a model is beside the `reference`, after "it is": what is shown (`paces`), and what was measured."""
    quick, prompt = paces(name, reference, speed)
    batch, one = (speed(name, reference, what)[0] for what in ("images_per_second", "latency"))
    return (
        f"{quick} in batches ({batch:.2f} times the images a second of *{reference}*), and for one image {prompt} "
        f"({one:.2f} times the latency)"
    )


def paces(name: str, reference: str, speed: Speed) -> tuple[str, str]:
    """How fast a model is beside the `reference`, in batches and for one image: faster, slower, or neither is shown."""
    batch, one = speed(name, reference), speed(name, reference, "latency")
    shown_as = {(True, False): "faster", (False, True): "slower"}
    both = (bool(above(*batch)), bool(below(*batch))), (bool(below(*one)), bool(above(*one)))
    quick, prompt = (shown_as.get(found, "not shown to be faster") for found in both)
    return quick, prompt


def first_seed(results: pd.DataFrame, one: str, other: str) -> str:
    """For a sentence on the difference of two models that have unlike numbers of seeds: of which it is; else ""."""
    seeds = results.set_index("model").get("seeds", pd.Series(1, results["model"]))
    return " (first seed alone)" if seeds[one] != seeds[other] else ""


def beside_smaller(
    light: str, smaller: list[str], results: pd.DataFrame, pairs: pd.DataFrame, speed: Speed
) -> tuple[str, str, float, float]:
    """The most accurate of the ViTs built `smaller`, which of it and `light` is shown to be ahead ("": neither), and
    its images a second over those of `light`, with how far off that may be.
    """
    other = results.set_index("model").loc[smaller, "accuracy"].idxmax()
    return other, ahead(pairs, light, other), *speed(other, light)


def built_as_small(light: str, smaller: list[str], results: pd.DataFrame, pairs: pd.DataFrame, speed: Speed) -> str:
    """Whether tokens had to go for that: a ViT that was built `smaller`, beside the model `light`."""
    other, better, times, off = beside_smaller(light, smaller, results, pairs, speed)
    rows = results.set_index("model")
    more = rows.loc[other, "macs"] / rows.loc[light, "macs"] - 1
    than = f", with {abs(more):.0%} {'more' if more > 0 else 'fewer'} multiply-adds"
    small, than = ("as small", "") if abs(more) <= EQUAL_COST else ("small", than)
    text = (
        f"The most accurate ViT built {small} is *{other}*: {rows.loc[other, 'accuracy']:.1%}{than}. "
        f"By accuracy{first_seed(results, light, other)} it"
    )
    if better:
        return f"{text} is {'behind' if better == light else 'ahead of'} *{light}*."
    known = above(times, off) or below(times, off)
    pace = f"and it is {times:.2f} times as fast" if known else "nor by speed"
    return f"{text} cannot be told from *{light}*, {pace}."


def linear(
    against: dict[str, dict],
    speed: Speed,
    crossovers: dict[str, float],
    measured: tuple[int, int],
    width: int,
    here: int,
) -> str:
    """When linear attention pays: by accuracy at the size of the lab, and by the clock from how many tokens on.

    against: linear attention -> `metrics.compare` with the ViT; crossovers: kind of attention -> tokens from which a
    layer of this width is faster than softmax, inf if it is at none of those `measured`, from the fewest to the most;
    here: tokens of the lab's models, the class token among them.
    """
    fewest, longest = measured
    text = f"**When does linear attention pay?** As a layer of width {width} alone,"
    term = f"; *{LEAST}* has a local convolution besides" if LEAST in against else ""
    times = {name: speed(name, "ViT") for name in against}
    faster = [name for name, time in times.items() if above(*time)]
    slower = [name for name, time in times.items() if below(*time)]
    worse, better = (
        [name for name, found in against.items() if shown(found) and sign * found["difference"] > 0] for sign in (-1, 1)
    )
    if faster:
        pace = f"{_names(faster)} {_s('beat', faster)} softmax in batches"
    elif len(slower) == len(times):
        low, high = (f"{end(ratio for ratio, _ in times.values()):.2f}" for end in (min, max))
        pace = f"all are slower than softmax in batches ({low} to {high} times its throughput)"
    else:
        pace = "none is shown to beat softmax in batches"
    loses = f"and {_names(worse)} {_s('lose', worse)} accuracy" if worse else "and no loss of accuracy can be shown"
    points = [f"*{name}* by {100 * against[name]['difference']:.1f} points" for name in better]
    loses += f"; ahead of *ViT* is {listed(points)}" if better else ""
    finite = {kind: at for kind, at in crossovers.items() if math.isfinite(at)}
    first = min(finite, key=finite.get, default="")
    clock = f"from about {finite[first]:,.0f} tokens (*{first}*)" if finite else f"not up to {longest:,} tokens"
    if finite and finite[first] <= fewest:
        clock = f"at every size measured, from {fewest:,} tokens (*{first}*)"
    return f"{text} {clock}; in the lab's own models, of {here} tokens, {pace}, {loses}{term}."


def worth(results: pd.DataFrame, beside: dict[str, list[str]], speed: Speed) -> str:
    """What a multiply-add is worth in time: how much of the work that lighter models save they save on the clock.

    beside: the model that lighter ones are compared with -> their names. A model is lighter from `LIGHTER` on.
    """
    macs = results.dropna(subset=["macs", "images_per_second", "latency_ms"]).set_index("model")["macs"]
    text, lighter = "**What is a multiply-add worth?**", []
    for reference, names in beside.items():
        for name in (name for name in names if name in macs.index and macs[name] <= (1 - LIGHTER) * macs[reference]):
            gain, wait = speed(name, reference), speed(name, reference, "latency")
            shares = macs[name] / macs[reference], 1 / gain[0], wait[0]
            lighter.append((name, *shares, above(*gain), below(*wait)))
    frame = pd.DataFrame(lighter, columns=["model", "work", "batch", "one", "quick", "prompt"])
    if frame.empty:
        return f"{text} No model here needs {LIGHTER:.1%} less work than the one that it is compared with."
    shares = [frame[name].median() for name in ("work", "batch", "one")]
    quick, prompt = (int(frame[name].sum()) or "none" for name in ("quick", "prompt"))
    built = ", ViTs built as small among them" if any(map(_as_small, frame["model"])) else ""
    return (
        f"{text} Models with at least {LIGHTER:.1%} less work than the ViT beside them ({len(frame)} here{built}) "
        f"have, in the median, {shares[0]:.0%} of it, {shares[1]:.0%} of its time in batches and {shares[2]:.0%} for "
        f"one image. Shown to be faster: {quick} in batches, {prompt} for one image."
    )


def _s(verb: str, subjects: list[str]) -> str:
    return verb + "s" * (len(subjects) == 1)


def shortlist(results: pd.DataFrame) -> pd.DataFrame:
    """The rows of page one's table: the ViT, the best of each kind, and the next best until MOST_ROWS are full.

    A kind of their own are the ViTs that were built as small as a lighter model.
    """
    ranked = results.sort_values("accuracy", ascending=False, kind="stable")
    kind = pd.Series([_kind(name) for name in ranked["model"]], ranked.index)
    leaders = ranked.groupby(kind, sort=False).head(1).index
    wanted = [*results.index[results["model"] == "ViT"], *leaders, *ranked.index]
    chosen = list(dict.fromkeys(wanted))[:MOST_ROWS]
    return ranked.loc[[i for i in ranked.index if i in chosen]]


def _as_small(name: str) -> bool:
    """Whether a model was built as small as another, which its name then says."""
    return own_words(name) != name.lower()


def _kind(name: str) -> int:
    own = own_words(name)
    if _as_small(name):
        return len(KINDS) + 1
    return next((i for i, words in enumerate(KINDS) if any(word in own for word in words)), len(KINDS))


def shortlist_caption(results: pd.DataFrame, batch: int) -> str:
    """batch: images that throughput was measured with."""
    rows = shortlist(results)["model"]
    names = "".join(f"; {told}" for word, told in NAMES.items() if any(word in name for name in rows))
    several = "; scores are means over a model's seeds, the time of training is the first seed's"
    names += several if results["seeds"].max() > 1 else ""
    names += "; epochs include those of the ViT that a model goes on from"
    return (
        f"**The models in short**, {_which(results)}, most accurate first{names}. Images a second in "
        f"batches of {batch}, latency of one. Chapter 6 has all, and how they were measured."
    )


def _which(results: pd.DataFrame) -> str:
    if len(results) <= MOST_ROWS:
        return "all of them"
    return f"{MOST_ROWS} of {len(results)}, the ViT and the best of each kind among them"


def shortlist_table(results: pd.DataFrame) -> pd.DataFrame:
    """`shortlist` for reading; how many seeds its scores are means of where models have several."""

    def known(name: str, digits: str, unit: float = 1) -> list[str]:
        return ["–" if not np.isfinite(v) else f"{v * unit:{digits}}" for v in rows[name]]

    rows = shortlist(results)
    intervals = zip(rows["accuracy"], rows["accuracy_low"], rows["accuracy_high"], strict=True)
    unit, length, digits = unit_of_time(rows["training_seconds"])
    columns = {
        "accuracy, % (95% interval)": [f"{100 * v:.1f} ({100 * a:.1f} – {100 * b:.1f})" for v, a, b in intervals],
        **({"seeds": [*map(str, rows["seeds"])]} if results["seeds"].max() > 1 else {}),
        "epochs": [*map(str, rows["epochs"])],
        "million parameters": known("parameters", ".2f", 1e-6),
        "million multiply-adds": known("macs", ",.1f", 1e-6),
        "images/s": known("images_per_second", ",.0f"),
        "latency, ms": known("latency_ms", ".2f"),
        f"training, {unit}": [f"{v:{digits}}" for v in rows["training_seconds"] / length],
    }
    return pd.DataFrame(columns, index=list(rows["model"]))
