"""The report: what a notebook shows must arrive whole in the HTML and in the PDF."""

import base64
import errno
import io
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import pdfplumber
import pytest
from browser import open_offline
from bs4 import BeautifulSoup

from vitlab.errors import LabError
from vitlab.report.notebook import VECTOR
from vitlab.report.render import PdfError, check, render

v4 = nbformat.v4

TITLE = {
    "title": "A small report",
    "subtitle": "of two chapters",
    "summary": "Accuracy rises to **0.9** at $\\rho = 0.7$; see Figure 1.1.",
    "facts": [("Seed", "0"), ("Data set", "digits & more")],
    "parameters": [("keep_ratio", 0.7, "share of tokens kept per stage"), ("lr", 0.001, "")],
}
FORMULAS = r"""## Attention

Tokens $X \in \mathbb{R}^{N\times D}$ cost \$5 each. Figure 1.1 and Tables 1.1 and 9.9 show it; on to
[the next](02_next.ipynb).

$$\operatorname{softmax}\!\left(\frac{QK^\top}{\sqrt{d_k}}\right)V, \qquad
\hat{y} = m \odot \mathcal{N}(0, \sigma^2)$$

\begin{align}
a &= \sum_{i=1}^{N} \phi(k_i) \\
b &= \begin{cases} 1 & \text{if } a > 0 \\ 0 & \text{otherwise} \end{cases}
\end{align}
"""


def png() -> str:
    figure, axes = plt.subplots(figsize=(4, 2))
    axes.plot([1, 3, 2])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()


def shown(data: dict[str, str], **meta: Any) -> nbformat.NotebookNode:
    """An output as `vitlab.report.notebook` makes it."""
    return v4.new_output("display_data", data, metadata={"vitlab": meta})


def figure_output(number: str, alt: str = "A line that rises, then falls.") -> nbformat.NotebookNode:
    caption = "Loss over $\\rho$; lower is *better*."
    return shown({"image/png": png()}, kind="figure", number=number, caption=caption, alt=alt, width=384)


def write(path: Path, *cells: nbformat.NotebookNode) -> Path:
    nbformat.write(v4.new_notebook(cells=list(cells)), path)
    return path


@pytest.fixture
def notebooks(tmp_path: Path) -> list[Path]:
    columns = "".join(f"<th>column {k}</th>" for k in range(12))
    cells = "".join(f"<td>{k}.25%</td>" for k in range(12))
    table = (
        '<table border="0" class="dataframe"><thead><tr style="text-align: right;"><th></th>'
        f"{columns}</tr></thead><tbody><tr><th>vit</th>{cells}</tr></tbody></table>"
    )
    parameters = v4.new_code_cell("seed: int = 0", metadata={"tags": ["parameters"]})
    removed = v4.new_code_cell("secret_helper()", metadata={"tags": ["remove_cell"]})
    code = v4.new_code_cell(
        "train(model)",
        outputs=[
            v4.new_output("stream", name="stdout", text="epoch 1 done"),
            v4.new_output("stream", name="stderr", text="progress-bar 50%"),
            v4.new_output("execute_result", {"text/plain": "<Result at 0x7f>"}, execution_count=1),
            figure_output("1.1"),
            shown({"text/markdown": "**Figure 1.1.** repeated"}, kind="caption"),
            shown({"text/markdown": "**Table 1.1.** repeated"}, kind="caption"),
            shown({"text/html": table}, kind="table", number="1.1", caption="Cost of $N$ tokens."),
            shown({"text/markdown": "The run reached **0.91** at $N = 64$."}, kind="prose"),
            shown({"text/markdown": "```python\nclass Attention: ...\n```"}, kind="source", name="vitlab.A"),
        ],
    )
    introduction = v4.new_markdown_cell("# 1. Data & models\n\nWhat is asked.")
    first = write(tmp_path / "01_data.ipynb", introduction, parameters, removed, code, v4.new_markdown_cell(FORMULAS))
    end = v4.new_markdown_cell("## Attention\n\nThe same heading as before; back to chapter 1.")
    plot = v4.new_code_cell("plot()", outputs=[figure_output("2.1")])
    return [first, write(tmp_path / "02_next.ipynb", v4.new_markdown_cell("# 2. Results"), plot, end)]


