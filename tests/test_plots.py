"""Every figure draws what it was given, with its axes named; and no figure is there that no notebook shows."""

import inspect
from collections.abc import Callable
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from vitlab.analysis import pictures, plots, study_plots, theme
from vitlab.analysis.chart_parts import in_percent
from vitlab.analysis.drawing import drawing
from vitlab.analysis.figure_data import data_of
from vitlab.analysis.study import SCORES
from vitlab.machine import ROOT
from vitlab.report import paper

IMAGES = torch.arange(6 * 8 * 8).remainder(251).view(6, 1, 8, 8).to(torch.uint8)
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
CLASSES = ("ant", "bee", "cat")
HISTORY = pd.DataFrame(
    {"epoch": [1, 2, 3], "cls": [2.0, 1.5, 1.2], "val_accuracy": [0.3, 0.6, 0.5], "seconds": [30.0, 60.0, 90.0]}
)
STUDY = pd.DataFrame(
    {
        "remedy": ["none", "none", "class_weights", "class_weights"],
        "macro_f1": [0.5, 0.6, 0.7, 0.8],
        "accuracy": [0.6, 0.6, 0.7, 0.8],
        "calibration_error": [0.1, 0.3, 0.2, 0.2],
        "recall_common": 0.9,
        "recall_middle": 0.5,
        "recall_rare": 0.2,
    }
)
EFFECTS = pd.DataFrame(
    {"remedy": ["none"] * 3 + ["both"] * 3, "class": [*CLASSES] * 2, "drawn": 0.3, "weight": 1.0, "share": 0.3}
).assign(margin=0.0)
CURVE = pd.DataFrame({"step": [10, 20, 30], "val_macro_f1": [0.2, 0.4, 0.5]})
DIFFERENCES = pd.DataFrame({"model": "Linear ViT", "class": ["ant", "bee"], "difference": [-0.1, 0.3], "p": [1, 0.01]})
RELIABILITY = pd.DataFrame(
    {"images": [30, 70], "confidence": [0.5, 0.9], "accuracy": [0.4, 0.95], "low": [0.3, 0.9], "high": [0.6, 0.98]}
)
KEPT = pd.DataFrame(
    {
        "keep_ratio": [1.0, 0.5],
        "accuracy": [0.9, 0.8],
        "low": [0.85, 0.7],
        "high": [0.95, 0.9],
        "macs": [4e6, 2e6],
        "latency_rounds_ms": [[2.0, 4.0], [1.0, 2.0]],
        "images_per_second_rounds": [[100.0, 10.0, 80.0], [150.0, 15.0, 40.0]],  # of a machine that changes its pace
    }
)
GROWTH = pd.DataFrame(
    {
        "attention": ["softmax", "kernelised"] * 2,
        "tokens": [16, 16, 64, 64],
        "macs": 1e6,
        "seconds": 1e-3,
        "bytes": 2**20,
    }
)
RESULTS = pd.DataFrame(
    {
        "model": ["ViT", "Linear ViT"],
        "accuracy": [0.9, 0.8],
        "accuracy_low": [0.85, 0.75],
        "accuracy_high": [0.93, 0.84],
        "macs": [2e6, 1e6],
        "latency_ms": [2.0, 1.0],
        "images_per_second": [500.0, 800.0],
        "training_seconds": [60.0, 90.0],
    }
)

