"""Accuracy over keep ratios, what half a point costs, and a trained ViT that is reduced as it is."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from vitlab.analysis import sentences_tokens, tables, timing, tokens
from vitlab.config import RunConfig
from vitlab.data.batches import to_float
from vitlab.lab import Lab
from vitlab.lab.costs import Costs
from vitlab.models.registry import reductions


@pytest.mark.parametrize("name", reductions().values())
def test_trained_vit_can_be_reduced_as_it_is(name: str, done: Lab) -> None:
    run = done.load(done.plan.backbone)
    model = tokens.reduced(run, run.config.replace(model=name, keep_ratio=1.0))
    images = to_float(done.data.val.images).to("cpu")
    torch.testing.assert_close(model.cpu()(images), run.model().cpu()(images), atol=1e-5, rtol=1e-5)
    model.keep_ratio = 0.5
    assert not torch.allclose(model(images), run.model().cpu()(images))
    later = tokens.reduced(run, run.config.replace(model=name, stages=[run.config.depth - 1]))
    assert later.stages == [run.config.depth - 1]  # whatever the ViT's own configuration says


def test_only_dynamic_vit_has_something_to_learn() -> None:
    assert set(reductions()) - set(tokens.untrained()) == {"DynamicViT"}


def test_row_a_ratio_with_its_work_and_its_answers(done: Lab) -> None:
    run = done.load("ToMe")
    model, part = run.model(), done.data.val
    frame, answers = tokens.at_ratios(model, part, run.config, (1.0, 0.5), done.costs)
    assert frame["keep_ratio"].tolist() == [1.0, 0.5]
    assert frame["tokens"].tolist() == [4.0, (4 + 2 + 1 + 1) / 4]
    assert frame["block_macs"].iloc[1] < frame["block_macs"].iloc[0] < frame["macs"].iloc[0]
    assert frame["macs"].iloc[0] == sum(done.costs.macs(done.plan.config("ViT, fine-tuned")).values())
    for row in frame.itertuples():
        assert row.accuracy == (answers[row.keep_ratio].argmax(1) == part.labels.numpy()).mean()
        assert row.low <= row.accuracy <= row.high
    assert model.keep_ratio == run.config.keep_ratio  # as it was


def test_loss_that_is_just_allowed_is_allowed_whatever_rounding_makes_of_it() -> None:
    for images in (140, 180, 360, 5000):
        allowed = tokens.small_loss(images)
        lost = round(allowed * images)
        for right in range(images // 2, images - lost, max(1, images // 100)):
            curve = pd.DataFrame({"keep_ratio": [0.9, 0.5], "block_macs": [80, 40], "accuracy": right / images})
            whole = pd.Series({"block_macs": 100, "accuracy": (right + lost) / images})
            assert tokens.saving_at(curve, whole, allowed) == (pytest.approx(0.6), False)


@pytest.mark.parametrize(
    ("accuracy", "saved", "reached"),
    [
        ([0.900, 0.898, 0.896], 0.5, False),  # never lost: as much as was measured
        ([0.900, 0.895, 0.885], 0.25, True),  # just half a point at a quarter
        ([0.900, 0.890, 0.880], 0.125, True),
        ([0.880, 0.870, 0.860], 0.0, True),  # worse than the ViT everywhere
        ([0.890, 0.897, 0.885], 0.25 + 0.25 / 6, True),  # worse with all tokens alone, of which it was trained on fewer
        ([0.890, 0.890, 0.897], 0.5, False),
        ([0.910, 0.905, 0.885], 0.375, True),  # from half a point better to one and a half worse
        ([0.898, 0.896, 0.880], 0.25 + 0.25 / 16, True),  # at 0.002, 0.004 and 0.020
    ],
)
def test_saving_at_half_a_point_is_where_the_loss_is_crossed(
    accuracy: list[float], saved: float, reached: bool
) -> None:
    rows = {"keep_ratio": [1.0, 0.8, 0.6], "block_macs": [100, 75, 50], "accuracy": accuracy}
    curve = pd.DataFrame(rows).sample(frac=1, random_state=0)
    got = tokens.saving_at(curve, pd.Series({"block_macs": 100, "accuracy": 0.9}))
    assert got == (pytest.approx(saved, abs=1e-9), reached)


def test_losses_of_two_vits_are_tested_image_by_image() -> None:
    labels = np.zeros(200, int)
    right, wrong = np.tile([1.0, 0.0], (200, 1)), np.tile([0.0, 1.0], (200, 1))
    few = np.where(np.arange(200)[:, None] < 60, wrong, right)  # 60 images are lost
    one, other = {"": right, "A": right, "B": few}, {"": right, "A": few, "B": few}
    frame = tokens.losses_apart(one, other, labels).set_index("method")
    assert frame["difference"].tolist() == [-0.3, 0]
    assert frame.loc["A", "p"] < 1e-10
    assert frame.loc["B", "p"] == 1
    worse_whole = {"": few, "A": few, "B": few}  # what is wrong with all tokens is not lost
    assert tokens.losses_apart(one, worse_whole, labels).set_index("method")["difference"].tolist() == [0, 0.3]


APART = pd.DataFrame({"method": ["A", "B"], "difference": [-0.05, -0.02], "p": [0.001, 0.001]})
LONG, SHORT = {"conv": "9 epochs with Cutout", "patch": "3 epochs"}, {"conv": "3 epochs", "patch": "3 epochs"}


def test_overlapping_tokens_are_spared_more_easily_or_not_and_for_the_reason_given_or_not() -> None:
    text = sentences_tokens.overlap(APART, {"conv": 0.53, "patch": 0.54}, LONG)
    assert text.startswith("As expected, the ViT whose tokens overlap loses less, whichever of the 2 ways")
    assert "no more alike (0.53 and 0.54), so that this measure does not show the reason given." in text
    assert "differ otherwise as well (9 epochs with Cutout; 3 epochs)" in text
    text = sentences_tokens.overlap(APART.assign(p=[0.2, 0.001]), {"conv": 0.6, "patch": 0.5}, SHORT)
    assert text.startswith("That the ViT whose tokens overlap loses less is shown for *B* (Holm")
    assert text.endswith("Its neighbours are more alike (0.60 and 0.50), as the reason given has it.")
    assert "is shown for no way" in sentences_tokens.overlap(APART.assign(p=0.2), {"conv": 0.6, "patch": 0.5}, SHORT)
    against = sentences_tokens.overlap(APART.assign(difference=[0.05, -0.02]), {"conv": 0.6, "patch": 0.5}, SHORT)
    assert against.startswith("Against the expectation, the ViT whose tokens overlap loses more by *A* (")


def test_caption_says_how_the_vits_were_trained() -> None:
    config = RunConfig(epochs=2)
    longer = config.replace(cutout=0.25, preset="tiny")
    assert sentences_tokens.training(longer) == "width 128, 6 blocks, 2 epochs with Cutout"
    assert sentences_tokens.training(config) == "width 64, 4 blocks, 2 epochs"
    text = sentences_tokens.as_it_is("50 validation images", LONG, 4, 0.66)
    told = "Two trained ViTs as they are (conv tokenizer: 9 epochs with Cutout; patch tokenizer: 3 epochs; seed 4), at "
    assert text.startswith(f"{told}ρ = 0.66, 50 validation images.")
    alone = sentences_tokens.as_it_is("50 validation images", {"patch": "3 epochs"}, 0, 0.7)
    assert alone.startswith("A trained ViT as it is (patch tokenizer: 3 epochs; seed 0), at")


@pytest.mark.parametrize(("images", "told"), [(tokens.TRACED + 1, True), (tokens.TRACED, False)])
def test_random_tokens_repeat_where_there_are_more_images_than_one_batch(images: int, told: bool) -> None:
    text = sentences_tokens.places(images, {"ToMe": 1.5}, 0)
    repeats = f"ToMe 1.50; random tokens, drawn by place in a batch of {tokens.TRACED}, repeat."
    assert text.endswith(repeats if told else "ToMe 1.50.")


def test_loss_of_less_than_two_images_is_not_told_from_none() -> None:
    assert tokens.small_loss(140) == pytest.approx(2 / 140)
    assert tokens.small_loss(5000) == tokens.LOSS


def test_curve_without_all_tokens_begins_at_the_vit_itself() -> None:
    curve = pd.DataFrame({"keep_ratio": [0.8, 0.6], "block_macs": [80, 60], "accuracy": [0.890, 0.880]})
    assert tokens.saving_at(curve, pd.Series({"block_macs": 100, "accuracy": 0.9})) == (pytest.approx(0.1), True)


def test_weights_trained_with_predictors_can_be_read_with_random_tokens(done: Lab) -> None:
    dynamic = done.load("DynamicViT")
    weights = tokens.reduced(dynamic, dynamic.config.replace(model="random_vit")).state_dict()
    assert all(torch.equal(weights[n], w) for n, w in dynamic.weights().items() if not n.startswith("predictors."))


def test_speeds_are_those_that_were_measured_together(done: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative to the reference within each round, the spread that of the rounds."""
    rounds = {"vit": [100.0, 50.0, 80.0], "topk_vit": [150.0, 80.0, 120.0]}

    def cost(self: Costs, config: RunConfig, only_read: bool = False) -> dict:
        times = rounds[config.model]
        return {"latency_ms": 1.0, "images_per_second": times[2], "images_per_second_rounds": times} | {
            "latency_rounds_ms": [1 / time for time in times]
        }

    monkeypatch.setattr(Costs, "of", cost)
    frame = tables.speeds(done, ["ViT, fine-tuned", "Top-K"], "ViT, fine-tuned")
    assert frame.loc["ViT, fine-tuned", ["latency_ratio", "speed_up"]].tolist() == [1, 1]
    assert frame.loc["Top-K", "images_per_second"] == 120
    assert frame.loc["Top-K", "speed_up"] == pytest.approx(1.5)  # of 1.5, 1.6, 1.5
    assert frame.loc["Top-K", "speed_up_spread"] == timing.ratio([150, 80, 120], [100, 50, 80])[1]
    assert frame.loc["Top-K", "latency_ratio"] == pytest.approx(1 / 1.5)


