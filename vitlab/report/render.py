"""Executed notebooks in, one HTML file that opens offline and one PDF out.

nbconvert sets the cells as HTML, pandoc turns the formulas into MathML, and a few passes over the tree number
the sections, align the tables and link the references (`page`). typst sets the same tree, without the code, as PDF
(`paper`). Charts come as drawings (`analysis.drawing`): they are set in the page's own colours, and as vectors in the
PDF.
"""

import base64
import re
from html import escape
from pathlib import Path
from typing import Any

import nbformat
from bs4 import BeautifulSoup
from nbconvert.exporters import HTMLExporter

from vitlab.analysis.drawing import Drawing, dark_series, embedded, light_series
from vitlab.errors import LabError
from vitlab.files import reading, writing
from vitlab.report import page
from vitlab.report.fonts import math_font, text_faces
from vitlab.report.formulas import markdown_to_html, set_formulas
from vitlab.report.notebook import VECTOR
from vitlab.report.paper import TEMPLATES, typeset
from vitlab.texts import literal

RAW_TEX = re.compile(r"\$\$|\\[(\[]|\\begin\{")
CSS_LOAD = re.compile(r"@import|url\(\s*['\"]?(?!data:|#|['\"])", re.IGNORECASE)
LOADING_ATTRIBUTES = ("src", "srcset", "href", "xlink:href", "poster", "data", "action", "background")
OVERVIEW = "overview"  # number of the figure on page one
TOOLS = "reinstall the packages typst and pypandoc_binary"
PLACE = "OUT=<folder>"  # what names another place for a report


class PdfError(LabError):
    """The PDF could not be made; the HTML report is in place."""


def render(notebooks: list[Path], out_dir: Path, title: dict[str, Any], pdf: bool = True) -> list[Path]:
    """Write `out_dir/report.html` and, if `pdf`, `out_dir/report.pdf` from executed notebooks; return both.

    `title` holds `title`, `subtitle`, `summary` (Markdown) and `facts`, the (label, value) pairs of how the report was
    made; optionally `hero`, the metadata of the figure on page one with its `drawing`; `table`, an HTML table with its
    `caption`; `parameters` as (name, value, help) for an appendix; and `author` for the PDF's metadata.

    Raises LabError for content that cannot be set: a failed notebook, a chapter without number, a formula
    that is no TeX, a figure without alternative text, anything loaded from outside. PdfError says that only
    the PDF failed: the HTML is written by then.
    """
    html_path, pdf_path = out_dir / "report.html", out_dir / "report.pdf"
    notebook, chapters = merge(notebooks)
    drawings = drawings_of(notebook)
    if hero := title.get("hero"):
        drawings[OVERVIEW] = hero["drawing"]
    filters = {"markdown2html": markdown_to_html, "literal": literal}
    filters["base64"] = lambda text: base64.b64encode(text.encode()).decode()
    exporter = HTMLExporter(template_name="report", extra_template_basedirs=[str(TEMPLATES)], filters=filters)
    content, _ = exporter.from_notebook_node(notebook, resources={"title": title, "vector": VECTOR})
    tree = BeautifulSoup(content, "html.parser")
    set_formulas(tree)
    contents = page.number_sections(tree)
    page.complete_images(tree)
    page.align_tables(tree)
    page.link_references(tree, chapters)
    letters = tree.get_text() + "".join(drawing.svg for drawing in drawings.values())
    html = exporter.environment.get_template("page.html.j2").render(
        title=title["title"],
        contents=contents,
        content=tree,
        math_font=math_font(tree),
        text_faces=text_faces(letters),
        series=(light_series(), dark_series()),
    )
    check(html, drawings)
    html = with_drawings(html, drawings)
    pdf_path.unlink(missing_ok=True)  # of an earlier report
    with writing(html_path, PLACE) as temporary:
        temporary.write_text(html + "\n", encoding="utf-8")
    if not pdf:
        return [html_path]
    try:
        document = typeset(tree, title, drawings)
    except (ImportError, RuntimeError, OSError) as error:  # RuntimeError: of typst and of pandoc
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        of_files = isinstance(error, OSError) and error.errno  # pandoc's, where it is not found, has none
        cure = "free some space, or check the permissions of the folder for temporary files" if of_files else TOOLS
        raise PdfError(f"no PDF ({reason}): {cure}; {html_path} is complete") from error
    with writing(pdf_path, PLACE) as temporary:
        temporary.write_bytes(document)
    return [html_path, pdf_path]


