"""What chapter 1's numbers say of the data."""

from typing import TYPE_CHECKING

import numpy as np

from vitlab.texts import listed

if TYPE_CHECKING:
    from vitlab.lab import Lab

SAMPLES = (
    "Ten training images of each class (of the first ten classes), as the models see them. Variety within a class is "
    "what has to be learnt; where classes look alike, models will confuse them."
)


def data(lab: "Lab") -> str:
    """What the images are, and how many."""
    channels, _, size = lab.data.train.pool.shape[1:]
    colours = "colour" if channels == 3 else "grey"
    return (
        f"**{lab.data_title}**: {len(lab.source.train):,} images to learn from and {len(lab.source.test):,} to test, "
        f"{len(lab.data.classes)} classes, {size}×{size} pixels, {colours}. {lab.remarks}"
    )


def parts(lab: "Lab") -> str:
    """Images of the three parts, and of their smallest and largest class."""
    classes, told = len(lab.data.classes), []
    for name, part in (("train", lab.data.train), ("validation", lab.data.val), ("test", lab.data.test)):
        counts = part.class_counts(classes)
        each = " to ".join(f"{n:,}" for n in dict.fromkeys((int(counts.min()), int(counts.max()))))
        told.append(f"**{name}** {len(part):,} images, {each} a class")
    seed = lab.params.seed
    apart = "The validation images came with the data." if lab.source.val else "Training and validation share no image."
    return f"Before any imbalance is made (seed {seed}): {'; '.join(told)}. {apart}"


def augmentation(lab: "Lab", shift: int) -> str:
    """What the augmentations do, and which of them the runs use."""
    p = lab.params
    used = {"crop": "shifts", "flip": "mirror images", "cutout": "Cutout", "mixup": "MixUp", "cutmix": "CutMix"}
    told = ", ".join(words for name, words in used.items() if getattr(p, name)) or "none"
    apart = ["the imbalance study"] if p.study_cutout and not p.cutout else []
    if p.long_epochs and bool(p.long_cutout) != bool(p.cutout):
        apart += ["the longer trainings of chapter 2"]
        apart += ["all of chapter 3"] if lab.plan.backbone in lab.plan.longer else []
    how = "without Cutout" if p.cutout else "with Cutout too"
    return (
        f"One training image of each class and what each augmentation makes of it, shifts of up to {shift} pixels. "
        f"The runs here train with: {told}{f' ({listed(apart)} {how})' if apart else ''}."
    )


def which_are_rare(imbalance: str, order: str) -> str:
    """Whether the study can tell a rare class from a difficult one; "" of data that are used as they come."""
    if imbalance == "none":
        return ""
    if order == "random":
        return "The seed draws which classes are rare: were they always the same, a rare one might be a difficult one."
    return "The last classes are the rare ones, with every seed: how rare one is cannot be told from how hard it is."


def class_sizes(shape: str, whole: np.ndarray, kept: np.ndarray, asked: float) -> str:
    """Training images before and after the imbalance was made; as they come, both are the same.

    whole, kept: (C,) images of each class; asked: the ratio of the commonest to the rarest that was to be made.
    """
    reached = kept.max() / kept.min()
    if kept.sum() == whole.sum():
        became = ", used as they come"
    elif abs(reached / asked - 1) < 0.005:
        became = f" become {kept.sum():,}"
    else:
        became = f" become {kept.sum():,}; {asked:g}:1 was asked for, whole images make it {reached:.3g}:1"
    return (
        f"Training images of each class without those for validation ({shape}): {whole.sum():,} images{became}. "
        "Validation and test are untouched."
    )
