"""What chapters say of their numbers: each rule in both of its outcomes."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SMALL, speed_of

from vitlab.analysis import (
    sentences,
    sentences_comparison,
    sentences_costs,
    sentences_curves,
    sentences_data,
    sentences_linear,
    sentences_study,
    sentences_tokens,
    sentences_vit,
)
from vitlab.analysis.chart_parts import MOST_LABELS
from vitlab.config import STUDIED, LabConfig, RunConfig
from vitlab.data.splits import Source
from vitlab.lab.plan import Plan
from vitlab.texts import signed


def lab_with(validation: int) -> SimpleNamespace:
    """What captions of curves read of a lab with so many validation images."""
    data = SimpleNamespace(train=range(90), val=range(validation))
    return SimpleNamespace(
        data=data,
        plan=SimpleNamespace(
            seed_numbers=lambda names: "seed 0",
            seed_words="seed 0",
            chapters={"02": {}, "03": {}, "04": {}},
            seeds=range(1),
        ),
    )


def found(difference: float, p: float) -> dict:
    return {
        "difference": difference,
        "p": p,
        "interval": (difference - 0.02, difference + 0.02),
        "seeds": 1,
        "trained": False,
    }


LOST, FLAT, WON = found(-0.05, 0.001), found(-0.01, 0.5), found(0.05, 0.001)

# ---------------------------------------------------------------- 1 data and imbalance


def gains(**rows: tuple[float, float, float]) -> pd.DataFrame:
    return pd.DataFrame.from_dict(rows, orient="index", columns=["gain", "low", "high"])


@pytest.mark.parametrize(
    ("gap", "remedy", "words"),
    [
        ((0.1, 0.05, 0.15), (0.08, 0.02, 0.1), ["costs 10.0 points of macro F1", "shown to help, gains 8.0 points"]),
        ((0.01, -0.05, 0.15), (0.01, -0.02, 0.1), ["costs no macro F1 that these", "no remedy is shown to help"]),
        (None, (0.01, -0.02, 0.1), ["can't be told here", "no remedy is shown to help"]),
    ],
)
def test_what_imbalance_does_is_the_first_sentence(gap: tuple | None, remedy: tuple, words: list[str]) -> None:
    row = None if gap is None else gains(balanced=gap).iloc[0]
    text = sentences_study.answer(50.0, row, gains(sampler=remedy))
    assert "n imbalance of 50:1 cost" in text
    assert all(part in text for part in words)
    assert "n imbalance of 50:1, with 950 images fewer, costs" in sentences_study.answer(
        50.0, gains(balanced=(0.1, 0.05, 0.15)).iloc[0], gains(sampler=remedy), missing=950
    )


def test_remedy_that_helps_most_is_one_that_is_shown_to() -> None:
    text = sentences_study.answer(50.0, None, gains(sampler=(0.08, 0.02, 0.1), drw=(0.2, -0.1, 0.5)))
    assert "sampler, the best of those shown to help, gains 8.0 points" in text
    assert "DRW" not in text


@pytest.mark.parametrize(
    ("classes", "words"), [(10, "3 commonest, the other and the 3 rarest"), (6, "3 commonest and the 3 rarest")]
)
def test_other_classes_are_named_where_there_are_any(classes: int, words: str) -> None:
    lab = SimpleNamespace(plan=SimpleNamespace(study_vit="ViT, conv tokenizer"))
    study = SimpleNamespace(lab=lab, group=3, seeds=[0], steps=100, class_names=[*"abcdefghij"[:classes]])
    text = sentences_study.scores(study, 32)
    assert "by remedy (ViT, conv tokenizer), seeds: 1" in text
    assert f"Recall: of the {words} classes" in text
    study.group = 1
    study.class_names = [*"ab"]
    assert "Recall: of the commonest and the rarest class; the commonest show" in sentences_study.scores(study, 32)


@pytest.mark.parametrize(
    ("best", "words"),
    [
        ((0.4, 0.1, 0.6), "20.0%; in recall that is a gain (+40.0 points, +10.0 to +60.0)."),
        ((0.4, -0.1, 0.6), "20.0%; in recall that is no gain that is shown (+40.0"),
        ((-0.4, -0.5, -0.1), "20.0%; in recall that is a loss (−40.0"),
    ],
)
def test_rare_images_are_taken_for_commoner_ones_or_not(best: tuple, words: str) -> None:
    matrices = {"none": np.array([[9, 1], [6, 4]]), "sampler": np.array([[9, 1], [2, 8]])}
    text = sentences_study.rare_answers(matrices, 1, gains(sampler=best).iloc[0])
    assert "Without a remedy 60.0% of the images of the rarest class are taken for" in text
    assert words in text


@pytest.mark.parametrize(
    ("macro_f1", "errors", "words"),
    [
        ([0.9, 0.5, 0.8, 0.7], [0.01, 0.2, 0.05, 0.1], "error under *sampler* (0.050), where macro F1 is highest too."),
        ([0.9, 0.8, 0.5, 0.7], [0.01, 0.05, 0.2, 0.1], "without a remedy (0.050), where macro F1 is highest too."),
        ([0.9, 0.5, 0.8, 0.7], [0.01, 0.2, 0.1, 0.05], "is highest, it is 0.100, and without a remedy 0.200."),
        ([0.9, 0.5, 0.8, 0.7], [0.01, 0.05, 0.1, 0.2], "; under *sampler*, where macro F1 is highest, it is 0.100."),
        ([0.9, 0.8, 0.5, 0.7], [0.01, 0.1, 0.05, 0.2], "; without a remedy, where macro F1 is highest, it is 0.100."),
    ],
)
def test_surest_remedy_is_the_best_one_or_another_and_never_the_reference(
    macro_f1: list[float], errors: list[float], words: str
) -> None:
    names = ["balanced", "none", "sampler", "drw"]
    scores = pd.DataFrame({"remedy": names, "macro_f1": macro_f1, "calibration_error": errors})
    text = sentences_study.sureness(scores)
    assert text.startswith("Trained on the imbalanced data, the models have the smallest calibration error")
    assert words in text
    assert sentences_study.sureness(scores[1:]).startswith("The models have the smallest calibration error")


def test_remedy_as_sure_as_the_surest_by_what_seeds_differ_is_named_beside_it() -> None:
    rows = [("none", 0.5, 0.039), ("none", 0.5, 0.041), ("sampler", 0.8, 0.036), ("sampler", 0.8, 0.046)]
    scores = pd.DataFrame(rows, columns=["remedy", "macro_f1", "calibration_error"])
    text = sentences_study.sureness(scores)
    assert "without a remedy (0.040), hardly larger, by what seeds differ, under *sampler* (0.041); under *sam" in text
    scores.loc[scores["remedy"] == "none", "macro_f1"] = 0.9
    assert sentences_study.sureness(scores).endswith("under *sampler* (0.041). Macro F1 is highest without a remedy.")
    far = scores.assign(calibration_error=[0.039, 0.041, 0.06, 0.07])
    assert "hardly" not in sentences_study.sureness(far)


def test_remedies_are_spoken_of_where_they_are_studied() -> None:
    few, every = ["none", "sampler", "logit_adjustment"], list(STUDIED)
    assert sentences_study.studied(few) == "This run studies, beside *none*: *sampler*, *logit adjustment*."
    assert sentences_study.studied(every) == "This run studies all of them."
    for words in ("deferred", "LDAM", "*both*"):
        assert words not in sentences_study.remedy_effects(few)
        assert words in sentences_study.remedy_effects(every)
    assert "Post-hoc" not in sentences_study.curves(few)
    assert "Post-hoc" in sentences_study.curves(every)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "with: shifts."),
        ({"long_epochs": 9}, "shifts (the longer trainings of chapter 2 and all of chapter 3 with Cutout too)."),
        ({"long_epochs": 9, "backbone": "patch"}, "shifts (the longer trainings of chapter 2 with Cutout too)."),
        ({"long_epochs": 9, "cutout": 0.5, "study_cutout": 0.2}, "with: shifts, Cutout."),
        ({"study_cutout": 0.2}, "with: shifts (the imbalance study with Cutout too)."),
        (
            {"long_epochs": 9, "study_cutout": 0.2},
            "(the imbalance study, the longer trainings of chapter 2 and all of chapter 3 with Cutout too).",
        ),
        ({"long_epochs": 9, "cutout": 0.5, "long_cutout": 0.0}, "and all of chapter 3 without Cutout)."),
    ],
)
def test_augmentations_are_those_of_every_chapter(changes: dict, words: str, few: Source) -> None:
    params = SMALL.replace(crop=2, flip=False, **changes)
    plan = Plan(params, few)
    text = sentences_data.augmentation(SimpleNamespace(params=params, plan=plan), 2)
    assert text.endswith(words)
    studied = {config.cutout > 0 for config in plan.study_configs.values()}
    assert ("the imbalance study" in text) == (studied != {bool(params.cutout)})
    cut = {number: {config.cutout > 0 for config in runs.values()} for number, runs in plan.chapters.items()}
    assert ("all of chapter 3" in text) == (cut["03"] != {bool(params.cutout)})
    assert cut["04"] == {bool(params.cutout)}


@pytest.mark.parametrize(
    ("val", "words"),
    [
        ([10, 10], "10 for validation, 3 for training. In practice one would train on the former instead."),
        ([3, 3], "3 for validation, 3 for training. An epoch chosen by the former would bring their chance"),
        ([9, 2], "2 for validation, 3 for training. An epoch chosen by the former"),
    ],
)
def test_validation_has_more_of_the_rarest_class_or_not(val: list[int], words: str) -> None:
    assert words in sentences_study.validation_of_rare(torch.tensor([100, 3]), torch.tensor(val))


def test_of_no_validation_images_nothing_is_said() -> None:
    assert sentences_study.validation_of_rare(torch.tensor([100, 3]), torch.tensor([0, 0])) == ""


def test_twice_is_too_much_where_there_is_something_to_correct() -> None:
    effects = pd.DataFrame(
        {"remedy": ["both"] * 2, "images": [100, 10], "drawn": 0.5, "weight": [1, 10], "share": [1, 9]}
    )
    text = sentences_study.twice(effects)
    assert "comes 1.00 times as often" in text
    assert "counts 10 times as much: 9 times" in text
    assert sentences_study.twice(effects.assign(images=[100, 90])) == ""
    assert sentences_study.twice(effects.assign(remedy="sampler")) == ""


@pytest.mark.parametrize(
    ("imbalance", "order", "words"),
    [
        ("linear", "random", "The seed draws which"),
        ("linear", "classes", "cannot be told from how hard"),
        ("none", "random", ""),
    ],
)
def test_which_classes_are_rare_is_told_as_the_study_has_it(imbalance: str, order: str, words: str) -> None:
    text = sentences_data.which_are_rare(imbalance, order)
    assert words in text
    assert bool(text) == bool(words)


def test_sizes_are_said_to_change_where_they_do() -> None:
    whole, kept = np.array([100, 100]), np.array([100, 10])
    assert "200 images become 110." in sentences_data.class_sizes("linear", whole, kept, 10)
    assert "200 images, used as they come." in sentences_data.class_sizes("as they come", whole, whole, 10)
    few = sentences_data.class_sizes("exponential", whole, np.array([100, 9]), 10.5)
    assert "become 109; 10.5:1 was asked for, whole images make it 11.1:1." in few


# ---------------------------------------------------------------- 2 ViT


def history(accuracy: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"epoch": range(1, len(accuracy) + 1), "val_accuracy": accuracy})


def test_tokenizer_learns_faster_as_expected_or_does_not() -> None:
    histories = {"ViT": history([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), "conv": history([0.3, 0.4, 0.7, 0.7, 0.8, 0.8])}
    text = sentences_curves.learns_faster("ViT", "conv", histories, 1000)
    assert (
        "In these two runs *conv* learnt faster, as expected, than *ViT*, by validation images of the first 2" in text
    )
    assert "ahead in 2, behind in 0" in text
    assert text.endswith("*conv* reaches after epoch 3 the validation accuracy that *ViT* ends with, 60.0%.")
    text = sentences_curves.learns_faster("conv", "ViT", histories, 1000)
    assert "*ViT* learnt more slowly, against the expectation, than *conv*" in text
    assert text.endswith("*ViT* never reaches the validation accuracy that *conv* ends with, 80.0%.")
    text = sentences_curves.learns_faster("ViT", "conv", histories, 1000, " (seed 0)")
    assert text.startswith("In these two runs (seed 0) *conv* learnt")


@pytest.mark.parametrize(("quick", "images"), [(0.22, 1000), (0.3, 50)])
def test_lead_that_so_few_images_may_have_by_chance_is_not_called_faster(quick: float, images: int) -> None:
    histories = {"ViT": history([0.2]), "conv": history([quick])}
    text = sentences_curves.learns_faster("ViT", "conv", histories, images)
    assert text.startswith("Over the first epoch these two runs do not show which of *conv* and *ViT* learns faster")


def test_loss_falls_or_not() -> None:
    assert "falls from 2.00 (mean of the first five) to 1.00" in sentences_vit.by_hand([2.0] * 5 + [1.0] * 5)
    assert "did not lower the loss yet" in sentences_vit.by_hand([1.0] * 5 + [2.0] * 5)


@pytest.mark.parametrize(
    ("confidence", "accuracy", "words"),
    [(0.9, 0.95, "better than it says"), (0.95, 0.9, "more than it knows"), (0.95, 0.949, "about as good as it says")],
)
def test_model_is_as_good_as_it_says_or_not(confidence: float, accuracy: float, words: str) -> None:
    assert words in sentences_vit.confident("ViT", confidence, accuracy)


@pytest.mark.parametrize(("images", "words"), [(20, "cannot show a difference"), (2000, "it says more than it knows")])
def test_model_is_held_to_what_it_says_beyond_the_interval_of_its_accuracy(images: int, words: str) -> None:
    logits = np.log(np.tile([0.9, 0.1], (images, 1)))
    run = SimpleNamespace(predictions=(logits, (np.arange(images) % 5 == 0).astype(int)))  # one in five is wrong
    text = sentences_vit.how_sure("ViT (seed 0)", run)
    assert "On average ViT (seed 0) is 90.0% sure and 80.0% right" in text
    assert words in text


@pytest.mark.parametrize(("classes", "numbers"), [(MOST_LABELS, True), (MOST_LABELS + 1, False)])
def test_numbers_of_a_confusion_matrix_are_spoken_of_where_they_stand(classes: int, numbers: bool) -> None:
    recall = pd.Series(np.linspace(0.1, 1, classes), [f"class {k}" for k in range(classes)])
    text = sentences_vit.confusion("ViT", recall, 100)
    assert ("numbers are images, colour is" in text) == numbers
    assert f"Best recognised: class {classes - 1} (100%); worst: class 0 (10%)." in text


def test_classes_that_are_recognised_equally_well_are_all_named_or_counted() -> None:
    recall = pd.Series([1.0, 0.5, 1.0, 0.5, 1.0, 1.0], [*"abcdef"])
    assert "Best recognised: a, c, e and 1 more (100%); worst: b and d (50%)." in sentences_vit.confusion(
        "V", recall, 9
    )


def test_ring_is_spoken_of_where_validation_chose_an_epoch() -> None:
    assert "The ring marks" in sentences_linear.curves(lab_with(9), "2 epochs")
    assert sentences_linear.curves(lab_with(0), "2 epochs").endswith("(2 epochs, 90 images, seed 0).")
    kinds = RunConfig(epochs=2, lr=6e-4), RunConfig(lr=3e-3, backbone_rate=0.005, frozen=0.0)
    assert "(seed 0). Validation is done with tokens really" in sentences_tokens.curves(lab_with(9), *kinds)
    text = sentences_tokens.curves(lab_with(0), *kinds)
    assert "(seed 0). DynamicViT's predictors learn at chapter 2's rates, its ViT at 0.005 times these; the" in text
    assert text.endswith("the others at 0.2 times these. Its loss is of answers with tokens hidden.")
    still = sentences_tokens.curves(lab_with(0), kinds[0], kinds[1].replace(frozen=0.17))
    assert "times these, and not at all in the first 0.17 of the training; the" in still
    several = lab_with(0)
    several.plan.seeds = range(3)
    assert "2 epochs from the same weights within a seed (" in sentences_tokens.curves(several, *kinds)
    for told in (
        sentences_vit.curves(several),
        sentences_tokens.curves(several, *kinds),
        sentences_linear.curves(several, "2 epochs"),
    ):
        assert told.endswith(" Thin lines: further seeds, which hold out other images.")


def test_heads_share_the_work_or_look_at_the_same() -> None:
    assert sentences_vit.heads_differ(0.5, 4, 3) == (
        "The heads look at different places (mean cosine of two heads' maps of these 3 images 0.50)."
    )
    assert "nearly the same places" in sentences_vit.heads_differ(0.95, 4, 3)
    assert "nothing to share" in sentences_vit.heads_differ(1.0, 1, 3)


def test_neighbours_are_alike_or_not() -> None:
    config = RunConfig(image_size=16, start_size=0)
    assert "neighbours have become alike" in sentences_vit.places("ViT", config, 0.4, 0.0)
    assert "have hardly become alike" in sentences_vit.places("ViT", config, 0.06, -0.1)
    growing = config.replace(start_size=8)
    for near in (0.4, 0.06):  # what the interpolation of positions has done
        assert "stretched over the grid while the images were small" in sentences_vit.places("ViT", growing, near, 0.0)
    assert "neighbours have become alike" in sentences_vit.places("ViT", config.replace(start_size=16), 0.4, 0.0)
    assert "fixed, and alike" in sentences_vit.places("ViT", config.replace(positions="sincos"), 0.4, 0.0)


@pytest.mark.parametrize(
    ("accuracies", "words"),
    [
        ([0.78], "classifies 78.0% of the 100 test images correctly** (95% interval 70.0% to 85.0%, seed 4)."),
        ([0.78, 0.8], "79.0% of the 100 test images correctly** (mean over seeds 4 to 5, standard deviation 1.4"),
    ],
)
def test_chapters_answer_is_that_of_all_seeds(accuracies: list[float], words: str) -> None:
    runs = [
        SimpleNamespace(
            summary={"test": {"accuracy": share, "interval": (0.7, 0.85), "n": 100}, "parameters": 5},
            config=RunConfig(seed=4 + i),
        )
        for i, share in enumerate(accuracies)
    ]
    assert words in sentences_vit.answer(runs, 90)


def test_images_of_one_model_alone_are_told_as_a_sum_over_seeds() -> None:
    told = found(-0.01, 0.5) | {"only_a": 12345, "only_b": 9}
    text = sentences_vit.difference("A", "B", told)
    assert text.endswith("12,345 images are right with *A* alone, 9 with *B* alone.")
    assert sentences_vit.difference("A", "B", told | {"seeds": 3}).endswith("alone, summed over 3 seeds.")


def test_images_are_known_by_heart_or_a_model_overfits_or_not() -> None:
    ends = {
        name: pd.Series({"accuracy": known, "val_accuracy": other})
        for name, known, other in (("ViT", 0.99, 0.7), ("MLP", 0.66, 0.55), ("CNN", 1.0, 0.93), ("all", 0.8, 0.8))
    }
    both = sentences_curves.overfitting(ends)
    assert both.startswith("*ViT* knows the training images by heart; *MLP*: more than 10 points better at")
    assert sentences_curves.overfitting({"MLP": ends["MLP"]}).startswith("*MLP*: more than 10 points better")
    assert sentences_curves.overfitting({n: ends[n] for n in ("CNN", "all")}).startswith(
        "No model is more than 10 points"
    )


def test_learning_rates_are_those_of_all_optimisers() -> None:
    muon = RunConfig(optimizer="muon", lr=0.003, muon_lr=0.02)
    assert "learning rates 0.02 (Muon) and 0.003 (AdamW) at their peaks" in sentences_vit.recipe(muon)
    assert "learning rate 0.003 at its peak" in sentences_vit.recipe(muon.replace(optimizer="adamw"))


def test_training_is_told_with_growing_images_where_they_grow() -> None:
    assert "Images begin at 16×16" in sentences_vit.recipe(RunConfig(image_size=32, start_size=16))
    assert "begin" not in sentences_vit.recipe(RunConfig(image_size=32, start_size=0))


# ---------------------------------------------------------------- 3 fewer tokens


def test_predictors_are_held_against_random_tokens_for_the_same_weights() -> None:
    rows = pd.DataFrame([{"model": "DynamicViT", "accuracy": 0.8, "saved": 0.37, **FLAT}])
    pairs = pd.DataFrame([{"a": "DynamicViT", "b": "Random tokens", **found(-0.02, 0.001)}])
    text = sentences_tokens.learned(rows, pairs, "500 validation images", found(0.05, 0.001), True)
    assert "**80.0%** of the test images correctly with 37% fewer" in text
    told = (
        "With the same trained weights, on 500 validation images, which also chose its epoch, its own choice is ahead"
    )
    assert told in text
    assert "Each trained on with its own, on the test images, *DynamicViT* is ahead of *Random tokens* by 2.0" in text
    text = sentences_tokens.learned(rows, pairs, "500 training images", found(0.05, 0.001), False)
    assert "on 500 training images, its own choice is ahead of random tokens" in text


def order_of_loss(points: tuple[float, ...], p: float = 0.001, apart: float = 0.0) -> str:
    """Of ways whose points are lost; each of their pairs that is further apart has this p, the others 1."""
    ways = dict(zip(["Random tokens", "Top-K", "EViT", "ToMe", "DynamicViT"], points, strict=True))
    trained = pd.DataFrame({"model": list(ways), "difference": [value / 100 for value in ways.values()]})
    trained["seeds"] = [1, 1, 3, 3, 3]
    pairs = pd.DataFrame(
        [(a, b, (ways[b] - ways[a]) / 100) for a, b in itertools.combinations(ways, 2)],
        columns=["a", "b", "difference"],
    )
    return sentences_tokens.order_of_loss(trained, pairs.assign(p=np.where(pairs["difference"].abs() > apart, p, 1)))


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (
            (-5, -4, -3, -1, -2),
            ["As expected, merging loses least", "As expected, chance loses most", "As expected, learning, distilled"],
        ),
        (
            (-1, -2, -3, -4, -5),
            [
                "Against the expectation, *Random tokens* is ahead of *ToMe*; *Top-K* is ahead of *ToMe*; *EViT* is",
                "*Random tokens* is ahead of *DynamicViT*.",
                "Against the expectation, *Top-K* is ahead of *DynamicViT*; *EViT* is ahead of *DynamicViT*.",
            ],
        ),
    ],
)
def test_order_of_losses_is_the_expected_one_or_not(points: tuple, words: list[str]) -> None:
    text = order_of_loss(points)
    assert all(part in text for part in words)
    assert "Neither" not in text
    assert "(tests corrected for all 10 pairs, Holm)" in text
    assert text.count(" (first seed alone)") == 2
    assert f"*Top-K* {signed(points[1])} (first seed alone)" in text


def test_no_expectation_is_confirmed_or_refuted_inside_the_noise() -> None:
    text = order_of_loss((-5, -4, -3, -1, -2), 0.2)
    claims = "merging loses least; chance loses most; learning, distilled besides, beats the rules that go by attention"
    told = f"Trained on: Neither confirmed nor refuted: {claims}. As measured, in points: *ToMe* −1.0, "
    assert text.startswith(told)
    assert "xpect" not in text


def test_each_expectation_has_tests_of_its_own() -> None:
    """That chance is clearly behind says nothing of the others, which are close together."""
    text = order_of_loss((-2, -0.51, -0.5, -0.49, -0.5), apart=0.005)
    assert text.startswith("Trained on: As expected, chance loses most. Neither confirmed nor refuted: merging loses")
    assert "least (shown beside *Random tokens*, not beside *Top-K*, *EViT* and *DynamicViT*); learning" in text


def test_learning_that_beats_one_rule_of_attention_does_not_beat_them_all() -> None:
    text = order_of_loss((-2, -1.7, -0.6, -0.2, -0.9), apart=0.005)
    assert "beats the rules that go by attention (shown beside *Top-K*, not beside *EViT*)." in text


def test_top_k_that_loses_more_than_chance_before_training_is_named() -> None:
    rows = pd.DataFrame({"vit": ["conv", "patch"], "chosen": [2.8, 14.2], "random": [2.3, 7.6], "p": [0.2, 0.0001]})
    text = sentences_tokens.before(rows)
    assert text.endswith("more by Top-K than by chance: *patch* (14.2 against 7.6 points).")
    assert sentences_tokens.before(rows.assign(p=0.2)) == ""
    assert sentences_tokens.before(rows.assign(random=20.0)) == ""
    assert sentences_tokens.before(pd.DataFrame([])) == ""


def test_fewer_tokens_are_faster_or_not() -> None:
    speed = pd.DataFrame(
        {"speed_up": [1.2, 1.07, 0.9], "latency_ratio": [1.2, 1.3, 0.93]}, index=["Top-K", "EViT", "ToMe"]
    ).assign(speed_up_spread=0.08, latency_ratio_spread=0.08)
    text = sentences_tokens.is_it_faster(speed)
    assert text.startswith("In batches *Top-K* is shown to be faster than the ViT with all tokens; for one image none")
    exact = speed.assign(speed_up_spread=0.01, latency_ratio_spread=0.01)
    text = sentences_tokens.is_it_faster(exact)
    assert "In batches *Top-K* and *EViT* are shown" in text
    assert text.endswith("; for one image *ToMe* is.")
    small = sentences_tokens.is_it_faster(exact.assign(speed_up=1.04, latency_ratio=0.97))  # less than counts
    assert "In batches none is" in small
    assert small.endswith("; for one image none is.")
    assert "In batches all 3 ways to fewer are shown" in sentences_tokens.is_it_faster(speed.assign(speed_up=1.2))


@pytest.mark.parametrize(("stages", "words"), [([1, 2, 3], "blocks 2, 3 and 4 on"), ([2], "block 3 on")])
def test_reductions_are_told_where_they_are(stages: list[int], words: str) -> None:
    text = sentences_tokens.work(0.7, [16, 11, 7, 5][: len(stages) + 1], stages, 1.0)
    assert f"patches, fewer from {words}. What" in text


# ---------------------------------------------------------------- 4 linear attention


@pytest.mark.parametrize(
    ("of", "speed", "words"),
    [
        ((FLAT, FLAT), (0.5, 1.05), ["takes no accuracy that these", "tokens none is shown to be faster"]),
        (
            (LOST, FLAT),
            (1.5, 1.05),  # B's may be as far off
            ["takes accuracy with *A*, and none that can be shown", "tokens *A* is shown to be faster"],
        ),
        ((LOST, LOST), (1.5, 1.5), ["takes accuracy, whichever", "*A*; *B* are shown to be faster"]),
    ],
)
def test_linear_cost_takes_accuracy_or_not(of: tuple, speed: tuple, words: list[str]) -> None:
    speed = {name: (ratio, 0.1) for name, ratio in zip("AB", speed, strict=True)}
    against = dict(zip("AB", of, strict=True))
    text = sentences_linear.answer(against, speed, {"A": (1.2, 0.1), "B": (0.8, 0.1)}, 17)
    assert "at our 17 tokens" in text
    assert text.endswith("in batches, and *B* for one image.**")
    assert "and none for one image" in sentences_linear.answer(against, speed, dict.fromkeys("AB", (0.95, 0.1)), 17)
    assert all(part in text for part in words)
    each = sentences_linear.each(against, {"A": 0.9, "B": 0.8}, speed, 17).splitlines()
    for line, (ratio, _) in zip(each, speed.values(), strict=True):
        assert f"{ratio:.2f} times its throughput" in line


def test_linear_attention_loses_as_expected_or_not() -> None:
    against = {"Linear ViT": LOST, "InLine ViT": FLAT}
    text = sentences_linear.as_expected(against, {("Linear ViT", "InLine ViT"): WON})
    assert text.startswith("A loss is shown for *Linear ViT* (in points: *Linear ViT*")
    assert text.endswith("As expected, *InLine ViT* is ahead of *Linear ViT*, none of which has its local term.")
    text = sentences_linear.as_expected({"Linear ViT": WON, "InLine ViT": FLAT}, {("Linear ViT", "InLine ViT"): LOST})
    assert text.startswith("With few tokens little was to lose: no loss is shown")
    assert text.endswith("Against the expectation, *Linear ViT* is ahead of *InLine ViT*.")
    among = {("Linear ViT", "InLine ViT"): WON, ("Linformer ViT", "InLine ViT"): FLAT}
    among["Linear ViT", "Linformer ViT"] = WON  # which says nothing of InLine
    text = sentences_linear.as_expected(against | {"Linformer ViT": FLAT}, among)
    assert text.endswith("That *InLine ViT* does best is neither confirmed nor refuted.")


def test_step_says_that_it_changes_the_feature_map_where_it_does() -> None:
    same, other = sentences_linear.steps("elu", "elu"), sentences_linear.steps("elu", "identity")
    assert same == sentences_linear.CHANGES
    assert [step for step in other if step not in same] == [
        ("Linear ViT", "InLine ViT without its local term", "injective normalisation, with φ identity for elu")
    ]


def test_steps_that_help_are_those_that_are_shown() -> None:
    control = {sentences_linear.CONTROL: FLAT}
    text = sentences_linear.which_step({"kernel": LOST, "local": WON, "norm": FLAT} | control)
    assert text == "A gain is shown for *local*; a loss for *kernel*."
    text = sentences_linear.which_step({"local": WON, "norm": FLAT} | control)
    assert text == "A gain is shown for *local*, and no loss for any."
    text = sentences_linear.which_step({"kernel": LOST, "norm": FLAT} | control)
    assert text == "No step is shown to gain; a loss is shown for *kernel*."
    assert sentences_linear.which_step({"norm": FLAT} | control) == "No step is shown to gain, and none to lose."
    text = sentences_linear.which_step({"norm": FLAT})
    assert text.startswith("No step is shown to gain, and none to lose. InLine brings its local term")
    assert sentences_linear.CONTROL in {what for *_, what in sentences_linear.CHANGES}
    table = sentences_linear.steps_table({"local": WON, "norm": FLAT})
    assert table["shown"].tolist() == ["yes", "no"]


def test_classes_that_notice_are_named() -> None:
    rows = pd.DataFrame({"model": "A", "class": ["ant", "bee"], "difference": [-0.3, 0.0], "p": [0.001, 1]})
    assert sentences_linear.noticed(rows).endswith("can show 1, in points: *A*: ant −30.0.")
    gain = rows.assign(difference=[0.3, 0.1], p=0.001)
    assert sentences_linear.noticed(gain).endswith("*A*: ant +30.0, bee +10.0. No class is shown to lose.")
    assert sentences_linear.noticed(rows[1:]).endswith("can show none.")


def test_rows_that_do_not_sum_to_one_are_left_out_of_the_comparison_or_none_is() -> None:
    flat = {"ViT": 5.8, "Linear ViT": 1.2}
    text = sentences_linear.looking(flat | {"Linformer ViT": math.nan})
    assert "ViT 5.80, Linear ViT 1.20. The nearest to uniform is that of Linear ViT, the farthest that of ViT" in text
    assert "Of Linformer ViT there is no such number: drawn are its weights on the projected tokens times" in text
    assert sentences_linear.looking(flat).endswith("the farthest that of ViT.")


def test_tokens_suffice_for_each_formula_or_not() -> None:
    assert "Our 65 are enough for *kernel*; *InLine*; *Linformer*. Chapter" in sentences_linear.break_even(16, 65, 8)
    assert "Our 17 are enough for *kernel*; *Linformer*, not for *InLine*." in sentences_linear.break_even(16, 17, 8)
    assert "Our 10 are enough for none of them. Chapter" in sentences_linear.break_even(16, 10, 8)


# ---------------------------------------------------------------- 5 costs


def cost(macs: float, speed: float, parameters: float = 100) -> pd.Series:
    """A machine that is twice as fast in the second round changes no ratio."""
    return pd.Series({"macs": macs, "images_per_second_rounds": [speed, 2 * speed], "parameters": parameters})


def test_clock_follows_the_work_or_names_what_does_not() -> None:
    text = sentences_costs.formulas_agree(0.001, cost(100, 10), {"A": cost(50, 20), "B": cost(50, 10)})
    assert "torch's count of the explicit products agree (to 0.10% at worst)" in text
    assert "the clock follows the work for *A* (50% of the work, 50% of the time), and does not follow" in text
    assert text.endswith("the work for *B* (50% of the work, 100% of the time), to 5 points.")
    text = sentences_costs.formulas_agree(0.1, cost(100, 10), {"A": cost(50, 20)})
    assert "do not agree" in text
    assert text.endswith("the clock follows the work for *A* (50% of the work, 50% of the time), to 5 points.")
    noisy = cost(50, 10)
    noisy["images_per_second_rounds"] = [10.0, 60.0]
    text = sentences_costs.formulas_agree(0.1, cost(100, 10), {"B": cost(50, 10), "C": cost(50, 10), "D": noisy})
    assert "does not follow the work for *B* (50% of the work, 100% of the time); *C* (50% of" in text
    assert "and is not shown to follow the work for *D* (50% of the work," in text


def test_speed_at_some_tokens_is_a_ratio_within_rounds() -> None:
    """Of a machine that is ten times as slow in the last round."""
    times = {"softmax": [4.0, 4.0, 40.0], "kernelised": [2.0, 1.0, 20.0], "InLine": [8.0, 8.0, 80.0]}
    rows = [(kind, 64, turn, t) for kind, of_kind in times.items() for turn, t in enumerate(of_kind)]
    rounds = pd.DataFrame([*rows, ("softmax", 128, 0, 99.0)], columns=["attention", "tokens", "round", "seconds"])
    text = sentences_costs.at_tokens(64, "tiny", rounds)
    assert text.endswith(
        "against softmax attention: kernelised 2.00 (×÷ 3.5) times as fast, InLine 0.50 (± 0.0%) times as fast."
    )


def test_linear_attention_pays_somewhere_or_nowhere() -> None:
    memory = pd.Series({"softmax": 10, "kernelised": 20})
    crossed = {"kernelised": 64.0, "InLine": 1000.4, "Linformer": math.inf}
    text = sentences_costs.where_it_pays(crossed, 64, 192, memory, 4096)
    assert "kernelised at every size measured, InLine from 1,000 tokens on, Linformer at no size measured" in text
    assert "none of them saves any at 4,096 tokens" in text
    assert "at least one of them saves at" in sentences_costs.where_it_pays(
        crossed, 64, 192, memory[::-1] * [1, 9], 4096
    )


def test_parameters_are_added_or_not() -> None:
    few = {name: cost(1, 1, 101) for name in sentences_linear.LINEAR} | {"DynamicViT": cost(1, 1, 150)}
    text = sentences_costs.parameters(cost(1, 1), few)
    assert "As expected, linear attention adds almost no parameters at the size of ViT-Tiny." in text
    assert "Against its own: Linear ViT +1.0%" in text
    text = sentences_costs.parameters(cost(1, 1), few | {"Linformer ViT": cost(1, 1, 150)})
    assert text.startswith("Against the expectation, *Linformer ViT* adds many parameters at the size")


def test_keep_ratio_is_time_or_not() -> None:
    frame = pd.DataFrame({"keep_ratio": [1.0, 0.3], "macs": [100, 50]})
    # twice as fast, or as fast, in every round but the last, of a machine that changes its pace
    first = [10.0, 1.0, 8.0]
    for least, told in (
        ([20.0, 2.0, 16.0], "follows"),
        ([10.0, 1.0, 8.1], "does not follow"),
        ([20.0, 2.0, 4.0], "is not shown to follow"),
    ):
        text = sentences_costs.keep_ratios(frame.assign(images_per_second_rounds=[first, least]), 64)
        assert text.endswith(f"the clock {told}.")


def test_quoted_flops_are_right_as_macs_or_not() -> None:
    base = pd.Series({"parameters": 19e6, "macs": 1.25e9})
    assert "are right as a number of MACs" in sentences_costs.quoted(base, [0.4, 0.9], [0.7, 1.3])
    assert "wrong even" in sentences_costs.quoted(base * 2, [0.4, 0.9], [0.7, 1.3])

    assert "the quoted FLOPs 70% to 130% of the real MACs." in sentences_costs.quoted(base, [0.4, 0.9], [0.7, 1.3])


# ---------------------------------------------------------------- 6 comparison


def test_classes_are_helped_by_unlike_ideas_or_hard_for_all() -> None:
    recalls = pd.DataFrame({"cat": [0.5, 0.6, 0.9], "dog": [0.8, 0.9, 0.7]}, index=["ViT", "A", "B"])
    rows = [("A", "cat", 0.1, 0.001), ("A", "dog", 0.1, 0.9), ("B", "dog", 0.1, 0.001), ("B", "cat", -0.1, 0.9)]
    differences = pd.DataFrame(rows, columns=["model", "class", "difference", "p"])
    text = sentences_comparison.unlike_mistakes(differences, recalls)
    assert text.startswith("*cat* is recognised worst by 2 of the 3 models: there the difficulty lies in the data.")
    assert text.endswith("Shown to help different classes: *A* and *B*; none is shown to lose by any.")
    same = differences.assign(p=[0.001, 0.9, 0.9, 0.001], difference=[0.1, 0.1, 0.1, -0.1])
    assert sentences_comparison.unlike_mistakes(same, recalls).endswith(
        "Over the ViT only *A* is shown to help a class; a class is shown to lose by *B*."
    )
    both = differences.assign(p=0.001, difference=0.1)
    assert "every two have one in common" in sentences_comparison.unlike_mistakes(both, recalls)
    none = sentences_comparison.unlike_mistakes(differences.assign(p=0.9), recalls)
    assert "No model is shown to help any class over the ViT; none is shown to lose" in none


MODELS = pd.DataFrame(
    {
        "model": ["a", "b", "c"],
        "accuracy": [0.9, 0.89, 0.7],
        "images_per_second": [100.0, 300.0, 900.0],
        "test_images": 600,
    }
)


def pairs(*p: float) -> pd.DataFrame:
    names = [("a", "b"), ("a", "c"), ("b", "c")]
    return pd.DataFrame([{"a": a, "b": b, "difference": -0.02, "p": q} for (a, b), q in zip(names, p, strict=True)])


def test_model_to_take_is_the_fastest_of_those_that_are_as_good() -> None:
    text = sentences_comparison.answer(MODELS, pairs(0.5, 0.001, 0.001), speed_of(MODELS))
    assert "Take b, 89.0%: within one standard error of *a*, the most accurate, it classifies" in text
    assert "3.0 times as many images a second" in text
    assert "2 of the 3 differences" in text


def test_best_model_is_taken_where_it_is_ahead_or_the_fastest() -> None:
    assert "Take a, 90.0%: it is shown to be ahead of every other" in sentences_comparison.answer(
        MODELS, pairs(0.01, 0.01, 1), speed_of(MODELS)
    )
    slow = MODELS.assign(images_per_second=[400.0, 300.0, 900.0])
    text = sentences_comparison.answer(slow, pairs(0.5, 0.01, 0.01), speed_of(slow))
    assert "the only one within one standard error of it, is not shown to be faster by more than 8%" in text
    unknown = MODELS.assign(images_per_second=[float("nan"), 300.0, 900.0])  # a module of the reader's own
    text = sentences_comparison.answer(unknown, pairs(0.5, 0.01, 0.01), speed_of(unknown))
    assert text.startswith("**Take a, 90.0%: its accuracy is the highest, and ")


@pytest.mark.parametrize(("classes", "stars"), [(MOST_LABELS, True), (MOST_LABELS + 1, False)])
def test_stars_and_recalls_of_classes_are_spoken_of_where_they_stand(classes: int, stars: bool) -> None:
    rows = [(f"class {k}", 0.2, 0.01 if k < 2 else 1.0) for k in range(classes)]
    text = sentences_comparison.by_class(pd.DataFrame(rows, columns=["class", "difference", "p"]))
    assert ("stands below the class. A star marks" in text) == stars
    assert f"2 of {classes}." in text


def test_fast_model_beyond_one_standard_error_is_not_taken_though_no_test_shows_it_to_be_worse() -> None:
    many = MODELS.assign(test_images=10_000)  # an error of 0.3 points, and b is one point behind
    assert "Take a, 90.0%" in sentences_comparison.answer(many, pairs(0.5, 0.5, 0.5), speed_of(many))
    assert "Take b" in sentences_comparison.answer(MODELS, pairs(0.5, 0.5, 0.5), speed_of(MODELS))


def test_longer_trainings_say_which_of_them_has_cutout(few: Source) -> None:
    run = SimpleNamespace(summary={"parameters": 1234})
    found = {"difference": 0.1, "interval": (0.05, 0.15), "p": 0.001, "only_a": 1, "only_b": 40, "seeds": 1}
    for own, long, words in ((0.0, 0.2, "epochs, with Cutout (DeVries"), (0.2, 0.0, "epochs, without Cutout: ")):
        plan = Plan(SMALL.replace(long_epochs=9, cutout=own, long_cutout=long), few)
        lab = SimpleNamespace(plan=plan, compare=lambda reference, name: found, run_of=lambda config: run)
        assert words in sentences_vit.longer(lab)


def test_longer_and_larger_trainings_say_what_differs_and_what_it_brought(few: Source) -> None:
    plan = Plan(SMALL.replace(long_epochs=9, long_cutout=0.0, long_preset="tiny"), few)
    found = {"difference": 0.1, "interval": (0.05, 0.15), "p": 0.001, "only_a": 1, "only_b": 40, "seeds": 1}
    run = SimpleNamespace(summary={"parameters": 1234})
    lab = SimpleNamespace(plan=plan, compare=lambda reference, name: found, run_of=lambda config: run)
    more, larger, patches = sentences_vit.longer(lab).split("\n\n")
    assert more.startswith(f"**And with more training?** 9 epochs instead of {SMALL.epochs} epoch")
    assert "a larger ViT?** Width 128, 6 blocks, 1,234 parameters instead of 1,234, trained as long: " in larger
    assert "patches?** As large and trained as long, but for the tokenizer: " in patches
    for text, names in ((more, [*plan.longer][:2]), (larger, [*plan.longer][2:3]), (patches, [*plan.longer][3:])):
        assert all(f"*{name}* is ahead of *{plan.longer[name][0]}* by 10.0 points" in text for name in names)
    best = "ViT-Tiny, conv tokenizer, 9 epochs"
    assert sentences_vit.longest(lab).startswith(
        f"Trained longest, for 9 epochs: *{best}* is ahead of *ResNet-20, 9 epochs* by 10.0 points"
    )
    lab.plan = Plan(SMALL, few)
    assert sentences_vit.longest(lab) == sentences_vit.longer(lab) == ""


def test_tokenizer_is_said_to_bring_back_what_it_has_of_the_yardsticks_lead() -> None:
    def told(conv: float, net: float, p: float = 0.001) -> str:
        found = {name: {"difference": lead, "p": p} for name, lead in (("conv", conv), ("patch 2", 0.01), ("Net", net))}
        return sentences_vit.brought_back(found, ["conv", "patch 2"])

    assert told(0.06, 0.10) == "Of the 10.0 points by which *Net* is ahead, *conv* has 6.0 (60%)."
    assert told(0.06, 0.10, p=0.5) == told(0.06, -0.10) == told(-0.06, -0.01) == told(0.11, 0.10) == ""


@pytest.mark.parametrize(
    ("freedom", "told"), [(math.inf, "These are single runs"), (4, "(4 degrees of freedom); p is")]
)
def test_what_a_test_holds_over_is_told_with_what_it_is_known_from(freedom: float, told: str) -> None:
    plan = SimpleNamespace(chapters={"02": ["ViT", "Net"]}, repeats={"ViT": [0, 1, 2], "Net": [0]})
    lab = SimpleNamespace(plan=plan, training_noise=lambda *_: (0.1, freedom))
    text = sentences_vit.tested(lab, "ViT", "Net")
    assert told in text
    assert ("which we know from *ViT* (" in text) == (freedom == 4)


def test_inline_is_held_against_softmax_with_what_it_has_besides() -> None:
    assert "that the softmax ViT lacks" in sentences_linear.like_with_like({("ViT", "InLine ViT"): WON})
    pair = (sentences_linear.LOCAL, sentences_linear.LEAST)
    text = sentences_linear.like_with_like({("ViT", "InLine ViT"): WON, pair: FLAT})
    assert text.startswith("With the same local term on both sides, between *ViT with the local term* and *InLine ViT*")
    assert pair in {(a, b) for a, b, _ in sentences_linear.CHANGES}


def test_shapes_of_what_was_built_as_small_are_told(few: Source) -> None:
    plan = Plan(LabConfig(equal_cost=["dynamic_vit", "linear_vit"]), few)
    for chapter in ("03", "04"):
        text = sentences.shapes(plan, chapter)
        names = [name for name in plan.chapters[chapter] if ", as " in name]
        assert len(names) == 2
        for name in names:
            c = plan.config(name)
            assert f"*{name}*: {c.depth} blocks, width {c.dim}, MLP ratio {c.mlp_ratio:g}" in text
    assert sentences.shapes(Plan(LabConfig(equal_cost=[]), few), "03") == ""


def test_departures_from_what_was_published_are_told() -> None:
    published = RunConfig(preset="tiny")
    assert sentences_tokens.departures(published, RunConfig()) == ""
    changed = published.replace(stages=[2, 3, 4], backbone_rate=0.2, frozen=0.0, settle=0.33)
    text = sentences_tokens.departures(changed, RunConfig())
    for words in (
        "its ViT learns at 0.2 times the predictors' rate instead of 0.01; from the first step on, instead",
        "in the last 33% the best-scored tokens stay",
        "before blocks 3, 4 and 5, not at a quarter, a half and three quarters of the depth (2, 4 and 5 of 6).",
    ):
        assert words in text
    assert sentences_tokens.departures(published.replace(stages=[1, 3, 4]), RunConfig()) == ""  # those that it has