def merge(paths: list[Path]) -> tuple[nbformat.NotebookNode, dict[str, str]]:
    """One notebook with the cells of all, and the element id of each notebook's chapter by file name."""
    merged, chapters = nbformat.v4.new_notebook(), {}
    for path in paths:
        with reading(path, "delete it, and run the notebook again"):
            notebook = nbformat.read(path, as_version=4)
        first = re.match(rf"#\s+{page.CHAPTER.pattern}", notebook.cells[0].source if notebook.cells else "")
        if not first:
            raise LabError(f"{path}: the first cell must be a heading with a chapter number: '# 2. Results'")
        chapters[path.name] = f"chapter-{first[1]}"
        for number, cell in enumerate(notebook.cells):
            cell.id = f"{first[1]}-{number}"  # cells of two notebooks may share an id
            for output in cell.get("outputs", []):
                if output.output_type == "error":
                    fault = f"{output.ename}: {output.evalue}"
                    raise LabError(f"{path}: cell {number} failed ({fault}); run the notebook again")
        # papermill's cell repeats the parameters, which the appendix lists, with the paths of this machine
        left_out = {"remove_cell", "injected-parameters", "exercise"}
        merged.cells += [c for c in notebook.cells if not left_out.intersection(c.metadata.get("tags", ()))]
        merged.metadata = notebook.metadata
    return merged, chapters


def drawings_of(notebook: nbformat.NotebookNode) -> dict[str, Drawing]:
    """Number -> drawing of each figure that has one; figures of older notebooks are PNG alone."""
    found = {}
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if VECTOR in output.get("data", {}):
            meta = output.metadata.vitlab
            found[meta.number] = Drawing(output.data[VECTOR], *meta["size"], meta.panels)
    return found


def with_drawings(html: str, drawings: dict[str, Drawing]) -> str:
    """The page with each figure's place taken by its drawing."""

    def place(match: re.Match[str]) -> str:
        image = BeautifulSoup(match[0], "html.parser").img
        number = image["data-drawing"]
        return embedded(drawings[number], f"drawing-{number.replace('.', '-')}", escape(image["alt"]))

    return re.sub(r"<img[^>]*data-drawing=[^>]*>", place, html)


def check(html: str, drawings: dict[str, Drawing] | None = None) -> None:
    """LabError if the page loads anything, repeats an id, shows raw TeX or lacks alternative text."""
    tree = BeautifulSoup(html, "html.parser")
    ids = [tag["id"] for tag in tree.find_all(id=True)]
    twice = {name for name in ids if ids.count(name) > 1}
    faults = [f"the id '{name}' occurs twice; give each figure its own number" for name in sorted(twice)]
    for tag in tree.find_all(True):
        for name in LOADING_ATTRIBUTES:
            value = tag.get(name)
            if value and not value.startswith(("data:", "#")) and (tag.name, name) != ("a", "href"):
                faults.append(f"<{tag.name} {name}='{value[:80]}'> loads something from outside the file")
        if CSS_LOAD.search(tag.get_text() if tag.name == "style" else tag.get("style", "")):
            faults.append(f"a style of <{tag.name}> loads something from outside the file")
        if tag.name == "a" and tag.get("href", "").startswith("#") and tag["href"][1:] not in ids:
            faults.append(f"the link '{tag.get_text()}' leads to '{tag['href']}', which is not in the report")
        if tag.name == "img" and not tag.get("alt", "").strip():
            heading = tag.find_previous(["h1", "h2"])
            faults.append(f"an image in '{heading and heading.get_text()}' has no alternative text")
    for number, drawing in (drawings or {}).items():
        loads = re.findall(r'(?:href|src)="(?!#|data:)([^"]*)"', drawing.svg)
        if loads or CSS_LOAD.search(drawing.svg) or "<script" in drawing.svg:
            faults.append(f"the drawing of figure {escape(number)} loads something from outside the file")
    for tag in tree.select("script, style, pre, code"):
        tag.decompose()
    faults += [f"raw TeX is left in '{text.strip()[:80]}'" for text in tree.find_all(string=RAW_TEX)]
    if faults:
        raise LabError("the report is not whole: " + "; ".join(dict.fromkeys(faults)))
