"""What the HTML page does in a window, and what the PDF is measured to be: sizes, places, order, bookmarks."""

import base64
import copy
import itertools
import re
from pathlib import Path

import nbformat
import pandas as pd
import pdfplumber
import pytest
from browser import open_offline
from bs4 import BeautifulSoup
from test_render import TITLE, shown, write

from vitlab.analysis import theme
from vitlab.analysis.diagrams import two_orders
from vitlab.analysis.drawing import drawing
from vitlab.analysis.figure_data import data_of
from vitlab.report import paper
from vitlab.report.notebook import VECTOR
from vitlab.report.render import render

v4 = nbformat.v4
WORDS = "Attention compares every token with every other one and mixes what it finds. " * 6
PAGE_HEIGHT, MARGINS = 841.9, 130.0  # points of A4


def panels(number: str, height: float) -> nbformat.NotebookNode:
    """A chart of three panels as `show_figure` leaves it."""
    figure, [axes] = theme.canvas(1, 3, height=height)
    for axis in axes:
        axis.plot([1, 2, 3], [0.1, 0.3, 0.2], label="ViT")
        axis.set(xlabel="epoch", ylabel="accuracy", yscale="log")
    csv = data_of(figure).to_csv(index=False)
    made, _ = drawing(figure)
    meta = {"number": number, "caption": f"Curves in {number}.", "alt": f"Three curves of {number}.", "width": 600}
    meta |= {"size": [made.width, made.height], "panels": made.panels, "csv": csv}
    return shown({"image/png": "", VECTOR: made.svg}, kind="figure", **meta)