def test_tokens_that_were_needed_are_told_by_place_and_by_what_it_made_of_accuracy() -> None:
    middle = {"Top-K": 1.9, "EViT": 2.1, "DynamicViT": 0.6, "Random tokens": 1.32}
    both = list(itertools.combinations(middle, 2))
    pairs = pd.DataFrame([{"a": a, "b": b, "difference": -0.01, "p": 1.0} for a, b in both])
    text = sentences_tokens.needed(middle, pairs)
    assert "*Top-K* (1.90) and *EViT* (2.10) keep the middle of the image more than its border; *Dynam" in text
    assert "*DynamicViT* (0.60) keeps the border of the image more than its middle; *Rand" in text
    assert "*Random tokens* (1.32) keeps all places alike (how often" in text
    assert text.endswith("differ in accuracy: which place is kept is not shown to matter.")
    alike = pairs.assign(p=[0.001 if pair == ("Top-K", "EViT") else 1.0 for pair in both])  # they keep the same
    assert sentences_tokens.needed(middle, alike) == text
    chance = pairs.assign(p=[0.001 if pair == ("EViT", "Random tokens") else 1.0 for pair in both])
    assert sentences_tokens.needed(middle, chance).endswith("ahead is *EViT* of *Random tokens*.")
    assert sentences_tokens.needed({"Top-K": 1.9}, pairs[:0]).endswith("over the mean place).")


