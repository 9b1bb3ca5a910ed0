"""What chapter 5's numbers say: what models cost by formula and by the clock, and where linear attention pays."""

import math
from typing import Any

import pandas as pd

from vitlab.analysis import timing
from vitlab.analysis.complexity import COURSE, MEMORY_BATCH
from vitlab.analysis.sentences import expected, named
from vitlab.analysis.sentences_linear import LINEAR, Ratios
from vitlab.config import RunConfig
from vitlab.texts import signed

ALMOST_NONE = 0.02  # of the parameters, that linear attention may add and still add almost none
OPEN = "is not shown to follow"
FOLLOWS = 0.05  # by which the share of the time may differ from that of the work and still follow it
OWN_MODELS = (
    "The models that chapters 2 to 4 train, measured as those of Table 5.4, but at the size of their own images; "
    "chapter 6 weighs them against their accuracy."
)
EXPONENTS = (
    "Fitted exponents from 512 tokens on (MACs with the projections, which grow linearly: softmax stays below 2), and "
    "the number of tokens from which each linear attention is faster than softmax by the clock (interpolated): "
    "medians over rounds that take turns, with quartiles. A row says width/heads, and of Linformer k."
)
QUOTED = (
    "The course's four models as it configures them (MLP ratio 4, patch 4, 32×32×3, 10 classes): what it quotes "
    "against what they have."
)


def machine(about: dict[str, Any]) -> str:
    """about: `machine.pace`."""
    return (
        f"Machine: {about['device']}, torch {about['versions']['torch']}, float32; on a CPU one thread computes, so "
        "that no ratio depends on who else wants the cores. All that a table compares takes turns, round after round, "
        "so that whatever slows the machine slows all alike; the pace that a round had in common is taken out of its "
        "times."
    )


def sizes(ratio: float, k: int, sharing: str) -> str:
    return (
        "Size and work of every preset and variant at 32×32×3, patch 4, class token (conv: convolutional tokenizer; "
        f"DynamicViT ρ = {ratio:g}; Linformer k = {k}, {sharing.replace('_', '-')}). MACs from the formula, an image "
        "in inference."
    )


def counters(worst: float, hidden: float, extra: float) -> str:
    """worst: of torch's count against the formula; hidden, extra: what ptflops misses and adds, of ViT-Base."""
    return (
        "The formula by component, in million MACs, beside two counters. torch's count differs by at most "
        f"{worst:.2%}. ptflops misses the products inside attention, {hidden:.1%} of ViT-Base, and adds biases, norms "
        f"and activations, {extra:.1%}."
    )


def left_alone(tokens: int, seen: int, whole: int, more: dict[str, int]) -> str:
    """seen, whole: MACs that torch counts of the fused kernel and of explicit products; more: parameters by sharing."""
    return (
        "torch's counter sees everything only because it was shown the explicit products. Left alone, a ViT takes "
        f"the fused kernel, and on a CPU the counter then reports, of ViT-Nano at {tokens:,} tokens, {seen / 1e6:,.0f} "
        f"of {whole / 1e6:,.0f} million MACs. Positions and feature maps change no MAC, and sharing changes only "
        f"Linformer's parameters: {more['headwise']:,} more than ViT-Base headwise, {more['key_value']:,} with E = F, "
        f"{more['layerwise']:,} with one E for all layers."
    )


def tokenizers(macs: dict[str, float], rest: float) -> str:
    """Million multiply-adds of each tokenizer of ViT-Tiny, and of what follows it."""
    told = ", ".join(f"{value:.2f} ({kind})" for kind, value in macs.items())
    return f"The tokenizers of ViT-Tiny need {told} million multiply-adds; its blocks and head {rest:.2f}."


def quoted(base: pd.Series, shares: list[float], work: list[float]) -> str:
    """base: cost of ViT-Base as the course configures it; shares: quoted parameters over the real ones; work: quoted
    FLOPs over the real MACs.
    """
    *_, parameters, flops = COURSE["ViT-Base"]
    right = abs(flops / base["macs"] - 1) < 0.1
    return (
        f"**ViT-Base as the course configures it** has **{base['parameters'] / 1e6:.2f} M parameters** and needs "
        f"**{base['macs'] / 1e9:.2f} G MACs, that is {2 * base['macs'] / 1e9:.2f} GFLOPs**. The {flops / 1e9:.1f} "
        f"GFLOPs that are quoted are {'right' if right else 'wrong even'} as a number of MACs; the "
        f"{parameters / 1e6:.1f} M parameters that are quoted do not belong to this configuration. Over the four "
        f"models the quoted parameters are {min(shares):.0%} to {max(shares):.0%} of the real ones, the quoted FLOPs "
        f"{min(work):.0%} to {max(work):.0%} of the real MACs."
    )