@pytest.fixture
def page(notebooks: list[Path], tmp_path: Path) -> BeautifulSoup:
    paths = render(notebooks, tmp_path / "out", TITLE, pdf=False)
    assert paths == [tmp_path / "out" / "report.html"]
    return BeautifulSoup(paths[0].read_text(encoding="utf-8"), "html.parser")


def test_figure_has_number_caption_alternative_text_and_links(page: BeautifulSoup) -> None:
    figure = page.select_one("#figure-1-1")
    assert figure.img["alt"] == "A line that rises, then falls."
    assert figure.img["src"].startswith("data:image/png;base64,")
    assert int(figure.img["height"]) == 192
    caption = figure.figcaption.get_text()
    assert caption.startswith("Figure 1.1. Loss over")
    assert figure.figcaption.math
    assert figure.figcaption.em
    assert {link.get_text() for link in page.select("a[href='#figure-1-1']:not(.anchor)")} == {"Figure 1.1"}
    assert page.select_one("figure a.anchor[href='#figure-1-1']").get_text() == "Figure 1.1."
    assert page.select_one("a.reference[href='#table-1-1']").get_text() == "Tables 1.1"
    assert not page.select("a[href$='9-9']")  # no such table: plain text
    assert "repeated" not in page.get_text()


def test_missing_alternative_text_is_the_caption_without_markup(tmp_path: Path) -> None:
    output = figure_output("1.1")
    output.metadata.vitlab.alt = output.metadata.vitlab.caption
    plot = v4.new_code_cell("plot()", outputs=[output])
    path = write(tmp_path / "a.ipynb", v4.new_markdown_cell("# 1. One"), plot)
    html = render([path], tmp_path, TITLE, pdf=False)[0].read_text(encoding="utf-8")
    assert BeautifulSoup(html, "html.parser").img["alt"] == "Figure 1.1. Loss over ρ; lower is better."


@pytest.mark.slow
@pytest.mark.parametrize("alt", ['The class 13" laptop.', "A class's name.", "Both: 13\" and 14'.", "a < b & c"])
def test_alternative_text_of_a_drawing_may_have_any_sign(alt: str, tmp_path: Path) -> None:
    output = figure_output("1.1", alt)
    output.data[VECTOR] = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"></svg>'
    output.metadata.vitlab |= {"size": [9, 9], "panels": []}
    path = write(tmp_path / "a.ipynb", v4.new_markdown_cell("# 1. One"), v4.new_code_cell("plot()", outputs=[output]))
    html = render([path], tmp_path, TITLE, pdf=False)[0].read_text(encoding="utf-8")
    assert BeautifulSoup(html, "html.parser").select_one("svg[role=img]")["aria-label"].endswith(alt)


def test_table_scrolls_and_aligns_numbers(page: BeautifulSoup) -> None:
    figure = page.select_one("figure#table-1-1")
    assert figure.select_one("div.scroll > table")
    assert figure.find(string=lambda text: "Cost of" in text)
    assert all("numeric" in cell["class"] for cell in figure.select("td, thead th:not(:first-child)"))


def test_chapters_and_sections_are_numbered_and_listed(page: BeautifulSoup) -> None:
    assert [heading.get_text() for heading in page.select("main h1")] == [
        "1. Data & models",
        "2. Results",
        "A. Parameters",
    ]
    entries = {link["href"]: link.get_text() for link in page.select("nav a")}
    assert entries["#section-1-1"] == "1.1 Attention"
    assert entries["#section-2-1"] == "2.1 Attention"
    assert page.select_one("main a[href='#chapter-2']").get_text() == "the next"  # was a link to the notebook
    assert page.select_one("main a[href='#chapter-1']").get_text() == "chapter 1"


