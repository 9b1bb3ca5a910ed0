"""Executed notebooks in, one HTML file that opens offline and one PDF out.

nbconvert sets the cells as HTML, pandoc turns the formulas into MathML, and a few passes over the tree number the
sections, align the tables and link the references. The PDF is typeset by typst from that same tree, without the code.
"""

import base64
import io
import json
import re
import struct
import tempfile
import unicodedata
from html import escape
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import nbformat
import pypandoc
from bs4 import BeautifulSoup, NavigableString, Tag
from fontTools import subset
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from vitlab.config import LabError
from vitlab.files import writing

TEMPLATES = Path(__file__).parent / "templates"
PDF_IMAGE_BOX = (610, 640)  # CSS px: the text width of the PDF's A4 page, and a height that leaves room for a caption

CHAPTER = re.compile(r"(\d+|[A-Z])\.\s+(?=\S)")  # "2. Standard ViT"; appendices have a letter
REFERENCE = re.compile(r"\b(Figure|Table|Chapter)s?\s\d+(?:\.\d+)?(?:(?:, | and |, and |–| to )\d+(?:\.\d+)?)*")
REFERENCE_PART = re.compile(r"(?:[A-Z]\w+\s)?(\d+(?:\.\d+)?)")
NUMERIC = re.compile(r"[-−+±]?\s?\d[\d.,\s]*(?:e[-+]?\d+)?\s?[\w%×µ/²]{0,6}(?:\s?(?:±|–|\[).*)?|[-–—]?|nan")
RAW_TEX = re.compile(r"\$\$|\\[(\[]|\\begin\{")
CSS_LOAD = re.compile(r"@import|url\(\s*['\"]?(?!data:|#|['\"])", re.IGNORECASE)
LOADING_ATTRIBUTES = ("src", "srcset", "href", "xlink:href", "poster", "data", "action", "background")


class PdfError(LabError):
    """The PDF could not be made; the HTML report is in place."""


