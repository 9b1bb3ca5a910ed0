"""Which values a profile should have, by validation accuracy: python benchmarks/recipe.py PROFILE CHANGE [CHANGE …]

    python benchmarks/recipe.py cifar10_cpu --run "ViT, conv tokenizer" lr=0.002 lr=0.005 "cutout=0.25 mixup=0.2"

Trains one run of a profile as it stands and with each change, words as --set takes them, with several seeds, and prints
a row each: accuracy, and the difference to the profile of the same seeds. What was chosen is tried together with more
by a call with --set. --keep FILE.csv adds a row for each training to a table that is to lie beside the profile. The
test images, which `fit` scores at the end of every run, are not looked at. Runs are kept in runs/, as a chapter's are:
the command can be interrupted and repeated.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

from vitlab.errors import LabError, told
from vitlab.lab import Lab
from vitlab.parameters import add_overrides, load_params, overrides_in, profile_path

UNCHANGED = "as it stands"
DATA = {"dataset", "data_dir", "image_size", "val_fraction"}  # of another one differences would say nothing


def trials(profile: Path, run: str, overrides: dict, changes: list[str], seeds: int) -> pd.DataFrame:
    """A row for each change and seed: `run` of the profile, trained with it, by validation images."""
    lab = Lab.of(load_params(profile, overrides))
    if not len(lab.data.val):
        raise LabError("trials are judged by validation images, and there are none: set val_fraction")
    starts, configs = [], {}
    for change in ["", *changes]:
        changed = overrides_in(change)
        if of_data := DATA & changed.keys():
            raise LabError(f"{', '.join(sorted(of_data))} is the same in all trials: give it by --set")
        params = load_params(profile, overrides | changed).replace(dataset=lab.params.dataset)
        for seed in range(params.seed, params.seed + seeds):
            plan = Lab(params.replace(seed=seed), lab.source).plan
            configs[change or UNCHANGED, seed] = plan.config(run)
            starts += [plan.config(plan.backbone)] if plan.config(run).init_from else []
    trained = lab.train(dict(enumerate(starts)) | configs)
    runs = {key: trained[key] for key in configs}
    keys = pd.MultiIndex.from_tuples(runs, names=["change", "seed"]).to_frame(index=False)
    found = pd.DataFrame(
        {
            "val_accuracy": one.summary["val_accuracy"],
            "steps": one.summary["steps"],
            "minutes": one.training_seconds / 60,
        }
        for one in runs.values()
    )
    return keys.join(found.round(4))


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """(changes, 5): accuracy in percent, points above the profile's of the same seeds, their spreads, minutes."""
    by_seed = 100 * rows.pivot(index="seed", columns="change", values="val_accuracy")[rows["change"].unique()]
    points = by_seed.sub(by_seed[UNCHANGED], axis=0)
    spreads = {"accuracy": by_seed.mean(), "± seeds": by_seed.std(), "points": points.mean(), "± points": points.std()}
    return pd.DataFrame(spreads | {"minutes": rows.groupby("change")["minutes"].median()}).loc[by_seed.columns]


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", help="a profile's name, or the path of a params file")
    parser.add_argument("changes", nargs="+", metavar="CHANGE", help='one trial, as "lr=0.002" or "mixup=0.2 ema=0.99"')
    parser.add_argument("--run", default="ViT", help="its name in the chapters")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="a CSV that the trials are added to")
    overrides = add_overrides(parser)
    arguments = parser.parse_args(words)
    set_by_hand = overrides(arguments)
    rows = trials(profile_path(arguments.profile), arguments.run, set_by_hand, arguments.changes, arguments.seeds)
    print(f"{arguments.run}, {set_by_hand or 'nothing else changed'}\n\n{table(rows).round(2).to_string()}")
    if arguments.keep:
        rows.insert(0, "set", " ".join(f"{name}={value}" for name, value in set_by_hand.items()))
        rows.insert(0, "run", arguments.run)
        before = [pd.read_csv(arguments.keep, keep_default_na=False)] if arguments.keep.exists() else []
        kept = pd.concat([*before, rows]).drop_duplicates(["run", "set", "change", "seed"], keep="last")
        kept.to_csv(arguments.keep, index=False)


if __name__ == "__main__":
    sys.exit(told("recipe", main))
