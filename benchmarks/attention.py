"""Attentions, tokenizers, yardsticks by validation accuracy over several seeds; one attention layer by the clock.

    python benchmarks/attention.py --profile cifar10_cpu --set epochs=30 long_epochs=0 cutout=0.25 > table.md
    python benchmarks/attention.py --profile cifar10_cpu --seeds 1 --only tokenizers speed

Differences are those of the means over the seeds, to the first row of each table. Every training is a run directory
of the profile (runs_dir): stopped and started again, the command goes on where it was, and what a chapter has trained
already is not trained again. The test images, which `fit` scores at the end of every run, are not looked at here.
"""

import argparse
import shlex
import sys
from collections.abc import Callable

import pandas as pd

from vitlab import machine
from vitlab.analysis import complexity, metrics
from vitlab.config import PRESETS, LabConfig, RunConfig
from vitlab.errors import told
from vitlab.lab import Lab
from vitlab.models.registry import MODELS
from vitlab.parameters import add_overrides, load_params, profile_path

TOKENS = [side**2 for side in (8, 12, 16, 24, 32, 48, 64)]
ROUNDS = 25
WANTED = {"kernelised": 8, "InLine": 6}  # times as fast as softmax at the most tokens


def table(rows: list[dict]) -> None:
    frame = pd.DataFrame(rows).astype(str)
    lines = [frame.columns, ["---"] * frame.shape[1], *frame.itertuples(index=False)]
    print("\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n", flush=True)


def attentions(params: LabConfig) -> dict[str, dict]:
    """Row -> what it changes of the ViT; each step of InLine's ablation, and the control."""
    return {
        "softmax": {},
        "kernelised": {"model": "linear_vit"},
        "injective, same φ": {"model": "injective_vit", "inline_map": params.feature_map},
        "injective, φ(x) = x": {"model": "injective_vit", "inline_map": "identity"},
        "InLine: injective + local": {"model": "inline_vit", "inline_map": "identity"},
        "kernelised + local": {"model": "local_linear_vit"},
        "softmax + local (control)": {"model": "local_vit"},
    }


def linformers(params: LabConfig) -> dict[str, dict]:
    """What its loss consists of: the number of keys, the sharing, and E and F resampled while images grow."""
    own = {"model": "linformer_vit"}
    rows = {"softmax": {}} | {
        f"Linformer, k = {k}": own | {"linformer_k": k} for k in sorted({8, 16, 32, 64}) if k <= params.num_tokens
    }
    for sharing in ("key_value", "layerwise"):
        rows[f"Linformer, k = {params.linformer_k}, {sharing}"] = own | {"linformer_sharing": sharing}
    if params.start_size:
        rows |= {"softmax, no growing": {"start_size": 0}}
        rows |= {f"Linformer, k = {params.linformer_k}, no growing": own | {"start_size": 0}}
    for factor in (0.3, 3.0):
        rates = {"lr": params.lr * factor, "muon_lr": params.muon_lr * factor}
        rows[f"Linformer, k = {params.linformer_k}, {factor:g} × the learning rates"] = own | rates
    return rows


def tokenizers(params: LabConfig) -> dict[str, dict]:
    return {f"{name} tokenizer": {"tokenizer": name} for name in ("conv", "light", "patch")}


def yardsticks(params: LabConfig) -> dict[str, dict]:
    rows = {"ViT": {}, "ViT, conv tokenizer": {"tokenizer": "conv"}, "ResNet-20": {"model": "resnet20"}}
    if params.long_epochs:
        longer = {"epochs": params.long_epochs, "minutes": 0, "cutout": params.long_cutout}
        rows |= {f"{name}, {params.long_epochs} epochs": rows[name] | longer for name in [*rows][1:]}
    return rows


GROUPS: dict[str, Callable[[LabConfig], dict[str, dict]]] = {
    "attentions": attentions,
    "linformers": linformers,
    "tokenizers": tokenizers,
    "yardsticks": yardsticks,
}


