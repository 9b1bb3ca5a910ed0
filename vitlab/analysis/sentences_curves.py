"""What chapter 2's training curves say: who learns faster, who was ahead at equal minutes, and who overfits."""

import numpy as np
import pandas as pd

from vitlab.analysis.sentences import named

OVERFITS = 0.1  # by which training accuracy lies above validation: what was learnt holds for these images alone
BY_HEART = 0.99  # training accuracy from which such a model knows them by heart


def learns_faster(first: str, other: str, histories: dict[str, pd.DataFrame], images: int, seed: str = "") -> str:
    """Whether `other` learns faster than `first` over the first third of the epochs, as is expected of convolutions.

    histories: name -> epoch and val_accuracy, of so many validation images; seed: `Plan.one_seed`. An epoch counts for
    the one that is ahead in it by more than chance explains; most of them have to.
    """
    slow, quick = (histories[name]["val_accuracy"] for name in (first, other))
    early = -(-min(len(quick), len(slow)) // 3)
    one, two = quick[:early].to_numpy(), slow[:early].to_numpy()
    chance = _chance(one, two, images)
    ahead, behind = int((one - two > chance).sum()), int((two - one > chance).sum())
    there = histories[other]["epoch"][quick >= slow.iloc[-1]]
    then = f"reaches after epoch {there.iloc[0]}" if len(there) else "never reaches"
    when = f"the first {early} epochs" if early > 1 else "the first epoch"
    if max(ahead, behind) > early / 2:
        how = "faster, as expected," if ahead > behind else "more slowly, against the expectation,"
        text = f"In these two runs{seed} *{other}* learnt {how} than *{first}*, by validation images of {when}"
    else:
        text = f"Over {when} these two runs{seed} do not show which of *{other}* and *{first}* learns faster"
    return (
        f"{text} (ahead in {ahead}, behind in {behind}, by more than the choice of images explains). *{other}* {then} "
        f"the validation accuracy that *{first}* ends with, {slow.iloc[-1]:.1%}."
    )


def _chance(one: np.ndarray, other: np.ndarray, images: int) -> np.ndarray:
    """Two standard errors of the difference of two shares of so many images."""
    return 2 * np.sqrt((one * (1 - one) + other * (1 - other)) / images)


def overfitting(ends: dict[str, pd.Series], seed: str = "") -> str:
    """Which models learnt what holds for training images alone: name -> the last epoch's accuracy and val_accuracy.

    Of several epochs: in the first one no image was seen before. seed: `Plan.one_seed`.
    """
    worse = [name for name, end in ends.items() if end["accuracy"] - end["val_accuracy"] > OVERFITS]
    by_heart = [name for name in worse if ends[name]["accuracy"] >= BY_HEART]
    others = [name for name in worse if name not in by_heart]
    better = f"more than {100 * OVERFITS:.0f} points better at images that were trained on than at others"
    claims = [f"{named(by_heart)} {'knows' if len(by_heart) == 1 else 'know'} the training images by heart"]
    claims = (claims if by_heart else []) + ([f"{named(others)}: {better}, which is overfitting"] if others else [])
    figures = "; ".join(f"*{name}* {end['accuracy']:.1%} and {end['val_accuracy']:.1%}" for name, end in ends.items())
    return (
        f"{'; '.join(claims) or f'No model is {better}'}. Right in the last epoch{seed} were, of training and "
        f"validation images, {figures}. The first figure is of augmented images and of weights that still moved, so "
        "the two do not compare to the point."
    )


def at_equal_minutes(histories: dict[str, pd.DataFrame], seed: str = "") -> str:
    """One sentence on name -> history with validation: what each had reached when the first of them was done.

    The clock is that of each history; seed: `Plan.one_seed`.
    """
    _, end, reached = _when_one_was_done(histories)
    if len(reached) < 2:
        return "When the first of them was done, no other had finished an epoch: at equal minutes nothing can be said."
    order = sorted(reached, key=lambda name: -reached[name])
    return (
        f"After {_clock(end)} of training{seed}, when the first of them was done, they classified of the validation "
        "images (each by its own clock, which ran beside whatever else the machine did): "
        + "; ".join(f"*{name}* {reached[name]:.1%}" for name in order)
        + ". Those that went on had a learning rate that had not fallen to zero yet, which is worth points at the end."
    )


def beside_at_equal_minutes(
    first: str, other: str, histories: dict[str, pd.DataFrame], images: int, seed: str = ""
) -> str:
    """The chapter's second question in one sentence: who of the two was ahead when one of them was done.

    histories: as in `at_equal_minutes`, of so many validation images.
    """
    done, end, reached = _when_one_was_done({name: histories[name] for name in (first, other)})
    going = other if done == first else first
    if len(reached) < 2:
        return f"At equal minutes nothing can be said: when *{done}* was done, *{going}* had not finished an epoch."
    lead = reached[going] - reached[done]
    how = "ahead of it" if lead > 0 else "behind it"
    if abs(lead) <= _chance(reached[going], reached[done], images):
        how = "not shown to be ahead or behind"
    return (
        f"At equal minutes{seed}: when *{done}* was done, after {_clock(end)}, *{going}* was {how}, with "
        f"{reached[going]:.1%} of the validation images against {reached[done]:.1%}, its learning rate not yet at zero."
    )


def _when_one_was_done(histories: dict[str, pd.DataFrame]) -> tuple[str, float, dict[str, float]]:
    """Who was done first, after how many seconds, and name -> the validation accuracy that each had reached by then.

    The last epoch that was over by then counts; a run with none over is left out.
    """
    done = min(histories, key=lambda name: histories[name]["seconds"].iloc[-1])
    end = histories[done]["seconds"].iloc[-1]
    over = {name: history["val_accuracy"][history["seconds"] <= end] for name, history in histories.items()}
    return done, end, {name: accuracy.iloc[-1] for name, accuracy in over.items() if len(accuracy)}


def _clock(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"
