"""Texts that users give are shown as they are: in figures, in HTML and in the PDF, whatever they look like."""

import base64
import html
import io
import re
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from bs4 import BeautifulSoup
from matplotlib.text import Text

from vitlab.analysis import pictures, plots, theme, typefaces
from vitlab.config import LabConfig
from vitlab.errors import LabError
from vitlab.report import render
from vitlab.report.notebook import show_table
from vitlab.texts import literal, markdown, shortened, shown, signed, unshowable, width

MARKUP = [
    "$1 bill", "$10 and $20", "a$$b", "$\\frac$", "$x$", "\\(x\\)", "\\[x\\]", "\\begin{x}", "<b>bold", "<img src=x>",
    "&amp; &", "*star* and __under__", "under_score_d", "`code", "# no heading", "- no list", "1. no list", "[a](b)",
    "a | b", "~~x~~", "^x^", "Note: x", "!", "%s {0} {{ x }}", "{% x %}", "#set text(red)", "@ref", "\\n", "//", "/*",
    "line\nbreak", "“quoted”", "'", '"',
]  # fmt: skip
SCRIPTS = ["猫", "犬と猫", "кошка", "قطة", "חתול", "แมว", "고양이", "γάτα", "Ä"]


def flat(text: str) -> str:
    """In a line, without the marks that isolate what is written to the left."""
    return " ".join(text.replace("\u2068", "").replace("\u2069", "").split())


def test_what_is_written_to_the_left_leaves_its_neighbours_alone() -> None:
    assert markdown("قطة") == "\u2068قطة\u2069"
    assert markdown("猫 кошка") == "猫 кошка"


# ---------------------------------------------------------------- HTML and PDF


@pytest.mark.parametrize("text", [*MARKUP, *SCRIPTS])
def test_markdown_and_html_show_the_very_text(text: str) -> None:
    for page in (render.markdown_to_html(f"before **{markdown(text)}** after"), f"<p>before {literal(text)} after</p>"):
        tree = BeautifulSoup(page, "html.parser")
        assert flat(tree.get_text()) == f"before {flat(text)} after"
        assert not tree.select("img, a, code, em, del, li, h1, .math")
        render.check(f"<main>{page}</main>")


@pytest.mark.parametrize("text", MARKUP)
def test_text_that_begins_a_paragraph_is_one(text: str) -> None:
    tree = BeautifulSoup(render.markdown_to_html(markdown(text)), "html.parser")
    assert [tag.name for tag in tree.find_all(True) if tag.name != "span"] == ["p"]
    assert flat(tree.get_text()) == flat(text)


