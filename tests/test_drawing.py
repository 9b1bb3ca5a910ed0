"""Figures as vectors follow the page's colours, keep their ids apart, and give away the numbers they show."""

import itertools
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from vitlab.analysis import theme
from vitlab.analysis.drawing import drawing, embedded, themed, with_own_ids
from vitlab.analysis.figure_data import data_of


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def chart(columns: int = 3):
    figure, [axes] = theme.canvas(1, columns, height=2, sharey=True)
    for number, axis in enumerate(axes):
        axis.plot([1, 2, 3], [number, 2, 1], color=theme.PALETTE[number], label="ViT")
        axis.set_xlabel(f"panel {number}")
    axes[0].set_yticks([0, 1, 2], ["none", "some", "all"])
    return figure


def lightness(colour: str) -> float:
    """L* of a colour."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour))
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return 116 * np.cbrt(luminance) - 16


def test_colours_are_told_apart_in_grey_print() -> None:
    grey = sorted(lightness(colour) for colour in theme.PALETTE[:7])
    assert min(b - a for a, b in itertools.pairwise(grey)) > 5


def test_a_model_looks_the_same_in_every_figure_and_no_two_of_one_alike() -> None:
    names = ["ViT", "DynamicViT", "Linear ViT", "ViT, fine-tuned", "Linformer ViT", "ViT, narrower, as DynamicViT"]
    together = theme.looks(names)
    assert len(set(together.values())) == len(names)
    assert all(theme.looks([name])[name] == together[name] for name in names[:5])
    tokenizers = ["ViT, light tokenizer", "ViT, conv tokenizer", "ViT, conv tokenizer, 30 epochs"]
    tokenizers += ["ViT-Tiny, conv tokenizer, 30 epochs", "ViT-Tiny, patch tokenizer, 30 epochs"]
    yardsticks = ["ResNet-20", "ResNet-20, 30 epochs", "ViT, fewer blocks, as DynamicViT"]
    yardsticks += ["ViT with the local term", "Linear ViT with the local term", "InLine ViT without its local term"]
    for some in (tokenizers + yardsticks, yardsticks[::-1] + tokenizers[::-1] + ["ViT"]):  # any order
        assert theme.looks(some) == {name: theme.looks([name])[name] for name in some}
    assert together["ViT, narrower, as DynamicViT"].colour == together["ViT"].colour  # it is a ViT
    many = [f"ViT of {width}" for width in range(30)]
    assert len(set(theme.looks(many).values())) == 30


def test_text_stays_text_in_the_reports_typeface_and_nothing_is_too_small() -> None:
    figure = chart()
    figure.axes[0].set_title("tiny", fontsize=4)
    shown, png = drawing(figure)
    assert png.startswith(b"\x89PNG")
    assert "Source Sans Pro" in shown.svg
    assert ">panel 2<" in shown.svg
    sizes = [float(size) for size in re.findall(r"font(?:-size)?: (?:\d+ )?([\d.]+)px", shown.svg)]
    assert sizes
    assert min(sizes) >= theme.SMALLEST


def test_same_figure_has_the_same_bytes() -> None:
    assert drawing(chart())[0] == drawing(chart())[0]


def test_colours_of_the_theme_become_the_pages_and_white_letters_stay_white() -> None:
    svg = '<path style="fill: #292da4; stroke: #ffffff"/><text style="fill: #ffffff">9</text><text fill="#1d2126"/>'
    assert themed(svg) == (
        '<path style="fill: var(--series-0); stroke: var(--paper)"/><text style="fill: #ffffff">9</text>'
        '<text fill="var(--ink)"/>'
    )


def test_ids_of_two_figures_do_not_meet_and_those_that_nothing_uses_go() -> None:
    svg = '<g id="axes_1"><clipPath id="p1"/><g clip-path="url(#p1)"/><use xlink:href="#p1"/></g>'
    assert with_own_ids(svg, "a") == '<g><clipPath id="a-0"/><g clip-path="url(#a-0)"/><use xlink:href="#a-0"/></g>'


def test_panels_stand_below_each_other_on_a_narrow_screen_each_with_the_axis_they_share() -> None:
    shown, _ = drawing(chart(3))
    assert [len(panel) for panel in shown.panels] == [1, 2, 2]  # the first has the axis itself
    assert 'class="panels"' in embedded(shown, "a", "alt")
    assert drawing(chart(1))[0].panels == []
    assert drawing(chart(6))[0].panels == []  # too many to be stacked: pictures side by side


def test_numbers_of_a_chart_are_those_it_draws() -> None:
    figure, [[axis]] = theme.canvas()
    axis.errorbar([1, 2], [0.5, 0.6], yerr=[[0.1, 0.1], [0.2, 0.2]], label="ViT")
    axis.axhline(0.3)  # a guide
    values = data_of(figure)
    assert values[["series", "x", "y"]].to_numpy().tolist() == [["ViT", 1, 0.5], ["ViT", 2, 0.6]]
    assert values[["low", "high"]].to_numpy() == pytest.approx(np.array([[0.4, 0.7], [0.5, 0.8]]))


def test_numbers_of_bars_carry_the_names_of_their_places() -> None:
    figure, [[axis]] = theme.canvas()
    pd.DataFrame({"images": [3, 5]}, index=["ant", "bee"]).plot.bar(ax=axis)
    assert data_of(figure)[["series", "x", "y"]].to_numpy().tolist() == [["images", "ant", 3], ["images", "bee", 5]]


def test_a_picture_has_no_numbers() -> None:
    figure, [[axis]] = theme.canvas()
    axis.imshow(np.zeros((4, 4)))
    assert data_of(figure).empty


def test_ends_of_error_bars_are_kept_whatever_they_stand_at() -> None:
    figure, axes = plt.subplots()
    axes.bar([0, 1], [3.0, 5.0], yerr=[0.5, 1.0])
    axes.errorbar([2], [4.0], yerr=[0.25], fmt="none")
    rows = data_of(figure)
    assert rows[["x", "y", "low", "high"]].to_numpy().tolist() == [
        [0, 3.0, 2.5, 3.5], [1, 5.0, 4.0, 6.0], [2, 4.0, 3.75, 4.25],
    ]  # fmt: skip
    assert not any(str(name).startswith("_") for name in rows.get("series", []))
