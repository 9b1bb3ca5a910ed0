"""The answers of page one: a sentence a question, each by a rule from what was measured.

results: `tables.by_model`; pairs: `tables.pairs`. A difference counts where `metrics.shown` says so; a gain where its
interval leaves zero out.
"""

import math

import numpy as np
import pandas as pd

from vitlab.analysis.metrics import shown
from vitlab.analysis.theme import FAMILIES
from vitlab.texts import signed

MOST_ROWS = 7  # of page one's table


def _names(models: pd.Series | list[str]) -> str:
    *most, last = (f"*{name}*" for name in models)
    return f"{'; '.join(most)} and {last}" if most else last


def _differ(pairs: pd.DataFrame, a: str, b: str) -> bool:
    """Whether a difference of the two can be shown."""
    row = pairs[((pairs["a"] == a) & (pairs["b"] == b)) | ((pairs["a"] == b) & (pairs["b"] == a))]
    return bool(shown(row).any())


def recommended(results: pd.DataFrame, pairs: pd.DataFrame) -> pd.Series:
    """The row of the model to take: the fastest in batches of those that are as good as the most accurate one.

    As good: within one standard error of its accuracy (Breiman et al. 1984, the rule of one standard error), and not
    shown to differ from it. The most accurate one where its speed is unknown, as that of a module of the reader's own.
    """
    best = results.loc[results["accuracy"].idxmax()]
    error = math.sqrt(best["accuracy"] * (1 - best["accuracy"]) / best["test_images"])
    near = results[results["accuracy"] >= best["accuracy"] - error]
    good = near[[not _differ(pairs, best["model"], name) for name in near["model"]]]
    speed = good["images_per_second"].fillna(0)
    return best if speed[best.name] in (0, speed.max()) else good.loc[speed.idxmax()]


