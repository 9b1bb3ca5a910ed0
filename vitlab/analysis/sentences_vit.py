"""What chapter 2's numbers say: the ViT, its tokenizers, and the convolutional network beside it."""

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.special import softmax

from vitlab.analysis.chart_parts import MOST_LABELS
from vitlab.analysis.metrics import confident_mistakes, mean_and_spread, shown, wilson
from vitlab.analysis.sentences import named, thin_lines, verdict
from vitlab.texts import listed, markdown, signed

if TYPE_CHECKING:
    from vitlab.config import RunConfig
    from vitlab.lab import Lab
    from vitlab.runs import Run

OPTIMIZERS = {
    "adamw": "AdamW",
    "sgd": "SGD with momentum",
    "muon": "Muon for the hidden layers' matrices and kernels, AdamW for the rest",
}
MOST_NAMED = 3  # classes that are recognised equally well
AS_GOOD = 0.01  # by which confidence and accuracy may differ where a model is as good as it says
CONV_TOKENIZER = (
    "The convolutional tokenizer: channels × height × width after each convolution. It ends with as many tokens as "
    "there are patches, but each has seen its neighbours."
)
BY_CLASS = (
    "class by class: precision (of the images given this answer, how many are of the class), recall (of the images of "
    "the class, how many are found), and F1, their harmonic mean."
)


# ---------------------------------------------------------------- the model


def data(lab: "Lab", config: "RunConfig") -> str:
    """What this chapter learns from, and in how many tokens."""
    answer = "a class token" if config.pool == "cls" else "the mean of the patches, with no class token"
    return (
        f"This run uses **{lab.data_title}**: {len(lab.data.train):,} images to train, {len(lab.data.val):,} to choose "
        f"the epoch, {len(lab.data.test):,} to test, {len(lab.data.classes)} classes, "
        f"{config.image_size}×{config.image_size} pixels; patches of {config.patch_size}×{config.patch_size} make "
        f"{config.num_tokens} tokens. {lab.remarks} What is classified in the end is {answer}."
    )


def diagram(config: "RunConfig") -> str:
    return (
        f"The model of this chapter, with this run's numbers: {config.num_tokens} patches become tokens, "
        f"{config.depth} equal blocks mix them, and a linear layer reads the answer. In a block attention lets tokens "
        "look at each other, the MLP works on each for itself; both add to what is there."
    )


def patches(config: "RunConfig") -> str:
    return (
        f"What the model reads: one training image and its {config.num_tokens} patches in the order of the tokens. "
        f"Each patch of {config.patch_size}×{config.patch_size} pixels becomes a vector of {config.dim} numbers."
    )


def sizes(table: pd.DataFrame, config: "RunConfig") -> str:
    """Caption of `tables.parameters_by_part`."""
    inside = table.loc[["attention, all blocks", "MLP, all blocks"], "count"].sum() / table["count"].sum()
    return (
        f"Where the {table['count'].sum():,} parameters sit ({config.depth} blocks, width {config.dim}, {config.heads} "
        f"heads). Attention's projections and the MLPs hold {inside:.0%} of them."
    )


def by_hand(losses: list[float]) -> str:
    """Whether the loss falls over some steps, by the means of the first and of the last five."""
    first, last = (float(np.mean(part)) for part in (losses[:5], losses[-5:]))
    if last < first:
        return (
            f"{len(losses)} such steps by hand: the loss falls from {first:.2f} (mean of the first five) to {last:.2f} "
            "(of the last five)."
        )
    return f"{len(losses)} steps by hand did not lower the loss yet: {first:.2f}, then {last:.2f}."


# ---------------------------------------------------------------- training


def recipe(config: "RunConfig") -> str:
    """How the runs of this chapter were trained."""
    rate = f"learning rate {config.lr:g} at its peak"
    if config.optimizer == "muon":
        rate = f"learning rates {config.muon_lr:g} (Muon) and {config.lr:g} (AdamW) at their peaks"
    text = f"Here: {OPTIMIZERS[config.optimizer]}, {rate}, {config.batch_size} images a batch; {_regularised(config)}."
    if not 0 < config.start_size < config.image_size:
        return text
    return (
        f"{text} Images begin at {config.start_size}×{config.start_size} pixels and grow to full size over the first "
        f"{config.grow:.0%} of the training: early steps see fewer tokens and take a fraction of the time. Positions "
        "are resampled to each size; validation and test are always at full size."
    )