def test_title_page_and_appendix(page: BeautifulSoup) -> None:
    assert page.title.get_text() == page.header.h1.get_text() == "A small report"
    assert "digits & more" in page.select_one(".facts").get_text()
    assert page.select_one(".summary math")
    assert "keep_ratio" in page.select_one("#table-A-1").get_text()
    assert page.html["lang"] == "en"


def test_code_is_folded_and_noise_is_gone(page: BeautifulSoup) -> None:
    folded = {details.summary.get_text(): details for details in page.select("main details")}
    assert set(folded) == {"Default parameters", "Code", "Source of vitlab.A"}
    assert not page.select("main details[open]")
    assert all(pre.find_parent("details") for pre in page.find_all("pre"))
    assert "epoch 1 done" in page.select_one("details pre.stdout").get_text()
    for noise in ("progress-bar", "secret_helper", "<Result at"):
        assert noise not in page.get_text()
    assert page.select_one("details .highlight span[class]")  # syntax colours


def test_formulas_are_mathml_and_prose_keeps_its_dollars(page: BeautifulSoup) -> None:
    shown_text = page.select_one("#content").get_text()
    assert not any(raw in shown_text for raw in ("$$", "\\(", "\\frac", "\\begin", "\\rho"))
    assert "cost $5 each" in shown_text
    assert "The run reached 0.91 at" in shown_text
    assert len(page.select("math[display=block]")) == 2
    assert page.find("math", alttext=r"X \in \mathbb{R}^{N\times D}")


def test_formula_that_is_no_tex_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ipynb", v4.new_markdown_cell("# 1. One\n\nThe new $\\KL(p \\| q)$."))
    with pytest.raises(LabError, match=r"\\KL\(p.*1\. One"):
        render([path], tmp_path / "out", TITLE, pdf=False)
    assert not (tmp_path / "out").exists()


def test_number_used_twice_is_an_error(tmp_path: Path) -> None:
    plot = v4.new_code_cell("plot()", outputs=[figure_output("1.1"), figure_output("1.1")])
    path = write(tmp_path / "a.ipynb", v4.new_markdown_cell("# 1. One"), plot)
    with pytest.raises(LabError, match="figure-1-1"):
        render([path], tmp_path / "out", TITLE, pdf=False)


def test_picture_without_caption_is_an_error(tmp_path: Path) -> None:
    plot = v4.new_code_cell("plot()", outputs=[v4.new_output("display_data", {"image/png": png()})])
    path = write(tmp_path / "a.ipynb", v4.new_markdown_cell("# 1. One"), plot)
    with pytest.raises(LabError, match=r"1\. One.*no alternative text"):
        render([path], tmp_path / "out", TITLE, pdf=False)


def test_failed_or_unnumbered_notebook_is_an_error(tmp_path: Path) -> None:
    error = v4.new_output("error", ename="ValueError", evalue="no data", traceback=[])
    cell = v4.new_code_cell("load()", outputs=[error])
    with pytest.raises(LabError, match=r"a\.ipynb.*ValueError: no data"):
        render([write(tmp_path / "a.ipynb", v4.new_markdown_cell("# 1. One"), cell)], tmp_path, TITLE)
    with pytest.raises(LabError, match=r"b\.ipynb.*chapter number"):
        render([write(tmp_path / "b.ipynb", v4.new_markdown_cell("# One"))], tmp_path, TITLE)


