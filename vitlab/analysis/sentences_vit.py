"""What chapter 2's numbers say: the ViT, its tokenizers, and the convolutional network beside it."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.special import softmax

from vitlab.analysis.chart_parts import MOST_LABELS
from vitlab.analysis.metrics import confident_mistakes, wilson
from vitlab.analysis.sentences import named, verdict
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
OVERFITS = 0.1  # by which training accuracy lies above validation: what was learnt holds for these images alone
MOST_NAMED = 3  # classes that are recognised equally well
BY_HEART = 0.99  # training accuracy from which such a model knows them by heart
AS_GOOD = 0.01  # by which confidence and accuracy may differ where a model is as good as it says
CONV_TOKENIZER = (
    "The convolutional tokenizer: channels × height × width after each convolution. It ends with as many tokens as "
    "there are patches, but each has seen its neighbours."
)
BY_CLASS = (
    "class by class: precision (of the images given this answer, how many are of the class), recall (of the images of "
    "the class, how many are found), and F1, their harmonic mean."
)
MCNEMAR = (
    "The exact McNemar test asks how likely so uneven a split would be if both models were equally good; of several "
    "seeds an image counts for what all of them say of it. Where models were trained with several seeds, interval and p"
    " hold over the chance of training as well; images alone can't tell what another seed would bring. Chapter 6 "
    "corrects for all its pairs: there a difference seen here may not stand."
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
    text = f"Here: {OPTIMIZERS[config.optimizer]}, {rate}, {config.batch_size} images a batch."
    if not 0 < config.start_size < config.image_size:
        return text
    return (
        f"{text} Images begin at {config.start_size}×{config.start_size} pixels and grow to full size over the first "
        f"{config.grow:.0%} of the training: early steps see fewer tokens and take a fraction of the time. Positions "
        "are resampled to each size; validation and test are always at full size."
    )


def curves(lab: "Lab") -> str:
    kept = "The ring marks the epoch whose weights were kept; they alone meet the test set."
    seeds = lab.plan.seed_numbers(lab.plan.chapters["02"])
    what = "Loss and validation accuracy" if len(lab.data.val) else "Loss"
    return (
        f"{what} while training, by epoch and by the clock ({len(lab.data.train):,} images, "
        f"{seeds}). {kept if len(lab.data.val) else 'The last weights meet the test set.'}"
    )


def learns_faster(first: str, other: str, histories: dict[str, pd.DataFrame], images: int) -> str:
    """Whether `other` learns faster than `first` over the first third of the epochs, as is expected of convolutions.

    histories: name -> epoch and val_accuracy, of so many validation images. An epoch counts for the one that is ahead
    in it by more than two standard errors of a difference of shares; most of them have to.
    """
    slow, quick = (histories[name]["val_accuracy"] for name in (first, other))
    early = -(-min(len(quick), len(slow)) // 3)
    one, two = quick[:early].to_numpy(), slow[:early].to_numpy()
    error = np.sqrt((one * (1 - one) + two * (1 - two)) / images)
    ahead, behind = int((one - two > 2 * error).sum()), int((two - one > 2 * error).sum())
    there = histories[other]["epoch"][quick >= slow.iloc[-1]]
    then = f"*{other}* has after epoch {there.iloc[0]}" if len(there) else f"*{other}* never has"
    when = f"the first {early} epochs" if early > 1 else "the first epoch"
    if max(ahead, behind) > early / 2:
        how = "faster, as expected," if ahead > behind else "more slowly, against the expectation,"
        text = f"In these two runs *{other}* learnt {how} than *{first}*, by validation images of {when}"
    else:
        text = f"Over {when} these two runs do not show which of *{other}* and *{first}* learns faster"
    return (
        f"{text} (ahead in {ahead}, behind in {behind}, by more than the choice of images explains). What *{first}* "
        f"reaches in the end, {slow.iloc[-1]:.1%}, {then}."
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
    counted = ", counted in every seed" if found.get("seeds", 1) > 1 else ""
    return (
        f"After training, {verdict(f'*{first}*', f'*{other}*', found)}: {found['only_a']} images are right with "
        f"*{first}* alone, {found['only_b']} with *{other}* alone{counted}."
    )


def longer(lab: "Lab", name: str, short: str) -> str:
    """What a longer training of chapter 2 brought."""
    config = lab.plan.config(name)
    cut = ", with Cutout (DeVries and Taylor 2017) so that images seen so often stay new" if config.cutout else ""
    return (
        f"**And with more training?** {config.budget} instead of {lab.plan.config(short).budget}{cut}: after them "
        f"{verdict(f'*{short}*', f'*{name}*', lab.compare(short, name))}."
    )


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


def reliability(config: "RunConfig") -> str:
    modest = f" Label smoothing ({config.label_smoothing:g}) asks for modest answers." if config.label_smoothing else ""
    return (
        "Left: accuracy of the test answers by their confidence, with 95% intervals; above the diagonal a model is "
        f"better than it says, below it is overconfident. Right: how often it is how sure.{modest}"
    )


def how_sure(run: "Run") -> str:
    """Whether a model is as good as it says: mean confidence of the test answers against their accuracy.

    Nothing is claimed of a confidence that lies in the accuracy's 95% interval.
    """
    logits, labels = run.predictions
    confidence, right = float(softmax(logits, axis=1).max(1).mean()), int((logits.argmax(1) == labels).sum())
    low, high = wilson(right, len(labels))
    return confident(confidence, right / len(labels), low <= confidence <= high)


def confident(confidence: float, accuracy: float, within: bool = False) -> str:
    """One sentence on mean confidence against accuracy; within: of what chance allows."""
    if abs(confidence - accuracy) < AS_GOOD:
        what = "it is about as good as it says"
    elif within:
        what = "these images cannot show a difference"
    else:
        what = "it is better than it says" if accuracy > confidence else "it says more than it knows"
    return f"On average the ViT is {confidence:.1%} sure and {accuracy:.1%} right: {what}."


# ---------------------------------------------------------------- what it has learnt


def places(config: "RunConfig", near: float, far: float) -> str:
    """Caption of filters and positions; near, far: mean cosine of neighbours' positions, and of any two."""
    if config.positions == "sincos":
        how = "fixed, and alike where places are near"
    elif near > max(0.1, far + 0.1):
        how = "learned: neighbours have become alike"
    else:
        how = "learned: neighbours have hardly become alike"
    return (
        "Left: what the first layer looks for, the filters that turn pixels into tokens, the strongest first. Right: "
        "how similar the position of one patch is to all others (cosine similarity; at most 16 patches shown). They "
        f"are {how} (mean cosine of neighbours {signed(near, 'z.2f')}, of any two {signed(far, 'z.2f')})."
    )