def _regularised(config: "RunConfig") -> str:
    """What keeps weights small and answers modest."""
    smoothing = f"label smoothing {config.label_smoothing:g}" if config.label_smoothing else "no label smoothing"
    small = f"weight decay {config.weight_decay:g}, {smoothing}, gradients cut at length {config.clip:g}"
    return f"{small}; images are shifted and mirrored as chapter 1 says"


def curves(lab: "Lab") -> str:
    kept = "The ring marks the epoch whose weights were kept; they alone meet the test set."
    seeds = lab.plan.seed_numbers(lab.plan.chapters["02"])
    what = "Loss and validation accuracy" if len(lab.data.val) else "Loss"
    harder = len({config.cutout for config in lab.plan.chapters["02"].values()}) > 1
    loss = " With Cutout images are harder, so that losses with and without it do not compare." if harder else ""
    return (
        f"{what} while training, by epoch and by the clock ({len(lab.data.train):,} images, "
        f"{seeds}). {kept if len(lab.data.val) else 'The last weights meet the test set.'}{loss}{thin_lines(lab)}"
    )


def scores(lab: "Lab") -> str:
    first = f" Epoch, time and speed of training are those of seed {lab.params.seed}." if lab.params.seeds > 1 else ""
    return (
        f"The trained models on the same {len(lab.data.test):,} test images, {lab.plan.seed_words}. The intervals "
        "(Wilson's) hold the true accuracies that these answers are compatible with. Top-2: the class is among the two "
        f"likeliest.{first}"
    )


def difference(first: str, other: str, found: dict) -> str:
    """What the paired test says of two models; found: `metrics.compare`."""
    seeds = found.get("seeds", 1)
    counted = f", summed over {seeds} seeds" if seeds > 1 else ""
    return (
        f"After training, {verdict(f'*{first}*', f'*{other}*', found)}: {found['only_a']:,} images are right with "
        f"*{first}* alone, {found['only_b']:,} with *{other}* alone{counted}."
    )


def tested(lab: "Lab", first: str, other: str) -> str:
    """What the tests of this chapter hold over; first, other: two models that are compared."""
    mcnemar = (
        "The exact McNemar test asks how likely so uneven a split would be if both models were equally good; of "
        "several seeds an image counts for what all of them say of it"
    )
    _, freedom = lab.training_noise(first, other, "accuracy")
    if math.isinf(freedom):
        return f"{mcnemar}. These are single runs: images alone can't tell what another seed would bring."
    several = [name for name in lab.plan.chapters["02"] if len(lab.plan.repeats[name]) > 1]
    return (
        f"{mcnemar}. It knows these trainings alone. Interval and p above hold over the chance of training as well: a "
        "t test, whose variance is that over test images and that over seeds, which we know from "
        f"{named(several)} ({freedom:.0f} degrees of freedom); p is never below McNemar's. Chapter 6 knows it from the "
        "other chapters as well, and corrects for all its pairs: a difference seen here need not stand there, nor one "
        "that is not seen here be missing."
    )


def longer(lab: "Lab") -> str:
    """What longer trainings of chapter 2 brought, what as long ones of a larger ViT, or with patches."""
    told: dict[str, str] = {}
    for name in lab.plan.longer:
        asked, text = _longer(lab, name)
        told[asked] = f"{told[asked]} {text}" if asked in told else f"**And with {asked}?** {text}"
    return "\n\n".join(told.values())