@pytest.mark.parametrize(
    ("html", "fault"),
    [
        ('<script src="https://example.org/a.js"></script>', "loads something"),
        ('<img src="figure.png" alt="x">', "loads something"),
        ("<style>a { background: url('https://example.org/a.png') }</style>", "loads something"),
        ('<style>@import "a.css";</style>', "loads something"),
        ('<p style="background: url(a.png)">', "loads something"),
        ('<p id="a"><p id="a">', "'a' occurs twice"),
        ('<img src="data:image/png;base64,AA" alt=" ">', "no alternative text"),
        ("<p>where $$x$$ is</p>", "raw TeX"),
        ("<p>where \\(x\\) is</p>", "raw TeX"),
        ('<a href="#gone">there</a>', "#gone"),
    ],
)
def test_check_finds(html: str, fault: str) -> None:
    with pytest.raises(LabError, match=fault):
        check(html)


def test_check_passes_what_stays_inside() -> None:
    check('<a href="https://example.org" id="a">x</a><a href="#a">y</a>')
    check("<style>b { src: url(data:font/woff;base64,A) }</style>")
    check("<code>$$ \\( is how TeX begins</code>")


@pytest.mark.slow
def test_same_notebooks_make_the_same_bytes(notebooks: list[Path], tmp_path: Path) -> None:
    one, two = render(notebooks, tmp_path / "a", TITLE), render(notebooks, tmp_path / "b", TITLE)
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["report.html", "report.pdf"]


def test_pdf_has_contents_figures_tables_and_no_code(notebooks: list[Path], tmp_path: Path) -> None:
    pdf = render(notebooks, tmp_path / "out", TITLE)[1]
    assert pdf.read_bytes().startswith(b"%PDF")
    with pdfplumber.open(pdf) as opened:
        pages = [" ".join(page.extract_text().split()) for page in opened.pages]
        assert sum(len(page.images) for page in opened.pages) == 2
    text = " ".join(pages)
    parts = ["digits & more", "Contents", "Figure 1.1. Loss over", "Table 1.1. Cost of", "otherwise", "Figure 2.1."]
    cells = [f"{k}.25%" for k in range(12)]  # all columns of a wide table
    for part in [*parts, *cells, "The run reached 0.91", "keep_ratio", f"{len(pages)} / {len(pages)}"]:
        assert part in text
    contents = pages[1]
    assert "1. Data & models" in contents
    assert "2.1 Attention" in contents
    for code in ("train(model)", "class Attention", "epoch 1 done", "$$", "\\frac"):
        assert code not in text


def test_pdf_failure_keeps_the_html(notebooks: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> bytes:
        raise RuntimeError("unknown variable: x")

    monkeypatch.setattr("typst.compile", fail)
    with pytest.raises(PdfError, match=r"unknown variable: x.*typst"):
        render(notebooks, tmp_path / "out", TITLE)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("fault", "cure"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "free some space"),
        (OSError("No pandoc was found"), "reinstall the packages"),
        (ImportError("No module named 'typst'"), "reinstall the packages"),
    ],
)
def test_pdf_failure_names_its_own_cure(
    fault: Exception, cure: str, notebooks: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> bytes:
        raise fault

    monkeypatch.setattr("vitlab.report.render.typeset", fail)
    with pytest.raises(PdfError, match=cure):
        render(notebooks, tmp_path / "out", TITLE)


def test_fault_of_the_programme_is_not_taken_for_one_of_its_tools(
    notebooks: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitlab.report.render.typeset", lambda *args: {}["figure-9"])
    with pytest.raises(KeyError):
        render(notebooks, tmp_path / "out", TITLE)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, True)])
def test_page_opens_offline(notebooks: list[Path], tmp_path: Path, width: int, dark: bool) -> None:
    path = render(notebooks, tmp_path / "out", TITLE, pdf=False)[0]
    seen = open_offline(path, width, dark)
    assert seen["requests"] == seen["errors"] == []
    assert seen["empty_images"] == seen["open_details"] == 0
    assert seen["overflow"] <= 0
    assert "Figure 1.1." in seen["text"]
    assert "epoch 1 done" not in seen["text"]
    assert open_offline(path, width, dark, click="#show-code")["open_details"] == 4