def trained(lab: Lab, configs: dict[str, list[RunConfig]]) -> None:
    """A row each: validation accuracy over the seeds, and its difference to that of the first row."""
    runs = lab.train({(name, i): config for name, seeds in configs.items() for i, config in enumerate(seeds)})
    found = {name: [runs[name, i] for i in range(len(seeds))] for name, seeds in configs.items()}
    accuracies = {name: [run.summary["val_accuracy"] for run in of_name] for name, of_name in found.items()}
    (first, base), *_ = accuracies.items()
    rows = []
    for name, values in accuracies.items():
        (mean, spread), reference = metrics.mean_and_spread(values), metrics.mean_and_spread(base)
        work = sum(lab.costs.macs(configs[name][0]).values())
        minutes, _ = metrics.mean_and_spread([run.training_seconds / 60 for run in found[name]])
        several = len(values) > 1
        row = {"": name, "validation accuracy (%)": f"{100 * mean:.2f}" + (f" ± {100 * spread:.2f}" if several else "")}
        row[f"− {first} (points)"] = "" if name == first else f"{100 * (mean - reference[0]):+.2f}"
        if several:
            row["larger spread of the two"] = "" if name == first else f"{100 * max(spread, reference[1]):.2f}"
        rows.append(row | {"million MACs": f"{work / 1e6:,.2f}", "minutes": f"{minutes:.1f}"})
    table(rows)


def lighter(lab: Lab) -> None:
    """The lighter models beside the ViTs that cost as little, as the chapters train them."""
    for name in lab.params.equal_cost:
        smaller = [which for model, which in lab.plan.equal_cost if model == name]
        lab.train(dict(enumerate(lab.plan.repeats[lab.plan.backbone])))  # DynamicViT starts from them
        unchanged = "ViT, fine-tuned" if MODELS[name].chapter == "03" else "ViT"
        names = [MODELS[name].title, *smaller, unchanged]
        trained(lab, {which: lab.plan.repeats[which] for which in names})


def speed(config: RunConfig) -> None:
    """One layer at batch 1, softmax by the kernel that the models use; the kinds take turns."""
    frame = complexity.growth(config, TOKENS, ROUNDS)
    last = frame[frame["tokens"] == TOKENS[-1]].pivot(index="round", columns="attention", values="seconds")
    rows = []
    for kind, part in frame.groupby("attention", sort=False):
        long = part[part["tokens"] >= 512]  # below, fixed costs hide the growth
        slope = complexity.over_rounds(long, lambda one: complexity.exponent(one["tokens"], one["seconds"]))
        faster = (last["softmax"] / last[kind]).quantile([0.5, 0.25, 0.75])
        row = {"attention": kind, "exponent of time": "{:.2f} ({:.2f} – {:.2f})".format(*slope)}
        row[f"times as fast as softmax at {TOKENS[-1]:,} tokens"] = "{:.1f} ({:.1f} – {:.1f})".format(*faster)
        row["wanted"] = WANTED.get(kind, "")
        meets = complexity.over_rounds(frame, lambda one, kind=kind: complexity.crossover(one, kind))
        row["faster from (tokens)"] = "–" if kind == "softmax" else "{:,.0f} ({:,.0f} – {:,.0f})".format(*meets)
        rows.append(row)
    print(f"One layer, {config.dim}/{config.heads}, Linformer k = {config.linformer_k}, {ROUNDS} rounds, quartiles.\n")
    table(rows)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", required=True, help="its name, as cifar10_cpu, or the path of a params file")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--only", nargs="+", choices=[*GROUPS, "lighter", "speed"], default=[*GROUPS, "lighter", "speed"]
    )
    overrides = add_overrides(parser)
    arguments = parser.parse_args(words)
    given = overrides(arguments) | {"seeds": arguments.seeds, "repeated": []}
    lab = Lab.of(load_params(profile_path(arguments.profile), given))
    params = lab.params
    here = machine.environment()
    print(f"`{shlex.join(['python', 'benchmarks/attention.py', *(sys.argv[1:] if words is None else words)])}`\n")
    print(f"{here['device']}, {here['threads']} threads, torch {here['versions']['torch']}\n")
    for name in arguments.only:
        print(f"## {name}\n", flush=True)
        if name == "speed":
            for shape in (params, params.replace(**PRESETS["small"], linformer_k=64)):
                speed(RunConfig(dim=shape.dim, heads=shape.heads, linformer_k=shape.linformer_k, image_size=32))
        elif name == "lighter":
            lighter(lab)
        else:
            seeds = range(params.seed, params.seed + params.seeds)
            rows = GROUPS[name](params)
            trained(lab, {row: [params.run(seed=seed, **changes) for seed in seeds] for row, changes in rows.items()})


if __name__ == "__main__":
    sys.exit(told("attention", main))