def test_coverage_is_of_the_whole_grid(done: Lab) -> None:
    kept = tokens.coverage(done.load("Top-K").model(), done.data.test)
    assert kept["held"].sum() == pytest.approx(1)  # one of four patches is left
    assert 0 < kept["distance"] < 2**0.5
    merged = tokens.coverage(done.load("ToMe").model(), done.data.test, limit=7)
    assert merged["distance"] == 0
    assert merged["held"].unique().tolist() == pytest.approx([0.25])


@pytest.mark.parametrize("order", ["by class", "by turns"])
def test_images_looked_at_come_evenly_from_all_classes(order: str) -> None:
    labels = torch.arange(10).repeat(30)
    labels = labels.sort().values if order == "by class" else labels
    for limit, each in ((50, 5), (10, 1), (1000, 30)):
        places = tokens.evenly(labels, limit)
        assert labels[places].bincount(minlength=10).tolist() == [each] * 10
        assert len(places.unique()) == len(places)
    assert tokens.evenly(labels[:0], 8).tolist() == []


def test_coverage_of_class_folders_is_that_of_all_classes(done: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    part, seen, trace = done.data.test, [], tokens.attention.trace
    assert torch.equal(part.labels, torch.arange(10).repeat_interleave(6))  # as those of class folders are
    monkeypatch.setattr(tokens.attention, "trace", lambda model, images: seen.append(images) or trace(model, images))
    tokens.coverage(done.load("Top-K").model(), part, limit=10)
    assert torch.equal(torch.cat(seen), part.images_at(slice(0, 60, 6)))


def test_each_way_is_compared_with_the_same_vit_and_tests_are_corrected(done: Lab) -> None:
    frame = tables.reductions(done).set_index("model")
    assert set(frame.index) == set(reductions())
    for name, row in frame.iterrows():
        alone = done.compare("ViT, fine-tuned", name)
        assert row["difference"] == alone["difference"]
        assert alone["p"] <= row["p"] <= min(1, len(frame) * alone["p"])
        assert row["accuracy"] == done.load(name).summary["test"]["accuracy"]
    assert np.isclose(frame.loc["Top-K", "saved"], frame.loc["Random tokens", "saved"])
    assert frame.loc["DynamicViT", "saved"] < frame.loc["Top-K", "saved"]  # its predictors


def test_accuracy_of_a_way_is_the_mean_over_its_seeds(done: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lab, "load_seeds", lambda lab, name: [lab.load(name), lab.load("ViT")])
    row = tables.reductions(done).set_index("model").loc["Top-K"]
    both = [done.load(name).summary["test"]["accuracy"] for name in ("Top-K", "ViT")]
    assert row["accuracy"] == pytest.approx(np.mean(both))
    assert row["seeds"] == 2


def test_pairs_of_some_models_are_corrected_for_these_alone(done: Lab) -> None:
    frame = tables.pairs(done, ["Top-K", "ToMe", "ViT"])
    assert list(zip(frame["a"], frame["b"], strict=True)) == [("Top-K", "ToMe"), ("Top-K", "ViT"), ("ToMe", "ViT")]
    for row in frame.itertuples():
        alone = done.compare(row.a, row.b)["p"]
        assert alone <= row.p <= min(1, 3 * alone)
