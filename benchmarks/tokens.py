"""What fewer tokens cost and save, on validation images: python benchmarks/tokens.py [--profile …] [--seeds 3]

Trains (or finds, and continues) chapter 02's ViT with either tokenizer for each seed, and prints

    as it is     every reduction put into the trained ViTs: points lost, over keep ratios and at half a point
    trained on   every reduction, the unreduced yardstick, and two controls
    ablation     DynamicViT with one departure from its paper at a time, on both tokenizers
    speed        each reduction beside the ViT, in rounds that take turns; nothing else should be running

`--only` names the tables that are wanted, `--tokenizers` the ViTs, of one of which there may be more seeds. Runs are
kept in runs/ as a notebook's are, so the command can be interrupted and repeated. The test set stays closed, but for
the one look of each run, which nothing here prints.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from vitlab.analysis import timing, tokens
from vitlab.analysis.metrics import mean_and_spread
from vitlab.config import LabConfig, RunConfig
from vitlab.data.batches import to_float
from vitlab.errors import LabError, told
from vitlab.lab import Lab
from vitlab.machine import device_of, environment
from vitlab.models.reduce import stages_of
from vitlab.models.registry import MODELS, build_model, reductions
from vitlab.parameters import add_overrides, load_params, profile_path
from vitlab.runs import Run
from vitlab.training.evaluate import predict

TOKENIZERS = ("conv", "patch")
TABLES = ("as it is", "trained on", "ablation", "speed")
TRAINED = ("trained on", "ablation")  # of these tables every row is a training
RATIOS = (0.9, 0.8, 0.7, 0.6, 0.5)
ROUNDS, BATCH = 30, 64


def gradual(config: RunConfig) -> dict[str, Any]:
    """Stages before every block but the first, and the keep ratio that leaves as many tokens in all as `config`'s."""
    every = list(range(1, config.depth))
    mean = {}
    for ratio in np.arange(0.5, 1.0, 0.005).round(3):
        changed = config.replace(stages=every, keep_ratio=float(ratio))
        mean[float(ratio)] = np.mean(MODELS[config.model].build.patches_by_block(changed))
    wanted = np.mean(MODELS[config.model].build.patches_by_block(config))
    return {"stages": every, "keep_ratio": min(mean, key=lambda ratio: abs(mean[ratio] - wanted))}