def no_parameters_saved(linear: int, softmax: int) -> str:
    """Parameters of the course's linear model, and of its softmax model of the same shape."""
    said = {name: COURSE[name][2] / 1e6 for name in ("ViT-Small", "Linear ViT")}
    return (
        "**Linear attention cannot save parameters.** It exchanges the order of two products, not a weight: the "
        f"course's linear model has {linear:,} parameters, its softmax model of the same shape {softmax:,}. The "
        f"{said['Linear ViT']:.1f} M quoted for the one beside {said['ViT-Small']:.1f} M for the other would have to "
        "come from another shape."
    )


def components(attention: float, tokens: int) -> str:
    """attention: share of ViT-Base's work."""
    return (
        f"Where the work of ViT-Base and its variants is done. At {tokens} tokens attention is {attention:.1%} of it: "
        "replacing attention can save no more, while dropping tokens shrinks projections, attention and MLPs alike."
    )


def times(batch: int, rounds: int, tokens: int) -> str:
    return (
        f"Time and memory. Latency at batch 1 and throughput in batches of {batch}, medians over {rounds} rounds or "
        "more; ratios taken within each round, in brackets how far off they may be (95%); peak memory of a "
        f"batch of {MEMORY_BATCH}, weights not counted. All have a class token, {tokens} tokens in all: one more or "
        "less can move a small model's ratio by more than the brackets say."
    )


def work_and_time(ratio: float, saved: dict[str, float], gain: Ratios, wait: Ratios) -> str:
    """What of DynamicViT's saved work is time: size -> share of MACs saved, ratio of throughput, and of latency."""
    would = " and ".join(f"{1 / (1 - share):.2f}" for share in saved.values())
    are, alone = (" and ".join(timing.told(*value) for value in ratios.values()) for ratios in (gain, wait))
    told = " and ".join(f"{share:.0%} of the MACs of {size}" for size, share in saved.items())
    return (
        f"At keep ratio {ratio:g}, DynamicViT saves {told}; if time followed work, it would be {would} times as fast. "
        f"Its throughput is {are} times the ViT's; a single image takes {alone} times as long."
    )


def growth(config: RunConfig) -> str:
    return (
        f"One attention layer of ViT-Tiny (width {config.dim}, {config.heads} heads, Linformer k = "
        f"{config.linformer_k}): multiply-adds, time and memory over the number of tokens, on logarithmic axes. "
        "Dotted: from here on the kind of this colour is faster than softmax. Of lines that coincide the last one is "
        "seen."
    )


def at_tokens(count: int, size: str, rounds: pd.DataFrame) -> str:
    """How fast each kind of attention is against softmax, the median within rounds; rounds: `complexity.growth`."""
    seconds = {
        kind: part["seconds"] for kind, part in rounds[rounds["tokens"] == count].groupby("attention", sort=False)
    }
    softmax = seconds.pop("softmax")
    told = ", ".join(
        f"{kind} {timing.told(*timing.ratio(softmax, each))} times as fast" for kind, each in seconds.items()
    )
    return f"At {count:,} tokens of {size}, against softmax attention: {told}."


def memory(tokens: int, size: str, mib: pd.Series) -> str:
    told = ", ".join(f"{kind} {value:,.0f} MiB" for kind, value in mib.items())
    return f"Peak memory at {tokens:,} tokens of {size}: {told}."


def crossing(at: float, fewest: int) -> str:
    """A number of tokens from which something is faster, as a table has it."""
    return "beyond" if math.isinf(at) else f"{at:,.0f}" if at > fewest else f"≤ {fewest}"