def _longer(lab: "Lab", name: str) -> tuple[str, str]:
    reference, changes = lab.plan.longer[name]
    config, before = lab.plan.config(name), lab.plan.config(reference)
    cut = ", with Cutout (DeVries and Taylor 2017) so that images seen so often stay new" if config.cutout else ""
    cut = ", without Cutout" if before.cutout and not config.cutout else cut
    larger, smaller = (f"{lab.run_of(c).summary['parameters']:,}" for c in (config, before))
    asked, told = {
        "epochs": ("more training", f"{config.budget} instead of {before.budget}{cut}: after them "),
        "preset": (
            "a larger ViT",
            f"Width {config.dim}, {config.depth} blocks, {larger} parameters instead of {smaller}, trained as long: ",
        ),
        "tokenizer": ("patches", "As large and trained as long, but for the tokenizer: "),
    }[next(iter(changes))]
    return asked, f"{told}{verdict(f'*{reference}*', f'*{name}*', lab.compare(reference, name))}."


# ---------------------------------------------------------------- what it answers


def confusion(name: str, recall: pd.Series, images: int) -> str:
    """recall: class -> recall; of many classes the figure writes no numbers."""
    best, worst = (f"{_some(recall.index[recall == end])} ({end:.0%})" for end in (recall.max(), recall.min()))
    numbers = "numbers are images, " if len(recall) <= MOST_LABELS else ""
    return (
        f"Which classes {name} takes for which, on {images:,} test images: {numbers}colour is the share of the row. "
        f"Best recognised: {best}; worst: {worst}."
    )


def _some(classes: pd.Index) -> str:
    """The names of classes, or of many some and how many more there are."""
    named, more = [markdown(name) for name in classes[:MOST_NAMED]], len(classes) - MOST_NAMED
    return listed([*named, f"{more} more"] if more > 0 else named)


def reliability(config: "RunConfig", seed: str) -> str:
    """seed: `Plan.one_seed`."""
    modest = f" Label smoothing ({config.label_smoothing:g}) asks for modest answers." if config.label_smoothing else ""
    return (
        f"Left: accuracy of the test answers{seed} by their confidence, with 95% intervals; above the diagonal a model "
        f"is better than it says, below it is overconfident. Right: how often it is how sure.{modest}"
    )


def how_sure(name: str, run: "Run") -> str:
    """Whether a model is as good as it says: mean confidence of the test answers against their accuracy.

    Nothing is claimed of a confidence that lies in the accuracy's 95% interval.
    """
    logits, labels = run.predictions
    confidence, right = float(softmax(logits, axis=1).max(1).mean()), int((logits.argmax(1) == labels).sum())
    low, high = wilson(right, len(labels))
    return confident(name, confidence, right / len(labels), low <= confidence <= high)


def confident(name: str, confidence: float, accuracy: float, within: bool = False) -> str:
    """One sentence on mean confidence against accuracy; within: of what chance allows."""
    if abs(confidence - accuracy) < AS_GOOD:
        what = "it is about as good as it says"
    elif within:
        what = "these images cannot show a difference"
    else:
        what = "it is better than it says" if accuracy > confidence else "it says more than it knows"
    return f"On average {name} is {confidence:.1%} sure and {accuracy:.1%} right: {what}."


# ---------------------------------------------------------------- what it has learnt


def places(name: str, config: "RunConfig", near: float, far: float) -> str:
    """Caption of filters and positions; near, far: mean cosine of neighbours' positions, and of any two."""
    if config.positions == "sincos":
        how = "fixed, and alike where places are near"
    elif 0 < config.start_size < config.image_size:
        how = (
            "learned, and were stretched over the grid while the images were small, which by itself makes neighbours "
            "alike: what was learned this can't tell"
        )
    elif near > max(0.1, far + 0.1):
        how = "learned: neighbours have become alike"
    else:
        how = "learned: neighbours have hardly become alike"
    return (
        f"Left: what the first layer of {name} looks for, the filters that turn pixels into tokens, the strongest "
        "first. Right: how similar the position of one patch is to all others (cosine similarity; at most 16 patches "
        f"shown). They are {how} (mean cosine of neighbours {signed(near, 'z.2f')}, of any two {signed(far, 'z.2f')})."
    )