# name -> (figure, axes that it has, words that can be read in it)
FIGURES: dict[str, tuple[Callable[[], Figure], int, list[str]]] = {
    "class_counts": (
        lambda: plots.class_counts({"before": torch.tensor([9, 9, 9]), "after": torch.tensor([9, 5, 1])}, CLASSES),
        1, ["class", "training images", "before", "after", "ant", "5"],
    ),
    "sample_grid": (lambda: pictures.sample_grid(IMAGES, LABELS, CLASSES, columns=2), 1, ["ant", "bee", "cat"]),
    "augmentation_grid": (
        lambda: pictures.augmentation_grid(IMAGES[:4], {"flip": IMAGES[:4].flip(3)}), 1, ["original", "flip"],
    ),
    "remedy_effects": (
        lambda: study_plots.remedy_effects(EFFECTS),
        4, ["share of the images drawn", "weight in the loss", "margin asked for (logits)", "none", "bee"],
    ),
    "remedy_scores": (
        lambda: study_plots.remedy_scores(STUDY),
        4, ["macro F1", "recall, middle", "recall, rarest", "none", "class weights", "one seed", "without a remedy"],
    ),
    "confusions": (
        lambda: study_plots.confusions(
            {"none": np.array([[3, 1], [0, 0]]), "ldam_drw": np.eye(2)}, ["9 images", "1 image"]
        ),
        2, ["none", "LDAM-DRW", "75", "25", "100", "9 images", "answer", "true class"],
    ),
    "f1_over_training": (
        lambda: study_plots.f1_over_training({"none": CURVE, "ldam_drw": CURVE}, 0.8),
        1, ["training step", "macro F1, validation", "LDAM-DRW", "deferred weights begin"],
    ),
    "accuracy_against_calibration": (
        lambda: study_plots.accuracy_against_calibration(STUDY),
        1, ["none", "class weights", "test accuracy: up is better"],
    ),
    "patches_as_tokens": (lambda: pictures.patches_as_tokens(IMAGES[0], 4), 2, ["image", "1 – 4", "tokens 1 – 4 of 4"]),
    "filters_and_positions": (
        lambda: pictures.filters_and_positions(torch.randn(4, 3, 2, 2), torch.randn(4, 8), 2),
        6, ["1, 2", "cosine similarity"],
    ),
    "broken": (
        lambda: pictures.broken(
            IMAGES[:2], torch.tensor([[[0, -1], [1, 2]]] * 2), ["ant", "bee"], ["bee", "ant"]
        ),
        4, ["ant\n→ bee", "bee\n→ ant"],
    ),
    "training_curves": (
        lambda: plots.training_curves({"ViT": HISTORY}, {"ViT": 2}),
        3, ["epoch", "validation accuracy", "minutes of training"],
    ),
    "confusion": (
        lambda: plots.confusion(np.array([[5, 1, 0], [0, 7, 2], [0, 0, 3]]), CLASSES), 2, ["true class", "7", "bee"],
    ),
    "reliability": (
        lambda: plots.reliability({"ViT": RELIABILITY}, {"ViT": 0.123}),
        2, ["confidence", "test accuracy", "ViT, ECE 0.123", "calibrated", "share of the test images"],
    ),
    "attention_maps": (
        lambda: pictures.attention_maps(IMAGES[:2], torch.rand(2, 3, 2, 2), torch.rand(2, 2, 2), ["ant", "bee"]),
        10, ["rollout", "head 3", "bee"],
    ),
    "attention_side_by_side": (
        lambda: pictures.attention_side_by_side(
            IMAGES[:2], {"softmax": torch.rand(2, 2, 2), "InLine": torch.rand(2, 2, 2)}, ["ant", "bee"]
        ),
        7, ["softmax", "InLine", "bee", "weight over the mean weight"],
    ),
    "mistakes": (
        lambda: pictures.mistakes(IMAGES[:2], ["ant", "bee"], ["cat", "cat"], [0.99, 0.5]), 6, ["ant\n→ cat\n99% sure"],
    ),
    "token_groups": (
        lambda: pictures.token_groups(
            IMAGES[:2], {"Top-K": torch.tensor([[0, 1, 2, -1]] * 2), "ToMe": torch.tensor([[0, 0, 1, 1]] * 2)}, 2,
            ["ant", "bee"],
        ),
        6, ["ant", "bee", "input", "Top-K", "ToMe"],
    ),
    "places_held": (
        lambda: pictures.places_held({"Top-K": torch.rand(4, 4), "ToMe": torch.rand(4, 4)}),
        3, ["Top-K", "ToMe", "tokens a patch"],
    ),
    "accuracy_over_tokens": (
        lambda: plots.accuracy_over_tokens(
            {"conv": KEPT.assign(method="ToMe", tokens=[64, 40]), "patch": KEPT.assign(method="EViT", tokens=[64, 40])},
            {"conv": 0.92, "patch": 0.9}, pd.Series({"ToMe": 1.4, "EViT": 1.5}),
        ),
        3, ["accuracy", "conv", "patch", "ToMe", "EViT", "tokens a block, mean"],
    ),
    "attention_matrices": (
        lambda: pictures.attention_matrices({"softmax": torch.rand(4, 4), "kernel": torch.rand(4, 4)}),
        3, ["softmax", "kernel", "query token", "key token"],
    ),
    "macs_by_component": (
        lambda: plots.macs_by_component({"ViT": {"mlp": 2, "head": 1}, "Linear": {"mlp": 2, "head": 1}}),
        1, ["ViT", "Linear", "mlp", "million MACs per image"],
    ),
    "growth": (
        lambda: plots.growth(GROWTH, {"kernelised": 32.0}),
        3, ["tokens", "million MACs", "milliseconds", "MiB at the peak", "softmax"],
    ),
    "cost_by_keep_ratio": (lambda: plots.cost_by_keep_ratio(KEPT), 1, ["MACs", "latency, batch 1", "throughput"]),
    "accuracy_against_cost": (
        lambda: plots.accuracy_against_cost(RESULTS), 3, ["test accuracy", "million MACs", "Linear ViT", "frontier"],
    ),
    "recall_by_class": (
        lambda: plots.recall_by_class({"none": np.array([0.1, 0.5, 0.9]), "class_weights": [0.2, 0.4, 0.9]}, CLASSES),
        1, ["test recall", "none", "class weights", "cat"],
    ),
    "explored": (
        lambda: pictures.explored(
            IMAGES[0], "an ant", pd.Series([0.2, 0.7, 0.1], CLASSES),
            {"rollout": torch.rand(2, 2), "stage 1: 1 of 4": torch.tensor([[0, -1], [-1, -1]])},
        ),
        6, ["an ant", "probability", "bee", "rollout", "stage 1: 1 of 4"],
    ),
    "hero": (
        lambda: plots.hero(RESULTS), 2, ["test accuracy", "million multiply-adds", "Linear ViT", "frontier"],
    ),
    "recall_differences": (
        lambda: plots.recall_differences(DIFFERENCES, pd.Series([0.5, 1.0], ["ant", "bee"], name="ViT")),
        2, ["Linear ViT", "bee\n100%", "+30*", "−10", "difference (points)", "class, and its recall by ViT"],
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.mark.parametrize(("crossover", "marked"), [(32.0, [32.0]), (16, []), (np.inf, [])])
def test_growth_marks_the_crossover_where_it_can_be_seen(crossover: float, marked: list[float]):
    lines = plots.growth(GROWTH, {"kernelised": crossover}).axes[1].lines
    assert [line.get_xdata()[0] for line in lines if line.get_linestyle() == ":"] == marked


def drawn(name: str) -> Figure:
    figure = FIGURES[name][0]()
    figure.canvas.draw()
    return figure


def texts(figure: Figure) -> set[str]:
    return {text.get_text() for text in figure.findobj(plt.Text)}


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_figure_has_its_axes_and_its_words(name: str) -> None:
    figure = drawn(name)
    _, axes, words = FIGURES[name]
    assert isinstance(figure, Figure)
    assert len(figure.axes) == axes
    assert set(words) <= texts(figure)
    assert figure.get_figwidth() == theme.WIDTH


def figure_functions() -> dict[str, str]:
    """Name -> how a notebook calls it."""
    found = {}
    for module in (plots, study_plots, pictures):
        for name, f in inspect.getmembers(module, inspect.isfunction):
            own = f.__module__ == module.__name__ and not name.startswith("_")
            if own and f.__annotations__.get("return") in (Figure, "Figure"):
                found[name] = f"{module.__name__.rpartition('.')[2]}.{name}("
    return found


def test_every_figure_is_tested_here() -> None:
    assert figure_functions().keys() == FIGURES.keys()


def test_every_figure_is_shown_in_a_notebook_or_on_page_one() -> None:
    used = (ROOT / "vitlab" / "report" / name for name in ("explorer.py", "title.py"))  # one is in a notebook
    places = [*(ROOT / "notebooks").glob("*.ipynb"), *used]
    shown = "".join(path.read_text(encoding="utf-8") for path in places)
    assert not [call for call in figure_functions().values() if call not in shown]


def test_patches_are_numbered_in_the_order_of_the_tokens() -> None:
    image = torch.zeros(1, 4, 4, dtype=torch.uint8)
    image[0, :2, 2:] = 255  # token 2 of 4: top right
    _, patches = pictures.patches_as_tokens(image, 2).findobj(plt.matplotlib.image.AxesImage)
    grey, opaque = patches.get_array()[..., 0], patches.get_array()[..., 3] > 0
    assert [int(grey[:2, at : at + 2].max()) for at in range(0, 12, 3)] == [0, 255, 0, 0]  # with gaps of one
    assert opaque.sum() == 16


def test_of_more_patches_than_can_be_seen_the_first_ones_are_drawn() -> None:
    figure = pictures.patches_as_tokens(torch.zeros(3, 64, 64, dtype=torch.uint8), 2)
    texts = {text.get_text() for text in figure.findobj(plt.Text)}
    assert {"tokens 1 – 256 of 1,024", "1 – 16", "241 – 256"} <= texts
    assert figure.get_figheight() <= paper.IMAGE_BOX[1] / 96


def test_pictures_stand_in_the_rows_of_their_classes() -> None:
    images, labels = torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 4, 4), [1, 0, 1]
    drawn = pictures.sample_grid(images, torch.tensor(labels), ("ant", "bee"), 2).axes[0]
    rows = dict(zip([label.get_text() for label in drawn.get_yticklabels()], drawn.get_yticks(), strict=True))
    pixels = drawn.images[0].get_array()[:, :, ::3]  # (rows, columns, red and alpha)
    shown = {name: [tuple(map(int, pixels[int(at), column])) for column in (2, 7)] for name, at in rows.items()}
    assert shown == {"ant": [(20, 255), (0, 0)], "bee": [(10, 255), (30, 255)]}  # nothing is where none is


def test_dropped_patches_are_white() -> None:
    black, where = torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.tensor([[-1, 0, -1, -1]])
    figure = pictures.token_groups(black, {"Top-K": where}, 2, ["black"])
    pixels = figure.axes[1].images[0].get_array()
    assert pixels.tolist() == [[255, 255, 0, 0], [255, 255, 0, 0], [255] * 4, [255] * 4]
    hatched = [patch for patch in figure.axes[1].patches if patch.get_hatch()]
    assert [patch.get_xy() for patch in hatched] == [(-0.5, -0.5), (-0.5, 1.5), (1.5, 1.5)]


def test_patches_of_one_token_have_its_mean_colour_and_a_border_around_them() -> None:
    image = torch.tensor([[0, 0, 100, 100], [0, 0, 100, 100], [7, 8, 50, 50], [9, 10, 50, 50]], dtype=torch.uint8)
    figure = pictures.token_groups(image[None, None], {"ToMe": torch.tensor([[0, 0, 1, 2]])}, 2, ["x"])
    shown = figure.axes[1]
    assert shown.images[0].get_array().tolist() == [[50] * 4, [50] * 4, [7, 8, 50, 50], [9, 10, 50, 50]]
    borders = {tuple(map(tuple, line.tolist())) for line in shown.collections[0].get_segments()}
    below = {((-0.5, 1.5), (1.5, 1.5)), ((1.5, 1.5), (3.5, 1.5))}
    assert borders == below | {((1.5, 1.5), (1.5, 3.5))}  # none between the two that are one


def test_confusion_is_coloured_by_the_share_of_the_true_class() -> None:
    figure = plots.confusion(np.array([[30, 10], [0, 0]]), ("a", "b"))
    colours = figure.axes[0].collections[0].get_array()
    assert np.asarray(colours).flatten().tolist() == [0.75, 0.25, 0, 0]  # a class without images divides by nothing


def test_curve_rings_the_epoch_that_was_kept() -> None:
    figure = plots.training_curves({"ViT": HISTORY}, {"ViT": 2})
    ring = figure.axes[1].lines[-1]
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([2], [0.6])
    ring = figure.axes[2].lines[-1]
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([HISTORY["seconds"][1] / 60], [0.6])


def test_one_epoch_is_one_tick() -> None:
    figure = plots.training_curves({"ViT": HISTORY.iloc[:1]}, {"ViT": 1})
    figure.draw_without_rendering()
    for axis in figure.axes[:2]:
        low, high = axis.get_xlim()
        assert [tick for tick in axis.get_xticks() if low <= tick <= high] == [1]


def test_without_validation_the_clock_has_the_loss() -> None:
    figure = plots.training_curves({"ViT": HISTORY[["epoch", "seconds", "cls"]]}, {"ViT": 2})
    panels = data_of(figure).groupby("panel")["y"].first()
    assert set(panels.index) == {"training cross-entropy over epoch", "training cross-entropy over minutes of training"}
    assert panels.nunique() == 1


def test_names_of_many_classes_are_all_in_the_data_and_every_fifth_along_the_axis() -> None:
    classes = tuple(f"class {i}" for i in range(100))
    counts = plots.class_counts({"all": torch.arange(100)}, classes)
    recalls = plots.recall_by_class({name: np.linspace(0, 1, 100) for name in ("ViT", "a", "b")}, classes)
    for figure, axis in ((counts, counts.axes[0].xaxis), (recalls, recalls.axes[0].yaxis)):
        figure.draw_without_rendering()
        written = [label.get_text() for label in axis.get_ticklabels() if label.get_text()]
        assert written == list(classes[::5])
        assert set(classes) <= {*data_of(figure)["x"], *data_of(figure)["y"]}
    shares = data_of(plots.confusion(np.eye(100), classes))
    assert set(shares["x"]) == set(shares["y"]) == set(classes)


@pytest.mark.parametrize("others", range(1, 9))
def test_each_column_of_recalls_has_its_scale(others: int) -> None:
    names = ["ViT", *(f"model {i}" for i in range(others))]
    figure = plots.recall_by_class({name: np.linspace(0, 1, 3) for name in names}, CLASSES)
    figure.draw_without_rendering()
    scales = [
        any(label.get_visible() and label.get_text() for label in axis.get_xticklabels()) and axis.axison
        for axis in figure.axes
    ]
    assert sum(scales) == min(3, others)


def test_line_across_a_panel_is_no_data() -> None:
    assert set(data_of(study_plots.remedy_scores(STUDY))["series"]) == {"mean", "one seed"}


def test_further_seeds_are_drawn_thin_in_their_models_colour() -> None:
    figure = plots.training_curves({"ViT": HISTORY}, {"ViT": 2}, {"ViT": [HISTORY, HISTORY]})
    model, first, second, _ = figure.axes[1].lines
    assert {line.get_color() for line in (model, first, second)} == {model.get_color()}
    assert first.get_linewidth() < model.get_linewidth()


def test_runs_of_several_seeds_are_dots_beside_their_mean() -> None:
    runs = pd.DataFrame({"model": ["ViT", "ViT", "Linear ViT"], "accuracy": [0.9, 0.94, 0.8]})
    without, axis = (plots.accuracy_against_cost(RESULTS, seeds).axes[0] for seeds in (None, runs))
    [dots] = [line for line in axis.lines if line.get_marker() == "."]  # none of the model that has one run
    assert list(dots.get_ydata()) == [0.9, 0.94]
    assert len(set(dots.get_xdata())) == 1
    assert len(axis.lines) == len(without.lines) + 1


SEVERAL = pd.DataFrame({"model": ["ViT", "ViT", "Linear ViT"], "accuracy": [0.9, 0.94, 0.8]})
# name -> (figure of several seeds, series among its numbers, names in its legend)
SERIES: dict[str, tuple[Callable[[], Figure], set[str], list[str]]] = {
    "training_curves": (
        lambda: plots.training_curves({"ViT": HISTORY}, {"ViT": 2}, {"ViT": [HISTORY]}),
        {"ViT", "ViT, another seed"}, ["ViT"],
    ),
    "accuracy_over_tokens": (FIGURES["accuracy_over_tokens"][0], {"ToMe", "EViT"}, ["ToMe", "EViT"]),
    "accuracy_against_cost": (
        lambda: plots.accuracy_against_cost(RESULTS, SEVERAL),
        {"ViT", "Linear ViT", "ViT, one seed", "frontier"}, ["ViT", "Linear ViT", "frontier"],
    ),
    "accuracy_against_calibration": (
        lambda: study_plots.accuracy_against_calibration(STUDY),
        {"none", "class weights", "none, one seed", "class weights, one seed"}, ["none", "class weights"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SERIES)
def test_every_series_has_a_name_among_the_numbers_and_a_model_one_in_the_legend(name: str) -> None:
    draw, series, named = SERIES[name]
    figure = draw()
    assert set(data_of(figure)["series"]) == series
    [legend] = figure.legends
    assert sorted(text.get_text() for text in legend.get_texts()) == sorted(named)


def test_share_of_an_axis_is_not_rounded() -> None:
    """Ticks of 2.5% would else be two and three points apart."""
    _, axis = plt.subplots()
    in_percent(axis.yaxis)
    axis.set(ylim=(0.4, 0.5), yticks=[0.4, 0.425, 0.45, 0.475, 0.5])
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["40%", "42.5%", "45%", "47.5%", "50%"]


def test_curve_of_two_epochs_is_no_guide() -> None:
    values = data_of(plots.training_curves({"ViT": HISTORY[:2]}, {"ViT": 2}))
    validation = values[values["panel"] == "validation accuracy over epoch"]
    assert validation[["series", "x", "y"]].to_numpy().tolist() == [["ViT", 1, 0.3], ["ViT", 2, 0.6]]


def test_weights_below_zero_are_on_the_scale_which_else_begins_at_zero() -> None:
    flat, sharp = torch.full((2, 2), 0.5), torch.tensor([[1.2, -0.2], [0.5, 0.5]])
    for weights, limits in (({"softmax": flat}, (0, 0.5)), ({"softmax": flat, "InLine": sharp}, (-0.2, 1.2))):
        axis = pictures.attention_matrices(weights).axes[0]
        assert axis.images[0].get_clim() == pytest.approx(limits)


def test_attentions_share_one_scale_on_which_a_mean_share_is_one() -> None:
    maps = {"softmax": torch.full((1, 2, 2), 0.25), "InLine": torch.tensor([[[0.5, -0.1], [0.3, 0.3]]])}
    figure = pictures.attention_side_by_side(IMAGES[:1], maps, ["ant"])
    _, softmax, inline = (axis.images[0] for axis in figure.axes[:3])
    assert softmax.get_array().tolist() == [[1, 1], [1, 1]]
    assert softmax.get_clim() == inline.get_clim() == pytest.approx((-0.4, 2))


def test_cost_is_relative_to_keeping_everything() -> None:
    axis = plots.cost_by_keep_ratio(KEPT).axes[0]
    assert list(axis.lines[0].get_ydata()) == [1, 0.5]
    _, throughput = axis.containers
    assert list(throughput[0].get_ydata()) == [1, 1.5]


def test_macs_are_stacked_in_millions() -> None:
    axis = plots.macs_by_component({"ViT": {"mlp": 3_000_000, "head": 1_000_000, "predictors": 0}}).axes[0]
    assert sum(bar.get_width() for bar in axis.patches) == pytest.approx(4)
    assert "predictors" not in texts(axis.figure)


def test_more_classes_than_fit_are_still_readable() -> None:
    classes = tuple(f"class {k}" for k in range(100))
    plots.confusion(np.eye(100, dtype=int), classes).canvas.draw()
    assert len(pictures.sample_grid(IMAGES, LABELS, classes, 2).axes[0].get_yticks()) == 10  # the first ones


def test_ninth_line_is_drawn_as_well() -> None:
    nine = pd.concat([EFFECTS[:3].assign(remedy=str(k)) for k in range(9)])
    assert [len(axis.lines) for axis in study_plots.remedy_effects(nine).axes] == [9, 9, 9, 9]


def test_seeds_are_small_beside_their_mean() -> None:
    marks = study_plots.accuracy_against_calibration(STUDY).axes[0].lines
    assert [line.get_xdata().tolist() if line.get_markersize() < 5 else line.get_xdata() for line in marks] == [
        [0.1, 0.3], [pytest.approx(0.2)], [0.2, 0.2], [pytest.approx(0.2)],
    ]  # fmt: skip


def test_deferred_weights_begin_where_their_share_of_the_steps_is_over() -> None:
    axis = study_plots.f1_over_training({"drw": CURVE}, 0.8).axes[0]
    assert axis.lines[-1].get_xdata()[0] == 24
    [curve] = study_plots.f1_over_training({"none": CURVE}, 0.8).axes[0].lines  # nothing is deferred
    assert curve.get_label() == "none"


def test_first_row_of_every_heatmap_is_on_top() -> None:
    two = study_plots.confusions({"a": np.eye(3), "b": np.eye(3)}, ["x", "y", "z"])
    for axis in [*two.axes, plots.confusion(np.eye(3, dtype=int), CLASSES).axes[0]]:
        assert axis.get_ylim() == (3, 0)


@pytest.mark.slow
@pytest.mark.parametrize("count", [12, 40, 100])
@pytest.mark.parametrize("name", ["c{}", "class {}", "a rather long name {}"])
def test_names_of_classes_under_a_heatmap_do_not_overlap(count: int, name: str) -> None:
    classes = tuple(map(name.format, range(count)))
    figure = plots.confusion(np.eye(count, dtype=int), classes)
    figure.canvas.draw()
    labels = [text for text in figure.axes[0].get_xticklabels() if text.get_text()]
    assert len(labels) >= 14 or len(labels) == count
    places = [text.get_window_extent() for text in labels]
    if labels[0].get_rotation() in (0, 90):  # slanted ones share their boxes' corners, not their letters' places
        assert all(left.x1 <= right.x0 for left, right in pairwise(places))


def test_every_model_is_named_beside_its_recalls() -> None:
    names = [f"model {i}" for i in range(30)]
    frame = pd.DataFrame(
        [(n, c, 0.01, 1.0) for n in names for c in CLASSES], columns=["model", "class", "difference", "p"]
    )
    figure = plots.recall_differences(frame, pd.Series(0.9, CLASSES, name="ViT"))
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == names


@pytest.mark.parametrize(("count", "label"), [(20, "class, and its recall by ViT"), (21, "class")])
def test_recall_of_the_reference_is_named_where_it_is_written(count: int, label: str) -> None:
    classes = [f"class {k}" for k in range(count)]
    frame = pd.DataFrame({"model": "Linear ViT", "class": classes, "difference": 0.1, "p": 1.0})
    figure = plots.recall_differences(frame, pd.Series(0.9, classes, name="ViT"))
    assert figure.axes[0].get_xlabel() == label
    assert ("class 0\n90%" in texts(figure)) == (count == 20)


@pytest.mark.parametrize(("count", "bars"), [(12, []), (13, ["percent of the true class"])])
def test_colours_are_explained_by_a_bar_where_there_is_no_room_for_numbers(count: int, bars: list[str]) -> None:
    figure = study_plots.confusions({"a": np.eye(count), "b": np.eye(count)}, [f"class {k}" for k in range(count)])
    assert [axis.get_ylabel() for axis in figure.axes[2:]] == bars
    assert bool(figure.axes[0].texts) == (not bars)


def test_confusion_leaves_out_what_is_less_than_one_percent() -> None:
    figure = study_plots.confusions({"a": np.array([[999, 1], [0, 5]]), "b": np.eye(2)}, ["x", "y"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["100", "", "", "100"]


def test_single_seed_is_drawn_with_its_interval_several_with_their_mean() -> None:
    one = STUDY.iloc[[0, 2]].assign(**{f"{name}_{end}": 0.5 for name in SCORES for end in ("low", "high")})
    assert "95% interval" in texts(study_plots.remedy_scores(one))
    assert {"mean", "one seed"} <= texts(study_plots.remedy_scores(STUDY))


def test_frontier_joins_the_models_that_none_beats() -> None:
    worse = RESULTS[:1].assign(model="dear", accuracy=0.86, macs=3e6)
    axis = plots.accuracy_against_cost(pd.concat([RESULTS, worse], ignore_index=True)).axes[0]
    [line] = [line for line in axis.lines if line.get_label() == "frontier"]
    assert line.get_xydata() == pytest.approx(np.array([[1, 0.8], [2, 0.9]]))


def test_legend_of_bars_of_one_colour_tells_them_by_their_marker() -> None:
    speed = pd.Series({"ViT, fewer blocks, as DynamicViT": 1.2, "ViT, narrower, as DynamicViT": 1.1})
    frame = pd.DataFrame({"method": speed.index, "tokens": 9.0, "accuracy": 0.9, "low": 0.8, "high": 1.0})
    figure = plots.accuracy_over_tokens({"a ViT": frame}, {"a ViT": 0.9}, speed)
    markers = [handle.get_marker() for handle in figure.legends[0].legend_handles]
    assert len({*markers}) == 2
    assert set(data_of(figure)["series"]) == set(speed.index)


def test_points_stand_where_they_were_measured() -> None:
    axis = plots.accuracy_against_cost(RESULTS).axes[0]
    places = [container.lines[0].get_xdata()[0] for container in axis.containers]
    assert places == [2.0, 1.0]


def test_faster_and_better_models_make_the_frontier_of_the_hero() -> None:
    slow = RESULTS[:1].assign(model="slow", accuracy=0.85, images_per_second=100.0)
    axis = plots.hero(pd.concat([RESULTS, slow], ignore_index=True)).axes[0]
    [line] = [line for line in axis.lines if line.get_label() == "frontier"]
    assert line.get_xydata().tolist() == [[500, 0.9], [800, 0.8]]


def test_model_of_unknown_cost_is_drawn_where_its_cost_is_known() -> None:
    own = RESULTS[:1].assign(model="own", accuracy=0.92, macs=np.nan, latency_ms=np.nan, training_seconds=30.0)
    work, _, training = plots.accuracy_against_cost(pd.concat([RESULTS, own], ignore_index=True)).axes
    frontiers = [next(line for line in axis.lines if line.get_label() == "frontier") for axis in (work, training)]
    assert frontiers[0].get_xydata() == pytest.approx(np.array([[1, 0.8], [2, 0.9]]))
    assert frontiers[1].get_xydata() == pytest.approx(np.array([[30, 0.92]]))  # seconds, where none took ten minutes


@pytest.mark.slow
def test_figures_of_many_models_fit_the_paper_unscaled():
    """Otherwise their letters would be under 8 points there."""
    ways = ["DynamicViT", "Random tokens", "Top-K", "EViT", "ToMe", "ViT, fewer blocks, as DynamicViT"]
    panel = pd.concat([KEPT.assign(method=name, tokens=[64, 40]) for name in ways[:5]])
    rows = [(f"{name} {k}", label, 0.03, 0.0, 1.0) for name in ways for k in range(4) for label in CLASSES]
    differences = pd.DataFrame(rows, columns=["model", "class", "difference", "spread", "p"])
    reference = pd.Series(0.9, CLASSES, name="ViT")
    for figure in (
        plots.accuracy_over_tokens(
            {"a": panel, "b": panel, "c": panel}, dict.fromkeys("abc", 0.9), pd.Series(1.1, ways)
        ),
        plots.recall_differences(differences, reference),
    ):
        shown, _ = drawing(figure)
        assert shown.width <= theme.WIDTH * 72
        assert shown.height * 96 / 72 <= paper.IMAGE_BOX[1]


def test_remedies_that_a_reader_adds_look_like_no_other() -> None:
    looks = theme.remedy_looks(["none", "sampler", "focal", "mine"])
    assert looks["none"] == theme.REMEDY_LOOKS["none"]
    assert len({look.colour for look in looks.values()}) == 4
    many = theme.remedy_looks([*theme.REMEDY_LOOKS, *(f"own {k}" for k in range(12))])
    assert len(set(many.values())) == len(many)
