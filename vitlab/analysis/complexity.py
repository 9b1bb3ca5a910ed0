"""What a model costs: parameters, multiply-adds from the formula and by counting, time, memory, file size.

MACs are multiply-accumulates of matrix products and convolutions; FLOPs = 2 × MACs. Norms, softmax, activations and
additions are left out everywhere, as is usual: they are one or two per cent of the operations at these sizes.
"""

import contextlib
import io
import math
import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vitlab.analysis.timing import ROUNDS, in_turns, level
from vitlab.config import RunConfig
from vitlab.errors import LabError
from vitlab.machine import device
from vitlab.models.registry import MODELS, build_model

EQUAL_COST = 0.03  # share by which the MACs of a smaller ViT may miss those of the model that it stands beside
MEMORY_BATCH = 8  # images at which peak memory is measured

# The course's four models at 32×32×3, patch 4, 10 classes: preset, model, and the parameters and FLOPs it quotes
COURSE = {
    "ViT-Base": ("base", "vit", 8.5e6, 1.2e9),
    "ViT-Small": ("small", "vit", 6.0e6, 0.8e9),
    "DynamicViT": ("small", "dynamic_vit", 5.2e6, 0.6e9),
    "Linear ViT": ("small", "linear_vit", 4.8e6, 0.5e9),
}


def course(name: str) -> RunConfig:
    """One of `COURSE`'s models."""
    preset, model, *_ = COURSE[name]
    return RunConfig(model=model, image_size=32, patch_size=4, preset=preset)


def macs(config: RunConfig, channels: int, num_classes: int) -> dict[str, int]:
    """MACs of one image in inference, by component: by the model's formula, or counted where it has none."""
    build = MODELS[config.model].build
    if hasattr(build, "macs"):
        return build.macs(config, channels, num_classes)
    images = torch.randn(2, channels, config.image_size, config.image_size)
    return {"counted": counted_macs(build_model(config, num_classes, channels), images, explicit=False)}


def smaller_vit(vit: RunConfig, target: int, how: str, channels: int, num_classes: int) -> dict[str, float]:
    """Shape of a ViT with less of `how`, "depth" or "dim", that needs `target` MACs, to within `EQUAL_COST` of them.

    Blocks and width come in whole steps; the MLP ratio, in steps of 0.05, makes up for the rest. Of the shapes that
    fit it is the one whose ratio is nearest to the ViT's own. LabError where none fits.
    """

    def cost(shape: dict[str, float]) -> int:
        return sum(macs(vit.replace(**shape), channels, num_classes).values())

    # whole heads, whose width the fixed positions divide by 4
    step = 1 if how == "depth" else math.lcm(vit.heads, 4 if vit.positions == "sincos" else 1)
    fitting = []
    for size in range(getattr(vit, how) - step, 0, -step):
        none, much = (cost({how: size, "mlp_ratio": ratio}) for ratio in (1.0, 11.0))  # linear in between
        ratio = round((1 + 10 * (target - none) / (much - none)) * 20) / 20
        shape = {how: size, "mlp_ratio": ratio}
        if ratio * shape.get("dim", vit.dim) >= 1 and abs(cost(shape) / target - 1) <= EQUAL_COST:
            fitting.append(shape)
    if not fitting:
        raise LabError(
            f"no ViT of smaller {how} than {getattr(vit, how)} needs {target / 1e6:.2f} million MACs: take the model "
            "out of equal_cost"
        )
    return min(fitting, key=lambda shape: abs(math.log(shape["mlp_ratio"] / vit.mlp_ratio)))


@torch.inference_mode()
def counted_macs(model: nn.Module, images: Tensor, explicit: bool = True) -> int:
    """MACs of one image, counted by torch while the modules run on a batch.

    `explicit` makes softmax attention take the explicit product at any size, by asking for its weights: torch's
    counter sees nothing of the fused kernel on a CPU.
    """
    inputs = (images, {}) if explicit else (images,)  # a module need not take a trace
    with FlopCounterMode(display=False) as counter:
        model.eval()(*inputs)
    return round(counter.get_total_flops() / 2 / len(images))


