"""What a model costs: parameters, multiply-adds from the formula and by counting, time, memory, file size.

MACs are multiply-accumulates of matrix products and convolutions; FLOPs = 2 × MACs. Norms, softmax, activations and
additions are left out everywhere, as is usual: they are one or two per cent of the operations at these sizes.
"""

import contextlib
import io
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vitlab.config import RunConfig
from vitlab.machine import device, keep_freed_memory, synchronize
from vitlab.models.registry import MODELS, build_model

MEMORY_BATCH = 8  # images at which peak memory is measured

# The course's four models at 32×32×3, patch 4, 10 classes: preset, model, and the parameters and FLOPs it quotes
COURSE = {
    "ViT-Base": ("base", "vit", 8.5e6, 1.2e9),
    "ViT-Small": ("small", "vit", 6.0e6, 0.8e9),
    "DynamicViT": ("small", "dynamic_vit", 5.2e6, 0.6e9),
    "Linear ViT": ("small", "linear_vit", 4.8e6, 0.5e9),
}


def macs(config: RunConfig, channels: int, num_classes: int) -> dict[str, int]:
    """MACs of one image in inference, by component: by the model's formula, or counted where it has none."""
    build = MODELS[config.model].build
    if hasattr(build, "macs"):
        return build.macs(config, channels, num_classes)
    images = torch.randn(2, channels, config.image_size, config.image_size)
    return {"counted": counted_macs(build_model(config, num_classes, channels), images, explicit=False)}


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


def seconds(work: Callable[[], object], at_least: float = 0.2, repeats: int = 5) -> tuple[float, float, float]:
    """Median, lower and upper quartile of `work`'s wall time in seconds, after one call to warm up."""
    keep_freed_memory()  # as in training: all timings of a process are to be alike
    work()
    synchronize()
    times: list[float] = []
    while len(times) < repeats or sum(times) < at_least:
        start = time.perf_counter()
        work()
        synchronize()
        times.append(time.perf_counter() - start)
    low, middle, high = statistics.quantiles(times, n=4)
    return middle, low, high


def in_turns(works: dict[str, Callable[[], object]], rounds: int = 20) -> dict[str, list[float]]:
    """Quartiles of each one's wall time in seconds: name -> [lower, median, upper], over `rounds` that take turns.

    Whatever else the machine does then slows all of them alike.
    """
    keep_freed_memory()
    times: dict[str, list[float]] = {name: [] for name in works}
    for i in range(rounds + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            synchronize()
            times[name] += [time.perf_counter() - start] if i else []  # the first round warms up
    return {name: statistics.quantiles(values, n=4) for name, values in times.items()}


def call_of(model: nn.Module, images: Tensor) -> Callable[[], object]:
    """A call of `model` on `images`: on a GPU all its kernels in one CUDA graph, elsewhere the plain call."""
    if not images.is_cuda:
        return lambda: model(images)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # once before it is recorded: libraries set themselves up
        model(images)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model(images)
    return graph.replay


def peak_memory(work: Callable[[], object]) -> int:
    """Bytes that `work` allocates at its peak beyond what was allocated before."""
    if torch.cuda.is_available():
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


def throughput(model: nn.Module, image: Tensor) -> tuple[int, float, float, float]:
    """The best batch for one image (C, S, S), and its images per second: median, lower and upper quartile.

    Batches of 8, 32, 128, … are tried until a larger one is no faster, or would take more than 0.25 s a call.
    """
    best = (0, 0.0, 0.0, 0.0)
    for batch in (8 * 4**i for i in range(5)):
        images = image.expand(batch, *image.shape).contiguous()
        median, low, high = seconds(lambda images=images: model(images))
        if batch / median <= best[1]:
            break
        best = (batch, batch / median, batch / high, batch / low)
        if 4 * median > 0.25:
            break
    return best


def file_bytes(model: nn.Module) -> int:
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell()


@torch.inference_mode()
def measure(config: RunConfig, channels: int = 3, num_classes: int = 10) -> dict:
    """Cost of a configured model in float32 inference, a row of chapter 05's table. Weights do not matter for it.

    macs_hidden: of the formula's MACs those that ptflops can't see, attention's own products and those that choose
    tokens.
    """
    model, on = build_model(config, num_classes, channels).eval(), device(config.device)
    shape = (channels, config.image_size, config.image_size)
    parts = macs(config, channels, num_classes)
    counted = counted_macs(model, torch.randn(2, *shape), explicit="counted" not in parts)
    hooked = ptflops_macs(model, shape)
    model, image = model.to(on), torch.randn(shape, device=on)
    one, low, high = seconds(lambda: model(image[None]))
    batch, per_second, slow, fast = throughput(model, image)
    images = image.expand(MEMORY_BATCH, *shape).contiguous()
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "macs": sum(parts.values()),
        "macs_counted": counted,
        "macs_ptflops": hooked,
        "macs_hidden": parts.get("attention", 0) + parts.get("choice", 0),
        "latency_ms": one * 1e3,
        "latency_quartiles_ms": [low * 1e3, high * 1e3],
        "images_per_second": per_second,
        "images_per_second_quartiles": [slow, fast],
        "batch": batch,
        "peak_mib": peak_memory(lambda: model(images)) / 2**20,
        "file_mib": file_bytes(model) / 2**20,
    }