def test_report_shows_names_and_remarks_of_any_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Title page, caption, prose, table and appendix, in HTML and PDF."""
    everything, lines = " ".join(MARKUP + SCRIPTS), [text for text in MARKUP if "\n" not in text]
    outputs: list = []
    monkeypatch.setattr(
        "vitlab.report.notebook.display",
        lambda shown, metadata: outputs.append(
            nbformat.v4.new_output("display_data", data={"text/html": shown.data}, metadata=metadata)
        ),
    )
    show_table(
        pd.DataFrame({"recall": ["0.5"] * len(lines)}, index=lines), "1.1", f"Names such as {markdown(everything)}."
    )
    prose = nbformat.v4.new_output(
        "display_data", data={"text/markdown": markdown(everything)}, metadata={"vitlab": {"kind": "prose"}}
    )
    cells = [
        nbformat.v4.new_markdown_cell("# 1. Names\n\nA formula, $x^2$."),
        nbformat.v4.new_code_cell("show()", outputs=[*outputs, prose]),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "01.ipynb")
    title = {
        "title": "Names", "subtitle": "", "summary": f"Data: {markdown(everything)}", "facts": [("Data", everything)],
        "parameters": [("notes", everything, "what")],
    }  # fmt: skip
    page, pdf = render.render([tmp_path / "01.ipynb"], tmp_path, title)
    tree = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
    for place in (".summary", ".facts dd", "main > p:last-of-type", "#table-1-1 figcaption"):
        assert flat(everything) in flat(tree.select_one(place).get_text()), place
    assert [flat(cell.get_text()) for cell in tree.select("#table-1-1 tbody th")] == lines
    assert flat(everything) in flat(tree.select("#table-A-1 td")[1].get_text())
    assert len(tree.select("math")) == 1
    assert pdf.read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("name", ["notes", "data_name"])
@pytest.mark.parametrize("character", ["\0", "\x1b", "\udce9", "\uffff"])
def test_what_cannot_be_shown_is_refused_before_any_work(name: str, character: str) -> None:
    with pytest.raises(LabError, match=f"{name} holds .* take it out"):
        LabConfig().replace(**{name: f"a{character}b"})


@pytest.mark.parametrize("text", [*MARKUP, *SCRIPTS, "👍", "a\u200db"])
def test_what_can_be_shown_is_accepted(text: str) -> None:
    assert unshowable(text) == ""
    assert LabConfig().replace(notes=text, data_name=text).notes == text


# ---------------------------------------------------------------- figures

CLASSES = ("$1 bill", "$10 and $20", "a$$b", "under_score_d", "\\frac", "猫", "кошка", "x" * 90)
IMAGES = torch.zeros(8, 3, 8, 8, dtype=torch.uint8)
LABELS = torch.arange(8)


def differences() -> plt.Figure:
    rows = [{"model": m, "class": c, "difference": 0.1, "p": 0.5} for m in ("$a", "b$") for c in CLASSES]
    return plots.recall_differences(pd.DataFrame(rows), pd.Series(0.5, list(CLASSES), name="$m$"))


FIGURES = {
    "counts": lambda: plots.class_counts({"all": LABELS}, CLASSES),
    "confusion": lambda: plots.confusion(np.eye(8, dtype=int), CLASSES),
    "recall": lambda: plots.recall_by_class({"none": np.ones(8), "both": np.ones(8)}, CLASSES),
    "differences": differences,
    "samples": lambda: pictures.sample_grid(IMAGES, LABELS, CLASSES, 1),
    "mistakes": lambda: pictures.mistakes(IMAGES, list(CLASSES), list(CLASSES), [0.5] * 8),
    "attention": lambda: pictures.attention_maps(IMAGES, torch.ones(8, 1, 2, 2), torch.ones(8, 2, 2), list(CLASSES)),
    "tokens": lambda: pictures.token_groups(IMAGES, {"Top-K": torch.zeros(8, 4, dtype=torch.long)}, 2, list(CLASSES)),
    "beside": lambda: pictures.attention_side_by_side(IMAGES, {"softmax": torch.ones(8, 2, 2)}, list(CLASSES)),
    "broken": lambda: pictures.broken(
        IMAGES, torch.zeros(8, 2, 2, dtype=torch.long), list(CLASSES), list(reversed(CLASSES))
    ),
    "explored": lambda: pictures.explored(
        IMAGES[0], f"test image 0: {CLASSES[-1]}", pd.Series(0.2, list(CLASSES[1:6])), {"rollout": torch.ones(2, 2)}
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_figures_draw_names_of_any_kind_in_moderate_size(name: str) -> None:
    figure = FIGURES[name]()
    buffer = io.BytesIO()
    with typefaces.typeset(figure):
        figure.savefig(buffer, format="png", bbox_inches="tight", dpi=60)  # a formula would raise here
    written = "\n".join(text.get_text().replace(r"\$", "$") for text in figure.findobj(Text))
    assert "$10 and $20" in written or "…" in written
    assert "x" * 21 not in written
    drawn = plt.imread(io.BytesIO(buffer.getvalue()))
    assert drawn.shape[1] < 1.6 * 60 * theme.WIDTH
    plt.close(figure)


def test_letters_get_an_installed_face_that_has_them() -> None:
    figure, axis = plt.subplots()
    axis.set_title("قطة")  # DejaVu Sans, which comes with matplotlib, has them
    axis.set_xticks([0], ["plain"])
    with typefaces.typeset(figure):
        assert "DejaVu Sans" in axis.title.get_fontfamily()
    assert typefaces.covering("قطة")[1] == ""
    assert typefaces.note(["قطة", "Ä", "кошка", "plain → ρ ± ½ “…”"]) == ""
    plt.close(figure)


def test_letter_that_no_face_has_draws_a_box_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    figure, axis = plt.subplots()
    axis.set_title("\N{VERY MUCH GREATER-THAN}\U0010fffd")  # of the private planes, which no typeface fills
    with typefaces.typeset(figure):
        figure.savefig(io.BytesIO(), format="png")
    assert not recwarn.list
    plt.close(figure)


def test_where_no_face_has_a_letter_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typefaces.font_manager, "findSystemFonts", list)
    typefaces._covering.cache_clear()
    try:
        said = typefaces.note(["猫", "cat", "犬"])
        assert "猫" in said
        assert "apt install fonts-noto-cjk" in said
        assert "fonts-noto-core" in typefaces.note(["แมว"])
    finally:
        typefaces._covering.cache_clear()


def test_faces_installed_after_matplotlib_listed_its_fonts_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    if typefaces.note(["猫"]):
        pytest.skip("no typeface with Chinese letters is installed (apt install fonts-noto-cjk)")
    monkeypatch.setattr(typefaces.font_manager.fontManager, "ttflist", [])
    typefaces._register.cache_clear()
    figure, axis = plt.subplots()
    axis.set_title("猫")
    [face] = typefaces.covering("猫")[0]
    with typefaces.typeset(figure):
        assert face.family in axis.title.get_fontfamily()
        assert Path(typefaces.font_manager.findfont(face.family)).samefile(face.path)
    plt.close(figure)


# ---------------------------------------------------------------- names


def test_long_names_lose_their_middle_and_stay_apart() -> None:
    names = ["short", "x" * 40, "x" * 41, "a very long name of a class, first", "a very long name of a class, second"]
    short = shortened(names)
    assert short[0] == "short"
    assert len({*short}) == 5
    assert max(map(width, short)) <= 20


def test_chinese_letters_are_twice_as_wide() -> None:
    assert width("猫犬") == 4
    assert width(shortened(["猫" * 30])[0]) <= 20


def test_names_of_the_file_system_can_always_be_printed() -> None:
    assert shown("caf\udce9") == r"caf\xe9"
    assert shown("a\nb\x1b") == r"a\nb\x1b"
    assert shown("cafe\u0301") == "café"
    assert html.escape(shown("猫")) == "猫"
    assert re.fullmatch(r"[\x20-\x7e]+", shown(base64.b64encode(b"x").decode()))


def test_negative_numbers_have_a_minus_sign() -> None:
    assert [signed(value) for value in (-1.25, 0.31, -0.04)] == ["−1.2", "+0.3", "+0.0"]
    assert [signed(-0.02, ".2f"), signed(0.5, "+.1%")] == ["−0.02", "+50.0%"]