def keep_ratios(frame: pd.DataFrame, tokens: int) -> str:
    """Caption of the cost over the keep ratio, and whether the clock follows; frame: `complexity.by_keep_ratio`."""
    whole, least = frame.loc[frame["keep_ratio"].idxmax()], frame.loc[frame["keep_ratio"].idxmin()]
    macs = least["macs"] / whole["macs"]
    time, off = timing.ratio(whole["images_per_second_rounds"], least["images_per_second_rounds"])
    return (
        f"Cost of DynamicViT-Tiny (32×32, {tokens} tokens) relative to keeping all tokens, predictors included where "
        "tokens go (at ρ = 1 none runs), within each round: medians, and bars from quartile to quartile. At "
        f"ρ = {least['keep_ratio']:g} it has {macs:.0%} of the multiply-adds and needs {time:.0%} of the time in "
        f"batches: the clock {_follows(macs, time, off)}."
    )


def _follows(work: float, time: float, off: float) -> str:
    """Whether a share of the time, which may be `off` by so much of it, follows that of the work, to `FOLLOWS`."""
    apart, open_ = abs(time - work), time * off
    return "follows" if apart + open_ <= FOLLOWS else "does not follow" if apart - open_ > FOLLOWS else OPEN


# ---------------------------------------------------------------- the conclusion


def answer(plain: pd.Series, dynamic: pd.Series, kernel: pd.Series, ratio: float) -> str:
    """The chapter's first question in one sentence: what the models cost; each a row of costs of ViT-Tiny."""

    def shares(row: pd.Series) -> str:
        time = timing.told(*_time(row, plain))
        return f"{row['macs'] / plain['macs']:.0%} of the multiply-adds and {time} times the time in batches"

    return (
        f"**For 32×32 images, against ViT-Tiny, DynamicViT at keep ratio {ratio:g} needs {shares(dynamic)}; linear "
        f"attention, kernelised, {shares(kernel)}.**"
    )


def formulas_agree(worst: float, plain: pd.Series, others: dict[str, pd.Series]) -> str:
    """Whether formulas agree with what is counted, and the clock with the formulas; worst: the largest difference.

    plain, others: rows of costs of ViT-Tiny and its variants.
    """
    agree = "agree" if worst < 0.01 else "do not agree"
    found: dict[str, list[str]] = {}
    for name, row in others.items():
        work, (time, off) = row["macs"] / plain["macs"], _time(row, plain)
        how = f"*{name}* ({work:.0%} of the work, {time:.0%} of the time)"
        found.setdefault(_follows(work, time, off), []).append(how)
    clock = ", and ".join(f"{verb} the work for {'; '.join(names)}" for verb, names in found.items())
    return (
        f"Formulas and torch's count of the explicit products {agree} (to {worst:.2%} at worst). In batches, at the "
        f"size of ViT-Tiny, the clock {clock}, to {100 * FOLLOWS:.0f} points."
    )


def _time(row: pd.Series, plain: pd.Series) -> tuple[float, float]:
    """The share of the ViT's time in batches, within rounds, and how far off it may be."""
    return timing.ratio(plain["images_per_second_rounds"], row["images_per_second_rounds"])


def where_it_pays(crossed: dict[str, float], fewest: int, width: int, mib: pd.Series, longest: int) -> str:
    """Where linear attention pays: kind -> tokens from which it is faster than softmax; mib: peak memory by kind."""
    told = []
    for kind, at in crossed.items():
        where = "at no size measured" if math.isinf(at) else f"from {at:,.0f} tokens on"
        told.append(f"{kind} {'at every size measured' if at == fewest else where}")
    saves = "none of them saves any" if mib["softmax"] < mib.drop("softmax").min() else "at least one of them saves"
    return (
        f"By the clock, for a layer of width {width}, linear attention is faster than softmax: {', '.join(told)}; in "
        f"peak memory, with softmax fused, {saves} at {longest:,} tokens."
    )


def parameters(plain: pd.Series, rows: dict[str, pd.Series]) -> str:
    """Whether linear attention changes almost no parameters, as was expected; rows: name -> cost at the same size."""
    more = {name: row["parameters"] / plain["parameters"] - 1 for name, row in rows.items()}
    many = [name for name in LINEAR if more[name] >= ALMOST_NONE]
    told = ", ".join(f"{name} {signed(share, '+z.1%')}" for name, share in more.items())
    adds = f"{named(many)} add{'s' * (len(many) == 1)} many" if many else "linear attention adds almost no"
    return f"{expected(not many)}, {adds} parameters at the size of ViT-Tiny. Against its own: {told}."
