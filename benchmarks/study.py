"""How long the imbalance study has to train: python benchmarks/study.py PROFILE EPOCHS [EPOCHS …] [--set name=value …]

Trains chapter 01's study of a profile (quick, cifar10_cpu, …, or a path) for each number of epochs, and chapter 02's
ViT of the same tokenizer. Says for each budget what the remedies gain, how far the balanced reference is from that ViT
and what parts sampler and class weights, and at the end whether the ranking of one budget is that of the next. A budget
is long enough where the reference is within two points of the ViT, or the ranking no longer changes. --data and --set
as `vitlab report` takes them. On CIFAR-10, 10:1, what the profile's budget is to be set from:

    python benchmarks/study.py cifar10_cpu 9 18 --set study_tokenizer=conv study_cutout=0.25 \\
        "study_remedies=sampler, class_weights, logit_adjustment, ldam_drw, post_hoc"

Runs are kept in runs/, as the chapter's are: the command can be interrupted and repeated, and the chapter of the same
parameters finds them.
"""

import argparse
import sys
from pathlib import Path

from scipy import stats

from vitlab.analysis import metrics, sentences_data
from vitlab.analysis.study import Study, conclusion, gradient_noise, shapes_table
from vitlab.config import BALANCED
from vitlab.errors import told
from vitlab.lab.results import check
from vitlab.parameters import add_overrides, load_params, profile_path

NEAR = 0.02  # of the ViT's accuracy


def of_budget(profile: Path, overrides: dict, epochs: int) -> list[Study]:
    """The studies of all class sizes, trained for so many epochs, reported."""
    lab = check(load_params(profile, overrides | {"study_epochs": epochs}))
    reference = lab.plan.config(lab.plan.study_vit)  # or a sentence, before any work
    lab.train(lab.plan.study_configs)
    studies = [Study(lab, shape) for shape in lab.plan.studies]
    print(f"\n# {epochs} epochs, {studies[0].steps:,} steps\n")
    print(shapes_table(studies).to_string(), "\n")
    for study in studies:
        scores = study.scores.groupby("remedy", sort=False)[["accuracy", "macro_f1", "calibration_error"]].mean()
        print(f"## {study.shape}\n\n{scores.round(3).to_string()}\n")
        print("\n".join(conclusion(study)))
    main = studies[0]
    if {"sampler", "class_weights"} <= {*main.remedies}:
        print(sentences_data.same_gradient(main.against("sampler").loc["class_weights"], gradient_noise(lab)))
    if BALANCED in main.names:
        vit = lab.train_one(reference).summary
        balanced = metrics.mean_and_spread([main.runs[BALANCED, s].summary["test"]["accuracy"] for s in main.seeds])[0]
        cut = main.runs[BALANCED, main.seeds[0]].config.cutout, reference.cutout
        unlike = f" (Cutout {cut[0]:g} there, {cut[1]:g} here)" if cut[0] != cut[1] else ""
        apart = balanced - vit["test"]["accuracy"]
        print(
            f"The balanced reference reaches {balanced:.1%} after {main.steps:,} steps, {lab.plan.study_vit} of "
            f"chapter 02 {vit['test']['accuracy']:.1%} after {vit['steps']:,}{unlike}: {100 * apart:+.1f} points, "
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