def looking(name: str, depth: int, images: int) -> str:
    return (
        f"Where {name} looks: rollout over all {depth} blocks, then each head of the last block; bright patches weigh "
        f"more. One test image of each of the first {images} classes."
    )


def heads_differ(cosine: float, heads: int, images: int) -> str:
    """Whether heads look at different places: cosine is the mean similarity of two heads' maps of the same image."""
    if heads < 2:
        return "With one head there is nothing to share."
    measured = f"mean cosine of two heads' maps of these {images} images {signed(cosine, 'z.2f')}"
    if cosine > 0.9:
        return f"The heads look at nearly the same places ({measured})."
    return f"The heads look at different places ({measured})."


def mistakes(name: str, logits: np.ndarray, labels: np.ndarray) -> str:
    wrong = int((logits.argmax(1) != labels).sum())
    surest = confident_mistakes(logits, labels)
    sure = f" The surest is {surest[0][2]:.0%} sure." if surest else ""
    return (
        f"The surest of {wrong:,} mistakes of {name}: true class → answer, with the softmax probability of the answer. "
        f"Sure and wrong is what a single accuracy hides.{sure}"
    )


# ---------------------------------------------------------------- the conclusion


def answer(runs: list["Run"], train_images: int) -> str:
    """The chapter's first question in one sentence; runs: a model's, one a seed."""
    test, seeds = runs[0].summary["test"], [run.config.seed for run in runs]
    mean, spread = mean_and_spread([run.summary["test"]["accuracy"] for run in runs])
    low, high = test["interval"]
    sure = f"95% interval {low:.1%} to {high:.1%}, seed {seeds[0]}"
    if len(runs) > 1:
        sure = f"mean over seeds {seeds[0]} to {seeds[-1]}, standard deviation {100 * spread:.1f} points"
    return (
        f"**A ViT of {runs[0].summary['parameters']:,} parameters, trained from random weights on {train_images:,} "
        f"images, classifies {mean:.1%} of the {test['n']:,} test images correctly** ({sure})."
    )


def beside(first: str, comparisons: dict[str, dict], tokenizers: list[str], budget: str) -> str:
    """What the tokenizers and the yardstick do beside the first model: name -> `metrics.compare` with it.

    budget: how long each was trained.
    """
    told: dict[str, list[str]] = {}
    for name, found in comparisons.items():
        about = "As to the tokenizer" if name in tokenizers else f"Beside *{name}*, each trained for {budget}"
        told.setdefault(about, []).append(verdict(f"*{first}*", f"*{name}*", found))
    return " ".join(f"{about}: {'; '.join(verdicts)}." for about, verdicts in told.items())


def brought_back(comparisons: dict[str, dict], tokenizers: list[str]) -> str:
    """How much of the yardstick's lead the better tokenizer has, where both are shown; "" elsewhere.

    comparisons: name -> `metrics.compare` with the first model.
    """
    leads = {name: found["difference"] for name, found in comparisons.items() if shown(found)}
    leads = {name: lead for name, lead in leads.items() if lead > 0}
    ours = max((name for name in leads if name in tokenizers), key=leads.get, default="")
    theirs = max((name for name in leads if name not in tokenizers), key=leads.get, default="")
    if not ours or not theirs or leads[ours] >= leads[theirs]:
        return ""
    lead, whole = 100 * leads[ours], 100 * leads[theirs]
    return f"Of the {whole:.1f} points by which *{theirs}* is ahead, *{ours}* has {lead:.1f} ({lead / whole:.0%})."


def longest(lab: "Lab") -> str:
    """The best of chapter 2's ViTs beside the yardstick that was trained as long; "" where there is none."""
    vit = lab.plan.backbone
    budget = lab.plan.config(vit).budget
    others = [n for n in lab.plan.longer if lab.plan.config(n).model != "vit" and lab.plan.config(n).budget == budget]
    verdicts = [verdict(f"*{name}*", f"*{vit}*", lab.compare(name, vit)) for name in others]
    return f"Trained longest, for {budget}: {'; '.join(verdicts)}." if verdicts else ""
