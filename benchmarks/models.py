"""What the models cost, measured in one run on this machine: python benchmarks/models.py > table.md

A ViT and its DynamicViT (ρ = 0.7) of width 192, 6 blocks, 3 heads, MLP ratio 4, 64 tokens (32×32 images, patches of
4, mean pooling) at batch 128; one attention layer of that width from 64 to 4,096 tokens; the two kernels of softmax
attention in float32 and bf16; the course's four models. Takes a minute or two on 2 CPU cores.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from vitlab import machine
from vitlab.analysis import complexity, timing
from vitlab.config import RunConfig
from vitlab.models.registry import build_model
from vitlab.models.vit import Attention, split_heads

SHAPE = {"dim": 192, "depth": 6, "heads": 3, "mlp_ratio": 4.0, "image_size": 32, "patch_size": 4, "pool": "mean"}
BATCH, ROUNDS = 128, 20
TOKENS = [side**2 for side in (8, 12, 16, 24, 32, 48, 64)]  # of square images
LINFORMER_K = 64
BATCH_TOKENS = 8192  # of all images of a batch, in which the two kernels are compared


def alternating(works: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Quartiles of each one's seconds; they take turns, so that whatever else the machine does slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for i in range(ROUNDS + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            machine.synchronize()
            times[name] += [time.perf_counter() - start] if i else []  # the first round warms up
    return {name: statistics.quantiles(values, n=4) for name, values in times.items()}


def table(rows: list[dict]) -> None:
    frame = pd.DataFrame(rows).astype(str)
    lines = [frame.columns, ["---"] * frame.shape[1], *frame.itertuples(index=False)]
    print("\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n")


def macs(config: RunConfig) -> int:
    return sum(complexity.macs(config, 3, 10).values())


def pruning() -> None:
    """MACs and throughput of the ViT and of DynamicViT at batch 128."""
    plain = RunConfig(**SHAPE)
    configs = {"ViT": plain, "DynamicViT, ρ = 0.7": plain.replace(model="dynamic_vit", keep_ratio=0.7)}
    device = machine.device()
    images = torch.randn(BATCH, 3, 32, 32, device=device)
    models = {name: build_model(config, 10, 3).eval().to(device) for name, config in configs.items()}
    times = alternating({name: lambda model=model: model(images) for name, model in models.items()})
    rows = []
    for name, config in configs.items():
        median, low, high = (f"{BATCH / times[name][i]:,.0f}" for i in (1, 2, 0))
        work = f"{macs(config) / 1e6:,.1f} M"
        rows.append({"model": name, "MACs an image": work, "images/s (quartiles)": f"{median} ({low} – {high})"})
    table(rows)
    saved = 1 - macs(configs["DynamicViT, ρ = 0.7"]) / macs(plain)
    faster = times["ViT"][1] / times["DynamicViT, ρ = 0.7"][1]
    print(f"DynamicViT: {saved:.1%} fewer MACs (wanted: 30%), {faster:.2f} times the throughput (wanted: 1.35).\n")


def growth() -> None:
    """One attention layer by number of tokens: time as the model uses it, fitted, and where the curves meet."""
    frame = complexity.medians(complexity.growth(RunConfig(**SHAPE, linformer_k=LINFORMER_K), TOKENS))
    times = frame.pivot(index="tokens", columns="attention", values="seconds")
    rows = []
    for kind, part in frame.groupby("attention", sort=False):
        long = part[part["tokens"] >= 512]  # below, fixed costs hide the growth
        meets = "–" if kind == "softmax" else f"{complexity.crossover(frame, kind):,.0f} tokens"
        rows.append(
            {"attention": kind}
            | {f"ms at {n:,}": f"{times[kind][n] * 1e3:.2f}" for n in TOKENS}
            | {"exponent of time": f"{complexity.exponent(long['tokens'], long['seconds']):.2f}"}
            | {"exponent of MACs": f"{complexity.exponent(long['tokens'], long['macs']):.2f}"}
            | {f"speed-up at {TOKENS[-1]:,}": f"{times['softmax'][TOKENS[-1]] / times[kind][TOKENS[-1]]:.1f}"}
            | {"faster than softmax from": meets}
        )
    table(rows)
    print(f"One layer, batch 1, Linformer k = {LINFORMER_K}; exponents from {long['tokens'].min()} tokens on. Wanted: ")
    print(f"a linear attention at least 5 times as fast as softmax at {TOKENS[-1]:,} tokens.\n")


class Fused(Attention):
    """Softmax attention that takes the fused kernel whatever the number of tokens."""

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = split_heads(self.qkv(tokens), 3, self.heads)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Explicit(Attention):
    """The same by the explicit product."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens, None, {})  # the trace asks for the weights


def kernels() -> None:
    """Softmax attention by both its kernels, inference and training: does the model take the faster one?"""
    rows = []
    device = machine.device()
    for dtype, tokens in itertools.product((torch.float32, torch.bfloat16), (25, 44, 64, 65, 256, 1024)):
        inputs = torch.randn(max(1, BATCH_TOKENS // tokens), tokens, SHAPE["dim"], device=device)

        def run(layer: Attention, inputs=inputs, dtype=dtype) -> Tensor:
            with machine.autocast(device, dtype):
                return layer(inputs)

        row = {"dtype": str(dtype)[6:], "tokens": tokens}
        for phase, context in {"inference": torch.inference_mode, "training": torch.enable_grad}.items():
            with context():
                q = torch.empty(1, 1, tokens, 1, dtype=dtype, device=device)
                row[f"{phase} takes"] = "fused" if machine.fused_attention_pays(q) else "explicit"
        for kernel, kind in {"explicit": Explicit, "fused": Fused}.items():
            layer = kind(SHAPE["dim"], SHAPE["heads"], tokens).to(device)
            with torch.inference_mode():
                one = timing.seconds(partial(run, layer))[0]
            both = timing.seconds(lambda run=run, layer=layer: run(layer).float().sum().backward())[0]
            row |= {f"{kernel}, inference (ms)": f"{one * 1e3:.1f}", f"{kernel}, training (ms)": f"{both * 1e3:.1f}"}
        rows.append(row)
    table(rows)


def course() -> None:
    """The models as the course configures them beside the figures that it quotes."""
    rows = []
    for name, (preset, model, parameters, flops) in complexity.COURSE.items():
        config = RunConfig(preset=preset, model=model, image_size=32, patch_size=4)
        real = sum(p.numel() for p in build_model(config, 10, 3).parameters())
        rows.append(
            {
                "model": f"{name} {config.dim}/{config.depth}/{config.heads}",
                "parameters": f"{real / 1e6:.2f} M",
                "quoted": f"{parameters / 1e6:.1f} M",
                "MACs": f"{macs(config) / 1e9:.2f} G",
                "FLOPs": f"{2 * macs(config) / 1e9:.2f} G",
                "FLOPs quoted": f"{flops / 1e9:.1f} G",
            }
        )
    table(rows)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    here = machine.environment()
    print(f"{here['device']}, {here['threads']} threads, torch {here['versions']['torch']}, float32\n")
    with torch.inference_mode():
        pruning()
    growth()
    kernels()
    course()