def render(notebooks: list[Path], out_dir: Path, title: dict[str, Any], pdf: bool = True) -> list[Path]:
    """Write `out_dir/report.html` and, if `pdf`, `out_dir/report.pdf` from executed notebooks; return their paths.

    `title` holds `title`, `subtitle` and `summary` (Markdown), `facts` as (label, value) pairs for the title page,
    and optionally `parameters` as (name, value, help) for an appendix and `author` for the PDF's metadata.

    Raises LabError for content that cannot be set: a failed notebook, a missing chapter number, a formula that is no
    TeX, a figure without alternative text, a reference to another file. Raises PdfError, after the HTML has been
    written, when only the PDF fails.
    """
    html_path, pdf_path = out_dir / "report.html", out_dir / "report.pdf"
    notebook, chapters = merge(notebooks)
    exporter = HTMLExporter(
        template_name="report",
        extra_template_basedirs=[str(TEMPLATES)],
        filters={"markdown2html": markdown_to_html},
        config={"TagRemovePreprocessor": {"remove_cell_tags": ["remove_cell"]}},
    )
    cells, _ = exporter.from_notebook_node(notebook, resources={"title": title})
    tree = BeautifulSoup(cells, "html.parser")
    set_formulas(tree)
    contents = number_sections(tree)
    size_images(tree)
    align_tables(tree)
    link_references(tree, chapters)
    page = exporter.environment.get_template("page.html.j2")
    html = page.render(title=title["title"], contents=contents, content=tree, math_font=math_font(tree)) + "\n"
    check(html)
    with writing(html_path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    if not pdf:
        return [html_path]
    try:
        document = typeset(tree, title)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        cure = "check that the packages typst and pypandoc_binary are installed, or render without PDF"
        raise PdfError(f"the PDF could not be made ({reason}); {html_path} is complete: {cure}") from error
    with writing(pdf_path) as temporary:
        temporary.write_bytes(document)
    return [html_path, pdf_path]


def merge(paths: list[Path]) -> tuple[nbformat.NotebookNode, dict[str, str]]:
    """One notebook with the cells of all, and the element id of each notebook's chapter by file name."""
    merged, chapters = nbformat.v4.new_notebook(), {}
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        first = re.match(rf"#\s+{CHAPTER.pattern}", notebook.cells[0].source if notebook.cells else "")
        if not first:
            raise LabError(f"{path}: the first cell must be a heading with a chapter number, such as '# 2. Results'")
        chapters[path.name] = f"chapter-{first[1]}"
        for number, cell in enumerate(notebook.cells):
            cell.id = f"{first[1]}-{number}"  # cells of two notebooks may share an id
            failed = [output for output in cell.get("outputs", []) if output.output_type == "error"]
            if failed:
                raise LabError(f"{path}: cell {number} failed with {failed[0].ename}: {failed[0].evalue}; run it again")
        merged.cells += notebook.cells
        merged.metadata = notebook.metadata
    return merged, chapters


class MathRenderer(IPythonRenderer):
    """Markdown to HTML with each formula as `<span class="math">` around its TeX, for `set_formulas` to find."""

    def inline_math(self, body: str) -> str:
        return f'<span class="math">{escape(body)}</span>'

    def block_math(self, body: str) -> str:
        return f'<span class="math formula">{escape(body)}</span>'

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(rf"\begin{{{name}}}{body}\end{{{name}}}")


def markdown_to_html(text: str) -> str:
    """HTML of Markdown with formulas in dollars."""
    return MarkdownWithMath(renderer=MathRenderer(escape=False, exclude_anchor_links=True)).render(text)


def set_formulas(tree: BeautifulSoup) -> None:
    """Replace every formula's TeX by MathML, all in one call of pandoc; a formula it cannot read is a LabError."""
    formulas = tree.select("span.math")
    blocks = []
    for formula in formulas:
        display = "DisplayMath" if "formula" in formula["class"] else "InlineMath"
        blocks.append({"t": "Para", "c": [{"t": "Math", "c": [{"t": display}, formula.get_text().strip()]}]})
    document = {"pandoc-api-version": [1, 23], "meta": {}, "blocks": blocks}
    html = pypandoc.convert_text(json.dumps(document), "html", "json", extra_args=["--mathml", "--wrap=none"])
    for formula, paragraph in zip(formulas, BeautifulSoup(html, "html.parser").find_all("p"), strict=True):
        tex = formula.get_text().strip()
        if paragraph.math is None:
            chapter = formula.find_previous("h1")
            place = f" in '{chapter.get_text()}'" if chapter else ""
            raise LabError(f"the formula '{tex}'{place} is no TeX that pandoc can convert; write it in plain LaTeX")
        math = paragraph.math.extract()
        math["alttext"] = tex  # also what the PDF is set from
        math.annotation.decompose()
        math.semantics.unwrap()
        formula.clear()
        formula.append(math)


def math_font(tree: BeautifulSoup) -> str:
    """The glyphs of STIX Two Math that the document's formulas need, as base64 WOFF; brackets keep stretching."""
    text = set("".join(math.get_text() for math in tree.find_all("math"))) | {"−"}  # drawn for a hyphen
    for code in range(0x1D434, 0x1D7CC):  # a browser draws a one-letter <mi> with the alphabet's italic letter
        if unicodedata.name(chr(code), "").startswith("MATHEMATICAL ITALIC"):
            text |= {chr(code)} if unicodedata.normalize("NFKC", chr(code)) in text else set()
    options = subset.Options(flavor="woff", layout_features=["ssty", "dtls", "flac"], desubroutinize=True)
    with as_file(files("ziamath") / "fonts" / "STIXTwoMath-Regular.ttf") as path:
        font = subset.load_font(path, options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(text="".join(sorted(text | {"ℎ"})))  # the italic h has its own place in Unicode
    subsetter.subset(font)
    buffer = io.BytesIO()
    subset.save_font(font, buffer, options)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def number_sections(tree: BeautifulSoup) -> list[dict[str, Any]]:
    """Give chapters and sections their ids and numbers; return the contents as nested id, label, sections."""
    contents: list[dict[str, Any]] = []
    for heading in tree.select("main h1, main h2"):
        if heading.name == "h1":
            match = CHAPTER.match(heading.get_text())
            if not match or not isinstance(heading.contents[0], NavigableString):
                raise LabError(f"the heading '# {heading.get_text()}' needs a chapter number: '# 2. Title'")
            number, sections = match[1], []
            heading["id"] = f"chapter-{number}"
            heading.contents[0].replace_with(heading.contents[0][match.end() :])
            entry = {"id": heading["id"], "sections": sections}
            contents.append(entry)
            shown = f"{number}."
        else:
            shown = f"{number}.{len(sections) + 1}"
            heading["id"] = f"section-{shown.replace('.', '-')}"
            entry = {"id": heading["id"]}
            sections.append(entry)
        tag = tree.new_tag("span", attrs={"class": "number"})
        tag.string = shown
        heading.insert(0, tag, " ")
        entry["label"] = heading.decode_contents()
    return contents


def size_images(tree: BeautifulSoup) -> None:
    """Give each embedded PNG its height, so that the page does not move while it is being drawn."""
    for image in tree.select("img[src^='data:image/png'][width]"):
        width, height = struct.unpack(">II", base64.b64decode(image["src"].partition(",")[2])[16:24])
        image["height"] = round(int(image["width"]) * height / width)


def align_tables(tree: BeautifulSoup) -> None:
    """Set columns of numbers flush right, join pandas' two header rows into one, make wide tables scroll."""
    for table in tree.select("table"):
        for tag in table.select("tr[style], [border]") + [table]:
            del tag["style"], tag["border"]
        head = table.select("thead tr")
        if len(head) == 2:  # pandas puts the names of columns and of the index in two rows, each half empty
            pairs = list(zip(head[0].find_all("th"), head[1].find_all("th"), strict=False))
            if all(not (upper.get_text(strip=True) and lower.get_text(strip=True)) for upper, lower in pairs):
                for upper, lower in pairs:
                    upper.extend(list(lower.contents))
                head[1].decompose()
        rows = [row.find_all("td") for row in table.select("tbody tr")]
        for offset, column in enumerate(zip(*rows, strict=False)):
            if all(NUMERIC.fullmatch(cell.get_text(strip=True)) for cell in column):
                headers = head[0].find_all("th")[offset - len(rows[0]) :][:1] if head else []
                for cell in [*column, *headers]:
                    cell["class"], cell["style"] = "numeric", "text-align: right"
        if not table.find_parent(class_="scroll"):
            table.wrap(tree.new_tag("div", attrs={"class": "scroll"}))
    for box in tree.select("div.scroll"):
        box["tabindex"] = "0"  # so that the keyboard can scroll it


def link_references(tree: BeautifulSoup, chapters: dict[str, str]) -> None:
    """Link "Figure 2.3", "Tables 4.1 and 4.2" and links between notebooks to their place in the report."""
    ids = {tag["id"] for tag in tree.find_all(id=True)}
    for text in tree.find_all(string=REFERENCE):
        figure = text.find_parent("figure")
        if text.find_parent(["a", "h1", "h2", "h3", "h4", "code", "pre", "details", "math"]):
            continue

        def linked(match: re.Match[str], own: str = figure["id"] if figure and figure.get("id") else "") -> str:
            def part(found: re.Match[str]) -> str:
                target = f"{match[1].lower()}-{found[1].replace('.', '-')}"
                return f'<a href="#{target}">{found[0]}</a>' if target in ids - {own} else found[0]

            return REFERENCE_PART.sub(part, match[0])

        html = REFERENCE.sub(linked, escape(text, quote=False))
        text.replace_with(*list(BeautifulSoup(html, "html.parser").contents))
    for link in tree.select("a[href]"):
        target = link["href"]
        if chapter := chapters.get(Path(target).name):
            link["href"] = f"#{chapter}"
        elif not re.match(r"https?:|mailto:|#", target):
            link.unwrap()  # a file beside the notebook is not beside the report


def check(html: str) -> None:
    """LabError if the page loads anything from outside, repeats an id, shows raw TeX or lacks alternative text."""
    tree = BeautifulSoup(html, "html.parser")
    ids = [tag["id"] for tag in tree.find_all(id=True)]
    faults = [f"the id '{name}' occurs twice: is a figure or table number used twice?" for name in ids
              if ids.count(name) > 1]  # fmt: skip
    for tag in tree.find_all(True):
        for name in LOADING_ATTRIBUTES:
            value = tag.get(name)
            if value and not value.startswith(("data:", "#")) and not (tag.name == "a" and name == "href"):
                faults.append(f"<{tag.name} {name}='{value[:80]}'> loads something from outside the file")
        style = tag.get_text() if tag.name == "style" else tag.get("style", "")
        if CSS_LOAD.search(style):
            faults.append(f"a style of <{tag.name}> loads something from outside the file")
        if tag.name == "a" and tag.get("href", "").startswith("#") and tag["href"][1:] not in ids:
            faults.append(f"the link '{tag.get_text()}' leads to '{tag['href']}', which is not in the report")
        if tag.name == "img" and not tag.get("alt", "").strip():
            faults.append(f"an image after '{tag.find_previous(['h1', 'h2']).get_text()}' has no alternative text")
    for tag in tree.select("script, style, pre, code"):
        tag.decompose()
    faults += [f"raw TeX is left in '{text.strip()[:80]}'" for text in tree.find_all(string=RAW_TEX)]
    if faults:
        raise LabError("the report is not whole: " + "; ".join(dict.fromkeys(faults)))


def typeset(tree: BeautifulSoup, title: dict[str, Any]) -> bytes:
    """The PDF of the report's tree, without the code, set in typst's own fonts so that it is the same everywhere."""
    import typst  # here, so that a platform without it still gets the HTML

    tree = BeautifulSoup(str(tree), "html.parser")
    for tag in tree.select("details, hr"):
        tag.decompose()
    for math in tree.find_all("math"):
        display = "; mode=display" if math.get("display") == "block" else ""
        script = tree.new_tag("script", attrs={"type": f"math/tex{display}"})  # what pandoc reads as a formula
        # the space that \! takes away is an overlap after a script letter
        script.string = math["alttext"].replace(r"\!", "")
        math.replace_with(script)
    for figure in tree.select("figure.table"):
        caption = figure.figcaption.extract()
        caption.name = "caption"
        figure.table["id"] = figure["id"]
        figure.table.insert(0, caption)
        figure.unwrap()
    with tempfile.TemporaryDirectory() as folder:
        alternatives = {}
        for number, image in enumerate(tree.find_all("img")):
            name = f"image{number}.png"
            Path(folder, name).write_bytes(base64.b64decode(image["src"].partition(",")[2]))
            alternatives[name] = image["alt"]
            width, height = int(image.get("width", PDF_IMAGE_BOX[0])), int(image.get("height", 1))
            image["width"] = round(width * min(1, PDF_IMAGE_BOX[0] / width, PDF_IMAGE_BOX[1] / height))
            del image["height"]
            image["src"] = name
        body = _typst(tree.main)
        for name, alternative in alternatives.items():
            quoted = json.dumps(alternative, ensure_ascii=False)
            body = body.replace(f'image("{name}"', f'image("{name}", alt: {quoted}')
        Path(folder, "body.typ").write_text(body, encoding="utf-8")
        Path(folder, "summary.typ").write_text(_typst(tree.select_one(".summary")), encoding="utf-8")
        Path(folder, "main.typ").write_bytes((TEMPLATES / "report.typ").read_bytes())
        facts = [[str(label), str(value)] for label, value in title["facts"]]
        data = {"title": title["title"], "subtitle": title.get("subtitle", ""), "author": title.get("author", "vitlab")}
        inputs = {"report": json.dumps(data | {"facts": facts})}
        return typst.compile(Path(folder, "main.typ"), root=folder, ignore_system_fonts=True, sys_inputs=inputs)


def _typst(tag: Tag) -> str:
    """Typst markup of an element. Symbols that typst renamed after pandoc learnt them get their new names."""
    options = ["--wrap=none", "--syntax-highlighting=none"]
    body = pypandoc.convert_text(str(tag), "typst", "html-native_divs-native_spans", extra_args=options)
    return "#let sect = sym.inter\n" + re.sub(r"\b(dot|minus|times)\.circle\b", r"\1.o", body)