def looking(name: str, depth: int, images: int) -> str:
    return (
        f"Where {name} looks: rollout over all {depth} blocks, then each head of the last block; bright patches weigh "
        f"more. One test image of each of the first {images} classes."
    )


def heads_differ(cosine: float, heads: int) -> str:
    """Whether heads share the work: cosine is the mean similarity of two heads' maps of the same image."""
    if heads < 2:
        return "With one head there is nothing to share."
    measured = f"mean cosine of two heads' maps {signed(cosine, 'z.2f')}"
    if cosine > 0.9:
        return f"The heads look at nearly the same places ({measured})."
    return f"The heads share the work: they look at different places ({measured})."


def mistakes(name: str, logits: np.ndarray, labels: np.ndarray) -> str:
    wrong = int((logits.argmax(1) != labels).sum())
    surest = confident_mistakes(logits, labels)
    sure = f" The surest is {surest[0][2]:.0%} sure." if surest else ""
    return (
        f"The surest of {wrong:,} mistakes of {name}: true class → answer, with the softmax probability of the answer. "
        f"Sure and wrong is what a single accuracy hides.{sure}"
    )


# ---------------------------------------------------------------- the conclusion


def answer(run: "Run", train_images: int) -> str:
    """The chapter's first question in one sentence."""
    test, config = run.summary["test"], run.config
    low, high = test["interval"]
    return (
        f"**A ViT of {run.summary['parameters']:,} parameters, trained from random weights on {train_images:,} images, "
        f"classifies {test['accuracy']:.1%} of the {test['n']:,} test images correctly** (95% interval {low:.1%} to "
        f"{high:.1%}, seed {config.seed})."
    )


def beside(first: str, comparisons: dict[str, dict], tokenizers: list[str]) -> str:
    """What the tokenizers and the yardstick do beside the first model: name -> `metrics.compare` with it."""
    told = []
    for name, found in comparisons.items():
        about = "As to the tokenizer" if name in tokenizers else f"Beside *{name}*"
        told.append(f"{about}: {verdict(f'*{first}*', f'*{name}*', found)}.")
    return " ".join(told)


def overfitting(ends: dict[str, pd.Series]) -> str:
    """Which models learnt what holds for training images alone: name -> the last epoch's accuracy and val_accuracy.

    Of several epochs: in the first one no image was seen before.
    """
    worse = [name for name, end in ends.items() if end["accuracy"] - end["val_accuracy"] > OVERFITS]
    by_heart = [name for name in worse if ends[name]["accuracy"] >= BY_HEART]
    others = [name for name in worse if name not in by_heart]
    better = f"more than {100 * OVERFITS:.0f} points better at images that were trained on than at others"
    claims = [f"{named(by_heart)} {'knows' if len(by_heart) == 1 else 'know'} the training images by heart"]
    claims = (claims if by_heart else []) + ([f"{named(others)}: {better}, which is overfitting"] if others else [])
    figures = "; ".join(f"*{name}* {end['accuracy']:.1%} and {end['val_accuracy']:.1%}" for name, end in ends.items())
    return (
        f"{'; '.join(claims) or f'No model is {better}'}. Right in the last epoch were, of training and validation "
        f"images, {figures}. The first figure is of augmented images and of weights that still moved, so the two do "
        "not compare to the point."
    )


def at_equal_minutes(histories: dict[str, pd.DataFrame]) -> str:
    """One sentence on name -> history with validation: what each had reached when the first of them was done.

    The last epoch that was over by then counts; a run with none over is left out. The clock is that of each history.
    """
    end = min(history["seconds"].iloc[-1] for history in histories.values())
    reached = {}
    for name, history in histories.items():
        over = history[history["seconds"] <= end]
        if len(over):
            reached[name] = over["val_accuracy"].iloc[-1]
    if len(reached) < 2:
        return "When the first of them was done, no other had finished an epoch: at equal minutes nothing can be said."
    order = sorted(reached, key=lambda name: -reached[name])
    clock = f"{end / 60:.1f} minutes" if end >= 60 else f"{end:.0f} seconds"
    return (
        f"After {clock} of training, when the first of them was done, they classified of the validation images: "
        + "; ".join(f"*{name}* {reached[name]:.1%}" for name in order)
        + ". Those that went on had a learning rate that had not fallen to zero yet, which is worth points at the end."
    )