def table(number: str, rows: int, columns: int) -> nbformat.NotebookNode:
    names = [f"ViT of kind {k}" for k in range(rows)]
    frame = pd.DataFrame(
        {f"measured value {k}": [f"{k}.25 ({k}.01 – {k}.99)"] * rows for k in range(columns)}, index=names
    )
    return shown({"text/html": frame.to_html(border=0)}, kind="table", number=number, caption=f"Values of {number}.")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with report.html and report.pdf of two chapters, full of figures, with wide and long tables."""
    folder = tmp_path_factory.mktemp("paper")
    paths = []
    for chapter in "12":
        cells = [v4.new_markdown_cell(f"# {chapter}. Chapter {chapter}\n\n{WORDS}")]
        for number in range(1, 5):
            figure = panels(f"{chapter}.{number}", 2.5 + number / 2)
            cells += [v4.new_markdown_cell(f"## Section {number}\n\n{WORDS}\n\n{WORDS}")]
            cells += [v4.new_code_cell("plot()", outputs=[figure])]
        cells += [v4.new_code_cell("tables()", outputs=[table(f"{chapter}.1", 5, 8), table(f"{chapter}.2", 30, 3)])]
        cells += [v4.new_markdown_cell(f"## Conclusion\n\nThe answer of chapter {chapter} is yes. {WORDS}")]
        paths.append(write(folder / f"0{chapter}_chapter.ipynb", *cells))
    diagram = two_orders(65, 32)
    hero = {
        "number": "overview",
        "drawing": diagram,
        "caption": "**In a picture.** All.",
        "alt": "All.",
        "csv": "x\n1\n",
    }
    render(paths, folder, TITLE | {"hero": hero})
    return folder


@pytest.fixture(scope="module")
def pdf(report: Path) -> pdfplumber.PDF:
    with pdfplumber.open(report / "report.pdf") as opened:
        yield opened


@pytest.fixture(scope="module")
def texts(pdf: pdfplumber.PDF) -> list[str]:
    return [page.extract_text() for page in pdf.pages]


# ---------------------------------------------------------------- the page


@pytest.mark.slow
def test_charts_are_drawn_in_the_pages_colours_with_their_numbers_beside_them(report: Path) -> None:
    page = BeautifulSoup((report / "report.html").read_text(encoding="utf-8"), "html.parser")
    figure = page.select_one("#figure-1-2")
    assert figure.select_one("svg.whole[role=img]")["aria-label"] == "Three curves of 1.2."
    assert "var(--series-0)" in str(figure)
    link = figure.select_one("a[download='figure-1-2.csv']")
    assert base64.b64decode(link["href"].partition("base64,")[2]).decode().startswith("panel,series,x,y")


@pytest.mark.slow
def test_wide_table_says_how_many_columns_are_hidden_and_keeps_its_first_in_sight(report: Path) -> None:
    ask = """(() => { const box = document.querySelector("#table-1-1 .scroll"); box.scrollLeft = 200;
        const left = (part) => part.getBoundingClientRect().left;
        return [box.nextElementSibling.textContent, left(box.querySelector("tbody th")) - left(box)]; })()"""
    for width in (1280, 400):
        hint, moved = open_offline(report / "report.html", width, ask=ask)["answer"]
        assert re.search(r"\d more column", hint)
        assert moved >= -1


@pytest.mark.slow
def test_panels_stand_below_each_other_on_a_narrow_screen_alone(report: Path) -> None:
    ask = """[...document.querySelectorAll("#figure-1-1 .panels > svg")].map((s) => s.getBoundingClientRect().width)"""
    assert open_offline(report / "report.html", 1280, ask=ask)["answer"] == [0, 0, 0]
    assert min(open_offline(report / "report.html", 400, ask=ask)["answer"]) > 300


@pytest.mark.slow
def test_click_enlarges_a_figure(report: Path) -> None:
    ask = (
        """[document.getElementById("zoom").open, document.querySelector("#zoom svg").getBoundingClientRect().width]"""
    )
    is_open, width = open_offline(report / "report.html", 1280, click="#figure-1-1 svg.whole", ask=ask)["answer"]
    assert is_open
    assert width > 900


@pytest.mark.slow
def test_column_sorts_by_number_and_back(report: Path) -> None:
    ask = """(() => { const button = document.querySelector("#table-1-2 thead button.sort");
        const names = () => document.querySelector("#table-1-2 tbody th").textContent;
        const before = names(); button.click(); button.click(); return [before, names()]; })()"""
    assert open_offline(report / "report.html", ask=ask)["answer"] == ["ViT of kind 0", "ViT of kind 9"]


# ---------------------------------------------------------------- the PDF


@pytest.mark.slow
def test_nothing_is_under_8_points_but_sub_and_superscripts(pdf: pdfplumber.PDF) -> None:
    small = {
        char["text"]
        for page in pdf.pages
        for char in page.chars
        if max(char["width"], char["height"]) < 7.9 and "Math" not in char["fontname"] and char["upright"]
    }
    assert small <= set("0123456789−T")  # exponents of logarithmic axes, ᵀ


@pytest.mark.slow
def test_text_and_figures_are_set_in_one_typeface(pdf: pdfplumber.PDF) -> None:
    families = {char["fontname"].partition("+")[2] for page in pdf.pages for char in page.chars}
    assert {name.partition("-")[0] for name in families} <= {"SourceSansPro", "NewCMMath", "DejaVuSansMono"}


@pytest.mark.slow
def test_charts_are_vectors(pdf: pdfplumber.PDF) -> None:
    assert not any(page.images for page in pdf.pages)
    assert any(page.curves for page in pdf.pages)


@pytest.mark.slow
def test_chapters_begin_pages_and_the_running_head_names_the_chapter(texts: list[str]) -> None:
    for chapter in "12":
        [first] = [i for i, page in enumerate(texts) if f"Curves in {chapter}.1." in page]
        pages = [page for page in texts if f"Curves in {chapter}." in page]
        assert all(page.splitlines()[0].endswith(f"{chapter}. Chapter {chapter}") for page in pages)
        assert texts[first].splitlines()[1].startswith(f"{chapter}. Chapter {chapter}")


@pytest.mark.slow
def test_figures_stand_in_order_before_the_conclusion_and_between_paragraphs(texts: list[str]) -> None:
    whole = "\n".join(texts)
    for chapter in "12":
        places = [whole.index(f"Curves in {chapter}.{n}.") for n in range(1, 5)]
        assert places == sorted(places)
        assert places[-1] < whole.index(f"The answer of chapter {chapter} is yes")
    for before in re.findall(r"([^\n]*)\n(?:[^\n]*\n){0,14}?Figure \d\.\d\. Curves", whole):
        assert not before.rstrip().endswith((" and", "every", "with", "what", "other", "compares"))


@pytest.mark.slow
def test_no_page_has_a_hole_but_at_a_chapters_end(pdf: pdfplumber.PDF, texts: list[str]) -> None:
    heads = [text.splitlines()[0].split("measured")[-1] for text in texts]
    for page, head, following in zip(pdf.pages, heads, heads[1:], strict=False):
        if head == following and re.search(r"\d\. Chapter", head):
            lowest = max(char["bottom"] for char in page.chars if char["bottom"] < PAGE_HEIGHT - 55)
            assert PAGE_HEIGHT - 62 - lowest < (PAGE_HEIGHT - MARGINS) / 3


@pytest.mark.slow
def test_pdf_is_tagged_and_has_bookmarks(pdf: pdfplumber.PDF) -> None:
    catalog = pdf.doc.catalog
    assert "StructTreeRoot" in catalog
    bookmarks = [title for _, title, *_ in pdf.doc.get_outlines()]
    assert [title for title in bookmarks if re.match(r"\d\. ", title)] == ["1. Chapter 1", "2. Chapter 2"]


@pytest.mark.slow
def test_wide_table_is_split_and_each_part_names_its_rows(texts: list[str]) -> None:
    whole = "\n".join(texts)
    assert "Table 1.1. Values of 1.1." in whole
    assert "Table 1.1. Continued." in whole
    assert len(re.findall(r"ViT of kind 0 ", whole)) >= 4 + 2
    assert "7.25 (7.01 – 7.99)" in whole.replace("\u00a0", " ")  # not broken


@pytest.mark.slow
def test_long_table_stands_in_the_appendix_and_a_sentence_in_its_place(texts: list[str]) -> None:
    [place] = [text for text in texts if "Table 1.2, of 30 rows, stands in appendix B." in text]
    [appendix] = [text for text in texts if "Table 1.2. Values of 1.2." in text]
    assert "1. Chapter 1" in place
    assert "B. Long tables" in appendix
    assert "A. Parameters" in appendix.splitlines()[0]  # it begins no page: what precedes it may be a single row


@pytest.mark.slow
def test_columns_are_as_wide_as_what_stands_in_them() -> None:
    wide = BeautifulSoup(table("1.1", 3, 8).data["text/html"], "html.parser").table
    parts = paper.fitted(copy.copy(wide))
    assert len(parts) > 1
    for part in parts:
        assert sum(float(w) for w in re.findall(r"width: ([\d.]+)%", str(part))) < 100.1
    headers = [[cell.get_text() for cell in part.select("thead th")][1:] for part in parts]
    assert list(itertools.chain(*headers)) == [f"measured value {k}" for k in range(8)]
    narrow = BeautifulSoup(table("1.1", 3, 2).data["text/html"], "html.parser").table
    assert len(paper.fitted(narrow)) == 1


def test_code_in_a_table_has_the_room_that_it_takes() -> None:
    rows = "".join(
        f"<tr><td><code>linformer_sharing</code></td><td>headwise</td><td>{WORDS * n}</td></tr>" for n in (1, 2)
    )
    html = f"<table><thead><tr><th>Name</th><th>Value</th><th>Meaning</th></tr></thead><tbody>{rows}</tbody></table>"
    [part] = paper.fitted(BeautifulSoup(html, "html.parser").table)
    first = float(re.search(r"width: ([\d.]+)%", str(part))[1]) / 100 * theme.WIDTH * 72
    assert first > len("linformer_sharing") * paper.CODE_WIDTH


def test_no_figure_comes_between_a_sentence_and_its_formula() -> None:
    rows = {
        "text": "<p>A class keeps</p>",
        "formula": '<p><span class="math formula">n = 1,</span></p>',
        "rest": "<p>and no more.</p>",
        "figure": "<figure>drawn</figure>",
        "inline": '<p><span class="math">k</span> is a class.</p>',
        "empty": "<p> </p>",
        "heading": "<h2>Next</h2>",
        "alone": '<p><span class="math formula">m = 2.</span></p>',
    }
    tree = BeautifulSoup(f"<main>{''.join(rows.values())}</main>", "html.parser")
    blocks = paper.blocks_of(tree, {})
    assert [block.kind for block in blocks] == ["text", "figure", "text", "text", "heading", "text"]
    assert all(part in blocks[0].markup for part in ("A class keeps", "n = 1,", "and no more."))