@torch.inference_mode()
def growth(config: RunConfig, token_counts: list[int]) -> pd.DataFrame:
    """One attention layer of `config` at batch 1, a row for each kind of the registry and number of tokens.

    Columns attention, tokens, macs, seconds, low, high, bytes (at the peak).
    """
    rows, on = [], device(config.device)
    for tokens in token_counts:
        inputs = torch.randn(1, tokens, config.dim, device=on)
        for row in MODELS.values():
            if not row.attention:
                continue
            options = {name: getattr(config, name) for name in row.options}
            layer = row.build.attention(config.dim, config.heads, tokens, **options).eval().to(on)
            median, low, high = seconds(lambda layer=layer, inputs=inputs: layer(inputs))
            rows.append(
                {
                    "attention": row.attention,
                    "tokens": tokens,
                    "macs": 4 * tokens * config.dim**2 + sum(row.build.attention.macs(tokens, config).values()),
                    "seconds": median,
                    "low": low,
                    "high": high,
                    "bytes": peak_memory(lambda layer=layer, inputs=inputs: layer(inputs)),
                }
            )
    return pd.DataFrame(rows)


def exponent(tokens: pd.Series, values: pd.Series) -> float:
    """Slope of log values over log tokens: 1 grows linearly, 2 quadratically."""
    return float(np.polyfit(np.log(tokens), np.log(values), 1)[0])


def crossover(frame: pd.DataFrame, kind: str) -> float:
    """Tokens from which `kind` stays faster than softmax, interpolated on logarithmic axes; inf if it never is."""
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


@torch.inference_mode()
def by_keep_ratio(config: RunConfig, ratios: tuple[float, ...], channels: int, num_classes: int) -> pd.DataFrame:
    """A DynamicViT at several keep ratios: a row each with MACs, latency at batch 1 and throughput.

    All at the batch that is best for the first ratio.
    """
    on = device(config.device)
    model = build_model(config.replace(keep_ratio=ratios[0]), num_classes, channels).eval().to(on)
    image = torch.randn(channels, config.image_size, config.image_size, device=on)
    batch, *_ = throughput(model, image)
    images = image.expand(batch, *image.shape).contiguous()
    rows = []
    for ratio in ratios:
        model.keep_ratio = ratio
        rows.append(
            {
                "keep_ratio": ratio,
                "macs": sum(macs(config.replace(keep_ratio=ratio), channels, num_classes).values()),
                "latency_ms": seconds(lambda: model(images[:1]))[0] * 1e3,
                "images_per_second": batch / seconds(lambda: model(images))[0],
            }
        )
    return pd.DataFrame(rows)
