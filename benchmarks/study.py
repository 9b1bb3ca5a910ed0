"""How long the imbalance study has to train: python benchmarks/study.py PROFILE EPOCHS [EPOCHS …] [--set name=value …]

Trains chapter 01's study of a profile (quick, cifar10_cpu, …, or a path) for each number of epochs, and chapter 02's
ViT of the same tokenizer. Says for each budget what the remedies gain and how far the balanced reference is from that
ViT, and at the end whether the ranking of one budget is that of the next; all of it on the validation images. A budget
is long enough where the reference is within two points of the ViT, or the ranking no longer changes. --data and --set
as `vitlab report` takes them. On CIFAR-10, 10:1:

    python benchmarks/study.py cifar10_cpu 9 18 --set study_tokenizer=conv study_cutout=0.25 \\
        "study_remedies=sampler, class_weights, logit_adjustment, ldam_drw, post_hoc"

Runs are kept in runs/, as the chapter's are: the command can be interrupted and repeated, and the chapter of the same
parameters finds them. The test set stays closed, but for the one look of each run, which nothing here prints.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy import stats

from vitlab.analysis.study import Study, shapes_table
from vitlab.config import BALANCED
from vitlab.errors import LabError, told
from vitlab.lab.results import check
from vitlab.parameters import add_overrides, load_params, profile_path
from vitlab.runs import Run
from vitlab.training.evaluate import predict

NEAR = 0.02  # of the ViT's accuracy


class Validated(Study):
    """A study whose runs are compared by the validation images, of which every run of a seed has the same."""

    def answers(self, run: Run) -> tuple[np.ndarray, np.ndarray]:
        val = self.lab.data_of(run.config).val
        return predict(run.model(), val, run.config).numpy(), val.labels.numpy()


def of_budget(profile: Path, overrides: dict, epochs: int) -> list[Study]:
    """The studies of all class sizes, trained for so many epochs, reported."""
    lab = check(load_params(profile, overrides | {"study_epochs": epochs}))
    reference = lab.plan.config(lab.plan.study_vit)  # or a sentence, before any work
    if not len(lab.data.val):
        raise LabError("budgets are set from validation images, and there are none: set val_fraction")
    lab.train(lab.plan.study_configs)
    studies = [Validated(lab, shape) for shape in lab.plan.studies]
    print(f"\n# {epochs} epochs, {studies[0].steps:,} steps\n")
    print(shapes_table(studies).to_string(), "\n")
    for study in studies:
        scores = study.scores.groupby("remedy", sort=False)[["accuracy", "macro_f1", "calibration_error"]].mean()
        print(f"## {study.shape}\n\n{scores.round(3).to_string()}\n")
    main = studies[0]
    if BALANCED in main.names:
        vit = lab.train_one(reference)
        logits, labels = main.answers(vit)
        reached = float((logits.argmax(1) == labels).mean())
        balanced = float(main.scores.loc[main.scores["remedy"] == BALANCED, "accuracy"].mean())
        cut = main.runs[BALANCED, main.seeds[0]].config.cutout, reference.cutout
        unlike = f" (Cutout {cut[0]:g} there, {cut[1]:g} here)" if cut[0] != cut[1] else ""
        apart = balanced - reached
        print(
            f"The balanced reference reaches {balanced:.1%} after {main.steps:,} steps, {lab.plan.study_vit} of "
            f"chapter 02 {reached:.1%} after {vit.summary['steps']:,}{unlike}: {100 * apart:+.1f} points, "
            f"{'near enough' if apart >= -NEAR else 'too far'}."
        )
    return studies


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", help="a profile's name, or the path of a params file")
    parser.add_argument("epochs", nargs="+", type=int, help="budgets, in epochs of the imbalanced data")
    overrides = add_overrides(parser)
    arguments = parser.parse_args(words)
    profile = profile_path(arguments.profile)
    budgets = {e: of_budget(profile, overrides(arguments), e) for e in sorted(arguments.epochs)}
    for (few, less), (many, more) in zip(list(budgets.items())[:-1], list(budgets.items())[1:], strict=True):
        for a, b in zip(less, more, strict=True):
            before, after = (
                study.scores.groupby("remedy")["macro_f1"].mean().drop(BALANCED, errors="ignore") for study in (a, b)
            )
            tau = stats.kendalltau(before, after[before.index]).statistic
            firsts = f"the best is {before.idxmax()}, then {after.idxmax()}"
            print(f"\n{a.shape}, from {few} to {many} epochs: {firsts}; Kendall's τ of the rankings {tau:.2f}")


if __name__ == "__main__":
    sys.exit(told("study", main))