def ways(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Name -> changes of a run's configuration: all that a trained ViT can be reduced by as it is."""
    found = {title: {"model": name} for title, name in reductions().items()}
    found["DynamicViT, fresh predictors"] = found.pop("DynamicViT")
    for measure in ("values", "norm"):
        found[f"Top-K by {measure}"] = {"model": "topk_vit", "salience": measure}
    found["ToMe in every block"] = {"model": "tome_vit", **gradual(config.replace(model="tome_vit"))}
    found["ToMe, attention not weighted"] = {"model": "tome_vit", "proportional": False}
    return found


def departures(params: LabConfig, depth: int) -> dict[str, dict[str, Any]]:
    """Name -> changes of DynamicViT's configuration: as published, one departure at a time, all, and the profile's."""
    rate, stages = min(1.0, params.fine_tune_lr / params.lr), stages_of(depth)
    later = sorted({min(stage + 1, depth - 1) for stage in stages})
    fewer = f" ({len(later)} instead of {len(stages)})" if len(later) < len(stages) else ""  # in a ViT of few blocks
    alone = {
        "backbone at the yardstick's rate": {"backbone_rate": rate},
        "backbone never frozen": {"frozen": 0.0},
        "averaged weights": {"ema": 0.99},
        f"stages a block later{fewer}": {"stages": later},
        "best tokens, no draw, in the last third": {"settle": 0.33},
        "never a draw": {"settle": 1.0},
    }
    mended = {"backbone_rate": rate, "frozen": 0.0, "settle": 0.33}
    together = {"rates and no draw": mended, "rates, no draw, later stages": mended | {"stages": later}}
    published = {
        name: getattr(RunConfig(), name) for name in ("backbone_rate", "frozen", "settle", "stages", "keep_ratio")
    }
    rows = {"as published": published} | {title: published | changes for title, changes in (alone | together).items()}
    own = any(getattr(params, name) != value for name, value in published.items())
    return rows | ({"as this profile has it": {}} if own else {})


def call_of(model: nn.Module, images: Tensor) -> Callable[[], object]:
    """A call of `model` on `images`: on a GPU all its kernels in one CUDA graph, which the chapters do not time."""
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


def speeds(models: dict[str, nn.Module], images: Tensor) -> pd.DataFrame:
    """Time of float32 models by name, in rounds that take turns: batch 1 and all images (B, C, S, S) at once.

    Columns latency_ms and images_per_second (medians), and latency_ratio and speed_up, relative to the first model: the
    medians over the rounds, and with _spread how far off they may be (`timing.ratio`).
    """
    one, many = (
        timing.in_turns({n: call_of(m, batch.to(device_of(m))) for n, m in models.items()}, rounds=ROUNDS)
        for batch in (images[:1], images)
    )
    first = next(iter(models))
    usual, usual_many = (timing.level(rounds).median() for rounds in (one, many))
    frame = pd.DataFrame({"latency_ms": 1e3 * usual, "images_per_second": len(images) / usual_many})
    for column, values, reference in (("latency_ratio", one, one[first]), ("speed_up", many, many[first])):
        pairs = ((reference, values[n]) if column == "speed_up" else (values[n], reference) for n in models)
        frame[[column, column + "_spread"]] = [timing.ratio(*pair) for pair in pairs]
    return frame


class Bench:
    """The labs of several seeds on the same data; accuracies are of their validation images."""

    def __init__(self, params: LabConfig, seeds: int, tokenizers: Sequence[str] = TOKENIZERS) -> None:
        first = Lab.of(params)
        params = first.params
        self.labs = [first, *(Lab(params.replace(seed=params.seed + s), first.source) for s in range(1, seeds))]
        if not len(self.labs[0].data.val):
            raise LabError("these tables are of validation images, and there are none: set val_fraction")
        if missing := [name for name in tokenizers if name not in first.plan.tokenizers]:
            raise LabError(
                f"tokenizer {missing[0]} is none of this profile's: name it in tokenizers, or set --tokenizers"
            )
        self.params, self.tokenizers = params, tokenizers

    def starts(self, tokenizer: str) -> list[RunConfig]:
        """Of each seed the ViT that the others go on from."""
        return [lab.plan.config(lab.plan.backbone_of(tokenizer)) for lab in self.labs]

    def on_from(self, tokenizer: str, **changes: Any) -> list[RunConfig]:
        """Of each seed that ViT trained on with `changes`."""
        return [lab.plan.on_from(c, **changes) for lab, c in zip(self.labs, self.starts(tokenizer), strict=True)]

    def named(self, tokenizer: str) -> dict[str, dict[str, dict[str, Any]]]:
        """Table -> row -> changes of what is trained on."""
        on = {title: {"model": name} for title, name in reductions().items()}
        on["distilled, not pruned"] = {"model": "distilled_vit"}
        on["pruned, not distilled"] = {"model": "dynamic_vit", "distill_weight": 0.0}
        departed = departures(self.params, self.starts(tokenizer)[0].depth)
        return {"trained on": on, "ablation": {t: {"model": "dynamic_vit"} | c for t, c in departed.items()}}

    def train(self, tables: list[str]) -> None:
        """All that these tables need, at once: side by side, where the machine has the cores."""
        todo: list[RunConfig] = []
        for tokenizer in self.tokenizers:
            for table in {*tables} - {"speed"}:
                todo += self.starts(tokenizer)
                for changes in [{}, *self.named(tokenizer)[table].values()] if table in TRAINED else []:
                    todo += self.on_from(tokenizer, **changes)
        self.trained(todo)

    def trained(self, configs: list[RunConfig]) -> list[Run]:
        return list(self.labs[0].train(dict(enumerate(configs))).values())

    def accuracy(self, lab: Lab, model: torch.nn.Module, config: RunConfig) -> float:
        logits = predict(model, lab.data.val, config)
        return float((logits.argmax(1) == lab.data.val.labels).double().mean())

    def scores(self, runs: list[Run]) -> list[float]:
        return [self.accuracy(lab, run.model(), run.config) for lab, run in zip(self.labs, runs, strict=True)]

    @cached_property
    def yardstick(self) -> dict[str, list[float]]:
        return {tokenizer: self.scores(self.trained(self.on_from(tokenizer))) for tokenizer in self.tokenizers}

    # ------------------------------------------------ tables

    def as_it_is(self) -> None:
        for tokenizer in self.tokenizers:
            runs = self.trained(self.starts(tokenizer))
            whole = self.scores(runs)
            config, costs = self.starts(tokenizer)[0], self.labs[0].costs
            full, rows, curves = tokens.work(config, costs)["block_macs"], [], []
            for title, changes in ways(config).items():
                scores, fewer = [], config.replace(**changes)
                for lab, run in zip(self.labs, runs, strict=True):
                    model = tokens.reduced(run, fewer)
                    scores.append(self.accuracy(lab, model, fewer))
                    if title in tokens.untrained():
                        frame, _ = tokens.at_ratios(model, lab.data.val, fewer, RATIOS, costs)
                        curves.append(frame.assign(method=title))
                work = tokens.work(fewer, costs)["block_macs"]
                rows.append({"method": title, "blocks' MACs": f"{work / full:.1%}", **lost(scores, whole)})
            show(f"As it is: {tokenizer} tokenizer, all tokens {percent(whole)}", rows)
            self.half_a_point(pd.concat(curves), full, float(np.mean(whole)))

    def half_a_point(self, curves: pd.DataFrame, full: float, whole: float) -> None:
        """Points lost by keep ratio, means over seeds, and the blocks' MACs that can go before half a point is lost."""
        rows = []
        means = curves.groupby(["method", "keep_ratio"], sort=False)[["block_macs", "accuracy"]].mean().reset_index()
        for title, curve in means.groupby("method", sort=False):
            saved, reached = tokens.saving_at(curve, pd.Series({"block_macs": full, "accuracy": whole}))
            points = {f"ρ = {row.keep_ratio:g}": f"{100 * (row.accuracy - whole):+z.2f}" for row in curve.itertuples()}
            found = f"{saved:.0%}{'' if reached else ' or more'}"
            rows.append({"method": title, **points, "saving at half a point": found})
        show("Points against all tokens by keep ratio", rows)

    def trained_on(self) -> None:
        for tokenizer in self.tokenizers:
            whole = self.yardstick[tokenizer]
            costs, full, rows, curves = self.labs[0].costs, 0, [], []
            for title, changes in self.named(tokenizer)["trained on"].items():
                runs = self.trained(self.on_from(tokenizer, **changes))
                rows.append({"method": title, **lost(self.scores(runs), whole)})
                full = tokens.work(runs[0].config.replace(model="vit"), costs)["block_macs"]
                for lab, run in zip(self.labs, runs, strict=True) if title in reductions() else ():
                    frame, _ = tokens.at_ratios(run.model(), lab.data.val, run.config, (1.0, *RATIOS), costs)
                    curves.append(frame.assign(method=title))
            epochs = self.params.fine_tune_epochs
            show(
                f"Trained on for {epochs} epochs, {tokenizer} tokenizer; the ViT with all tokens {percent(whole)}", rows
            )
            self.half_a_point(pd.concat(curves), full, float(np.mean(whole)))

    def ablation(self) -> None:
        for tokenizer in self.tokenizers:
            whole, rows = self.yardstick[tokenizer], []
            full = tokens.work(self.starts(tokenizer)[0], self.labs[0].costs)["block_macs"]
            for title, changes in self.named(tokenizer)["ablation"].items():
                runs = self.trained(self.on_from(tokenizer, **changes))
                work = tokens.work(runs[0].config, self.labs[0].costs)["block_macs"]
                rows.append(
                    {"DynamicViT": title, "blocks' MACs": f"{work / full:.1%}", **lost(self.scores(runs), whole)}
                )
            show(f"DynamicViT, one departure at a time, {tokenizer} tokenizer", rows)

    @torch.inference_mode()
    def speed(self) -> None:
        lab = self.labs[0]
        for tokenizer in self.tokenizers:
            config = lab.plan.config(lab.plan.backbone_of(tokenizer))
            named = {"ViT": "vit", **reductions()}
            shape = len(lab.source.classes), lab.data.channels
            models = {t: build_model(config.replace(model=name), *shape).eval() for t, name in named.items()}
            images = to_float(lab.data.val.images_at(slice(BATCH)))
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            frame = speeds({t: m.to(device) for t, m in models.items()}, images.to(device))
            outside = speeds({"tokenizer": models["ViT"].embed}, images.to(device))
            alone = len(images) / outside.loc["tokenizer", "images_per_second"]  # seconds that no reduction can save
            inside = {t: len(images) / n - alone for t, n in frame["images_per_second"].items()}
            rows = [
                {
                    "model": title,
                    "images/s": f"{row['images_per_second']:,.0f}",
                    "× the ViT's (wanted: 1.35)": f"{row['speed_up']:.2f}",
                    "in its blocks": f"{inside['ViT'] / inside[title]:.2f}",
                    "batch 1 (ms)": f"{row['latency_ms']:.2f}",
                    "× the ViT's (wanted: at most 1.15)": f"{row['latency_ratio']:.2f}",
                }
                for title, row in frame.iterrows()
            ]
            show(f"Speed: {tokenizer} tokenizer, float32, batches of {len(images)}", rows)


def percent(scores: list[float]) -> str:
    mean, spread = mean_and_spread([100 * score for score in scores])
    return f"{mean:.2f}" + (f" ± {spread:.2f}" if len(scores) > 1 else "")


def lost(scores: list[float], whole: list[float]) -> dict[str, str]:
    """Accuracy, mean ± standard deviation over seeds, and the difference to the same seeds' unreduced ViTs."""
    points = [100 * (score - base) for score, base in zip(scores, whole, strict=True)]
    mean, spread = mean_and_spread(points)
    return {
        "accuracy (%)": percent(scores),
        "points": f"{mean:+z.2f}" + (f" ± {spread:.2f}" if len(points) > 1 else ""),
    }


def show(title: str, rows: list[dict[str, str]]) -> None:
    frame = pd.DataFrame(rows)
    lines = [frame.columns, ["---"] * frame.shape[1], *frame.itertuples(index=False)]
    print(f"\n{title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines), flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="cifar10_cpu", help="its name, or the path of a params file")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=TABLES, default=TABLES, metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument(
        "--tokenizers",
        nargs="+",
        choices=TOKENIZERS,
        default=TOKENIZERS,
        metavar="TOKENIZER",
        help=", ".join(TOKENIZERS),
    )
    overrides = add_overrides(parser)
    chosen = parser.parse_args(arguments)
    bench = Bench(load_params(profile_path(chosen.profile), overrides(chosen)), chosen.seeds, chosen.tokenizers)
    here = environment()
    data = bench.labs[0].data
    print(f"{here['device']}, {here['threads']} threads; {len(data.val):,} validation images, {chosen.seeds} seeds")
    tables: dict[str, Callable[[], None]] = {
        "as it is": bench.as_it_is,
        "trained on": bench.trained_on,
        "ablation": bench.ablation,
        "speed": bench.speed,
    }
    bench.train(chosen.only)
    for name in chosen.only:
        tables[name]()


if __name__ == "__main__":
    sys.exit(told("tokens", main))