def best_model(results: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """Which model is most accurate, and which to take."""
    best, take = results.loc[results["accuracy"].idxmax()], recommended(results, pairs)
    text = (
        f"**Which model?** *{best['model']}* is the most accurate: {best['accuracy']:.1%} of {best['test_images']:,} "
        f"test images (95% interval {best['accuracy_low']:.1%} to {best['accuracy_high']:.1%})"
    )
    others = results.loc[results["model"] != best["model"], "model"]
    behind = sum(_differ(pairs, best["model"], name) for name in others)
    if behind == len(others):
        return f"{text}, ahead of each of the other {behind} beyond chance."
    text += f"; {behind or 'none'} of the other {len(others)} can be told from it on these images. "
    if take["model"] == best["model"]:
        return f"{text}Take it: none within one standard error of it is known to be faster."
    times = take["images_per_second"] / best["images_per_second"]
    near = f"Take *{take['model']}*: within one standard error ({take['accuracy']:.1%})"
    return f"{text}{near} it classifies {times:.1f} times as many images a second."


def imbalance(ratio: float, price: pd.Series | None, gains: pd.DataFrame, alike: int = 0) -> str:
    """What imbalance costs, and which remedy to take.

    ratio: images of the commonest class over the rarest's; gains: `metrics.seed_differences` of macro F1 between every
    remedy and none, the names as they are read; price: such a row between all the images and the uneven ones, None
    where there are no more; alike: remedies that cannot be told from the best.
    """
    text = f"**What does imbalance cost?** With {ratio:.3g} images of the commonest class to one of the rarest"
    if price is None:
        text += ", as the data come, the cost cannot be measured"
    elif price["low"] > 0:
        text += f" macro F1 falls by {_points(price)}"
    else:
        text += " no loss of macro F1 can be shown"
    best = gains.loc[gains["gain"].idxmax()]
    if best["low"] <= 0:
        return f"{text}; no remedy shows a gain (the best, *{best.name}*: {_points(best)})."
    others = f"; {alike} of the other {len(gains) - 1} remedies cannot be told from it" if alike else ""
    return f"{text}; take *{best.name}*, which gives {_points(best)} back{others}."


def _points(row: pd.Series) -> str:
    return f"{100 * row['gain']:.1f} points ({100 * row['low']:.1f} to {100 * row['high']:.1f})"


def tokens(
    results: pd.DataFrame, pairs: pd.DataFrame, reference: str, reduced: list[str], left: tuple[int, int]
) -> str:
    """How many tokens can go: with the most accurate of the models that drop tokens without a loss that can be shown.

    reference: the model trained as long with all its tokens; reduced: those with fewer tokens; left: tokens after the
    last stage, and all.
    """
    rows = results.set_index("model")
    base, text = rows.loc[reference], f"**How many tokens can go?** Of {left[1]} tokens {left[0]} are left in the end:"
    tried = rows.loc[[name for name in reduced if name in rows.index]]
    free = [
        name
        for name, row in tried.iterrows()
        if row["accuracy"] >= base["accuracy"] or not _differ(pairs, reference, name)
    ]
    row = tried.loc[free or list(tried.index)]
    row = row.loc[row["accuracy"].idxmax()]
    saves = f"saves {1 - row['macs'] / base['macs']:.0%} of the multiply-adds"
    points = 100 * (row["accuracy"] - base["accuracy"])
    if free:
        return f"{text} *{row.name}* {saves} without a loss that shows against *{reference}* ({signed(points)} points)."
    loses = f"loses {-points:.1f} points against *{reference}*"
    return f"{text} none does it without a loss; the best, *{row.name}*, {saves} and {loses}."


def linear(
    results: pd.DataFrame, pairs: pd.DataFrame, linear: list[str], crossovers: dict[str, float], longest: int
) -> str:
    """When linear attention pays: by accuracy at the size of the lab, and by the clock from how many tokens on.

    crossovers: kind of attention -> tokens from which it is faster than softmax, inf if it is not up to `longest`.
    """
    rows = results.set_index("model")
    text, vit = "**When does linear attention pay?**", rows.loc["ViT"]
    models = rows.loc[[name for name in linear if name in rows.index]]
    faster = models[models["images_per_second"] > vit["images_per_second"]]
    worse = [n for n, row in models.iterrows() if row["accuracy"] < vit["accuracy"] and _differ(pairs, "ViT", n)]
    here = (
        f"in batches {_names(list(faster.index))} {_s('beat', faster)} softmax"
        if len(faster)
        else "none beats softmax in batches"
    )
    loses = f"and {_names(worse)} {_s('lose', worse)} accuracy" if worse else "and no loss of accuracy can be shown"
    finite = {kind: at for kind, at in crossovers.items() if math.isfinite(at)}
    first = min(finite, key=finite.get, default="")
    clock = f"from about {finite[first]:,.0f} tokens (*{first}*)" if finite else f"not up to {longest:,} tokens"
    return f"{text} As a layer alone, {clock}; as models of the lab's own size, {here}, {loses}."


def worth(results: pd.DataFrame, beside: dict[str, list[str]]) -> str:
    """What a multiply-add is worth in time: how much of the work that lighter models save they save on the clock.

    beside: the model that lighter ones are compared with -> their names.
    """
    rows = results.dropna(subset=["macs", "images_per_second", "latency_ms"]).set_index("model")
    text, lighter = "**What is a multiply-add worth?**", []
    for reference, names in beside.items():
        base = rows.loc[reference]
        for name in (name for name in names if name in rows.index and rows.loc[name, "macs"] < 0.995 * base["macs"]):
            row = rows.loc[name]
            time = base["images_per_second"] / row["images_per_second"]
            lighter.append((name, reference, row["macs"] / base["macs"], time, row["latency_ms"] / base["latency_ms"]))
    frame = pd.DataFrame(lighter, columns=["model", "reference", "work", "batch", "one"])
    if frame.empty:
        return f"{text} No model here needs fewer than the one beside it."
    light = frame.loc[frame["work"].idxmin()]
    example = (
        f"*{light['model']}*, with {light['work']:.0%} of the work of *{light['reference']}*, takes "
        f"{light['batch']:.0%} of its time in batches and {light['one']:.0%} for one image"
    )
    less = "less than its share of the time" if light["batch"] > 1.1 * light["work"] else "its share of the time"
    if light["batch"] >= 1:
        less = "nothing by itself"
    counts = (
        f"{count or 'none'} {'is' if count < 2 else 'are'}"
        for count in ((frame[c] < 1).sum() for c in ("batch", "one"))
    )
    batches, single = counts
    return (
        f"{text} {less[0].upper() + less[1:]}: {example}. Of {len(frame)} models lighter than the one beside them "
        f"{batches} faster in batches and {single} at one image alone."
    )


def _s(verb: str, subjects: pd.DataFrame | list[str]) -> str:
    return verb + "s" * (len(subjects) == 1)


def shortlist(results: pd.DataFrame) -> pd.DataFrame:
    """The rows of page one's table: the best of each family, the ViT, and the next best until MOST_ROWS are full."""
    family = pd.Series([_family(name) for name in results["model"]], results.index)
    ranked = results.sort_values("accuracy", ascending=False, kind="stable")
    leaders = ranked.groupby(family.loc[ranked.index], sort=False).head(1).index
    wanted = [*results.index[results["model"] == "ViT"], *leaders, *ranked.index]
    chosen = list(dict.fromkeys(wanted))[:MOST_ROWS]
    return ranked.loc[[i for i in ranked.index if i in chosen]]


def _family(name: str) -> int:
    own = name.lower().partition(", as ")[0]
    return next((i for i, (word, *_) in enumerate(FAMILIES) if word in own), len(FAMILIES))


def shortlist_table(results: pd.DataFrame) -> pd.DataFrame:
    """`shortlist` for reading."""

    def known(name: str, digits: str, unit: float = 1) -> list[str]:
        return ["–" if not np.isfinite(v) else f"{v * unit:{digits}}" for v in rows[name]]

    rows = shortlist(results)
    intervals = zip(rows["accuracy"], rows["accuracy_low"], rows["accuracy_high"], strict=True)
    columns = {
        "accuracy, % (95% interval)": [f"{100 * v:.1f} ({100 * a:.1f} – {100 * b:.1f})" for v, a, b in intervals],
        "million parameters": known("parameters", ".2f", 1e-6),
        "million multiply-adds": known("macs", ",.1f", 1e-6),
        "images/s": known("images_per_second", ",.0f"),
        "one image, ms": known("latency_ms", ".2f"),
        "training, min": known("training_seconds", ".1f", 1 / 60),
    }
    return pd.DataFrame(columns, index=list(rows["model"]))