def ptflops_macs(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """MACs of one image as ptflops reports them: its hooks see the modules, not the attention's own products.

    It adds one for every number that a norm, an activation or a bias makes, and counts a module that several blocks
    share once for each time and place.
    """
    with warnings.catch_warnings(action="ignore"):  # it asks for notebook widgets that nobody needs
        from ptflops import get_model_complexity_info

    with contextlib.redirect_stdout(None):  # it prints a line for each shared module
        macs, _ = get_model_complexity_info(
            model.eval(), shape, as_strings=False, print_per_layer_stat=False, backend="pytorch", verbose=False
        )
    return int(macs)


def peak_memory(work: Callable[[], object], on: torch.device) -> int:
    """Bytes that `work` allocates on its device at its peak, beyond what was allocated before."""
    if on.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when the profiler is first used: it prints two lines a use
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(max(np.cumsum(changes), default=0))


def file_bytes(model: nn.Module) -> int:
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell()


def full_batch(on: torch.device) -> int:
    """Images that throughput is measured with. The same for all models: each one's best differs from time to time."""
    return 16 if on.type == "cpu" else 512


@torch.inference_mode()
def measure(configs: Sequence[RunConfig], channels: int = 3, num_classes: int = 10, rounds: int = ROUNDS) -> list[dict]:
    """Cost of configured models in float32 inference, a row of a table each. Weights do not matter for it.

    Their times are taken in turns; `latency_rounds_ms` and `images_per_second_rounds` keep each round's. macs_hidden:
    of the formula's MACs those that ptflops can't see, attention's own products and those that choose tokens.
    """
    single, batched, rows = {}, {}, []
    for i, config in enumerate(configs):
        model, on = build_model(config, num_classes, channels).eval(), device(config.device)
        shape = (channels, config.image_size, config.image_size)
        parts = macs(config, channels, num_classes)
        counted = counted_macs(model, torch.randn(2, *shape), explicit="counted" not in parts)
        hooked = ptflops_macs(model, shape)
        model, image = model.to(on), torch.randn(shape, device=on)
        batch = full_batch(on)
        few, many = (image.expand(n, *shape).contiguous() for n in (MEMORY_BATCH, batch))
        single[i], batched[i] = partial(model, image[None]), partial(model, many)
        rows.append(
            {
                "parameters": sum(p.numel() for p in model.parameters()),
                "macs": sum(parts.values()),
                "macs_counted": counted,
                "macs_ptflops": hooked,
                "macs_hidden": parts.get("attention", 0) + parts.get("choice", 0),
                "batch": batch,
                "peak_mib": peak_memory(partial(model, few), on) / 2**20,
                "file_mib": file_bytes(model) / 2**20,
            }
        )
    latency, throughput = in_turns(single, rounds=rounds), in_turns(batched, rounds=rounds)
    return [row | times for row, times in zip(rows, _times(latency, throughput, batch), strict=True)]


def _times(single: pd.DataFrame, batched: pd.DataFrame, batch: int) -> list[dict[str, Any]]:
    """From seconds by round, a column a model: medians of `level` rounds, and each round's as it was."""

    def rounded(values: pd.Series) -> list[float]:
        return [float(f"{value:.4g}") for value in values]

    one, many = level(single).median(), level(batched).median()
    return [
        {
            "latency_ms": 1e3 * one[key],
            "latency_rounds_ms": rounded(1e3 * single[key]),
            "images_per_second": batch / many[key],
            "images_per_second_rounds": rounded(batch / batched[key]),
        }
        for key in single
    ]


def rises(times: pd.DataFrame) -> bool:
    """Whether no kind's time falls as its tokens rise, by more than a twentieth; a column for each (kind, tokens)."""
    medians = times.median()
    medians.index = pd.MultiIndex.from_tuples(medians.index)
    by_tokens = medians.unstack(0).sort_index()
    return not (by_tokens.diff() < -0.05 * by_tokens.shift()).any(axis=None)


@torch.inference_mode()
def growth(config: RunConfig, token_counts: list[int], rounds: int = ROUNDS) -> pd.DataFrame:
    """One attention layer of `config` at batch 1, a row for each kind of the registry, number of tokens and round.

    All take turns. Columns attention, tokens, round, macs, seconds, bytes (at the peak). The numbers of tokens are
    squares, those of a square image's patches. More tokens must take more time: rounds are added until they do.
    """
    works, about, on = {}, {}, device(config.device)
    for tokens in token_counts:
        inputs = torch.randn(1, tokens, config.dim, device=on)
        for row in MODELS.values():
            if row.attention:
                options = {name: getattr(config, name) for name in row.options}
                layer = row.build.attention(config.dim, config.heads, tokens, **options).eval().to(on)
                work = works[row.attention, tokens] = partial(layer, inputs)
                products = sum(row.build.attention.macs(tokens, config).values())
                about[row.attention, tokens] = {
                    "macs": 4 * tokens * config.dim**2 + products,
                    "bytes": peak_memory(work, on),
                }

    times = level(in_turns(works, rises, rounds))
    rows = [
        {"attention": kind, "tokens": tokens, "round": turn, "seconds": seconds_of, **extra}
        for (kind, tokens), extra in about.items()
        for turn, seconds_of in enumerate(times[(kind, tokens)])
    ]
    return pd.DataFrame(rows)


def exponent(tokens: pd.Series, values: pd.Series) -> float:
    """Slope of log values over log tokens: 1 grows linearly, 2 quadratically."""
    return float(np.polyfit(np.log(tokens), np.log(values), 1)[0])


def crossover(frame: pd.DataFrame, kind: str) -> float:
    """Tokens from which `kind` stays faster than softmax, interpolated on logarithmic axes; inf if it never is.

    frame: of one round, or of the medians over rounds.
    """
    times = frame.pivot(index="tokens", columns="attention", values="seconds")
    gap = np.log(times[kind] / times["softmax"])
    slower = np.flatnonzero(gap > 0)
    if len(slower) == 0:
        return float(times.index[0])
    last = slower[-1]
    if last == len(gap) - 1:
        return math.inf
    at = gap.iloc[last] / (gap.iloc[last] - gap.iloc[last + 1])
    logs = np.log(times.index[last : last + 2].to_numpy())
    return float(np.exp(logs[0] + at * (logs[1] - logs[0])))


def medians(frame: pd.DataFrame) -> pd.DataFrame:
    """`growth` with the rounds' medians: a row for each kind and number of tokens, in their order."""
    return frame.groupby(["attention", "tokens"], sort=False).median().drop(columns="round").reset_index()


def over_rounds(frame: pd.DataFrame, value: Callable[[pd.DataFrame], float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile of what `value` says of each round of `growth`."""
    middle, low, high = (
        float(np.quantile([value(part) for _, part in frame.groupby("round")], q, method="inverted_cdf"))
        for q in (0.5, 0.25, 0.75)  # values that occurred: between a number and infinity there is none
    )
    return middle, low, high


def by_keep_ratio(
    config: RunConfig, ratios: tuple[float, ...], channels: int, num_classes: int, rounds: int = ROUNDS
) -> pd.DataFrame:
    """A DynamicViT at several keep ratios, in turns: a row each with MACs, and times as `measure` has them."""
    on = device(config.device)
    batch = full_batch(on)
    model = build_model(config.replace(keep_ratio=ratios[0]), num_classes, channels).eval().to(on)
    image = torch.randn(channels, config.image_size, config.image_size, device=on)
    images = image.expand(batch, *image.shape).contiguous()

    def run(ratio: float, inputs: Tensor) -> None:
        model.keep_ratio = ratio
        model(inputs)

    single, batched = (
        in_turns({ratio: partial(run, ratio, inputs) for ratio in ratios}, rounds=rounds)
        for inputs in (images[:1], images)
    )
    rows = []
    for ratio, times in zip(ratios, _times(single, batched, batch), strict=True):
        work = sum(macs(config.replace(keep_ratio=ratio), channels, num_classes).values())
        rows.append({"keep_ratio": ratio, "macs": work} | times)
    return pd.DataFrame(rows)
