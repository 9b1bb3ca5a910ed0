"""Executed notebooks in, one HTML file that opens offline and one PDF out.

nbconvert sets the cells as HTML, pandoc turns the formulas into MathML, and a few passes over the tree number
the sections, align the tables and link the references. typst sets the same tree, without the code, as PDF.
"""

import base64
import io
import json
import re
import shutil
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

from vitlab.analysis.typefaces import covering
from vitlab.errors import LabError
from vitlab.files import reading, writing
from vitlab.texts import literal

TEMPLATES = Path(__file__).parent / "templates"
PDF_IMAGE_BOX = (610, 520)  # CSS px: the width of the PDF's text, and a little more than half its height
LONG_CELL = 40  # characters from which the text of a table cell may take several lines

CHAPTER = re.compile(r"(\d+|[A-Z])\.\s+(?=\S)")  # "2. Standard ViT"; appendices have a letter
NUMBER = r"(?:[A-Z]\.\d+|\d+(?:\.\d+)?)"
REFERENCE = re.compile(rf"\b(Figure|Table|[Cc]hapter)s?\s{NUMBER}(?:(?:, | and |, and |–| to ){NUMBER})*")
REFERENCE_PART = re.compile(rf"(?:[FTCc]\w+\s)?({NUMBER})")
NUMERIC = re.compile(r"[-−+±]?\s?\d[\d.,\s]*(?:e[-+]?\d+)?\s?[\w%×µ/²]{0,10}(?:\s?(?:±|–|\[).*)?|[-–—]?|nan")
CASES = re.compile(r"\\begin\{cases\}.*?\\end\{cases\}", re.DOTALL)
RAW_TEX = re.compile(r"\$\$|\\[(\[]|\\begin\{")
CSS_LOAD = re.compile(r"@import|url\(\s*['\"]?(?!data:|#|['\"])", re.IGNORECASE)
LOADING_ATTRIBUTES = ("src", "srcset", "href", "xlink:href", "poster", "data", "action", "background")
SPACING_ACCENTS = {"\u0302": "ˆ", "\u0303": "˜", "\u0304": "¯", "\u0307": "˙"}  # combining ones stand askew


class PdfError(LabError):
    """The PDF could not be made; the HTML report is in place."""


def render(notebooks: list[Path], out_dir: Path, title: dict[str, Any], pdf: bool = True) -> list[Path]:
    """Write `out_dir/report.html` and, if `pdf`, `out_dir/report.pdf` from executed notebooks; return both.

    `title` holds `title`, `subtitle`, `summary` (Markdown) and `facts`, the (label, value) pairs of the title
    page; optionally `parameters` as (name, value, help) for an appendix and `author` for the PDF's metadata.

    Raises LabError for content that cannot be set: a failed notebook, a chapter without number, a formula
    that is no TeX, a figure without alternative text, anything loaded from outside. PdfError says that only
    the PDF failed: the HTML is written by then.
    """
    html_path, pdf_path = out_dir / "report.html", out_dir / "report.pdf"
    notebook, chapters = merge(notebooks)
    exporter = HTMLExporter(
        template_name="report",
        extra_template_basedirs=[str(TEMPLATES)],
        filters={"markdown2html": markdown_to_html, "literal": literal},
    )
    content, _ = exporter.from_notebook_node(notebook, resources={"title": title})
    tree = BeautifulSoup(content, "html.parser")
    set_formulas(tree)
    contents = number_sections(tree)
    complete_images(tree)
    align_tables(tree)
    link_references(tree, chapters)
    page = exporter.environment.get_template("page.html.j2")
    html = page.render(title=title["title"], contents=contents, content=tree, math_font=math_font(tree))
    check(html)
    pdf_path.unlink(missing_ok=True)  # of an earlier report
    with writing(html_path) as temporary:
        temporary.write_text(html + "\n", encoding="utf-8")
    if not pdf:
        return [html_path]
    try:
        document = typeset(tree, title)
    except Exception as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        cure = "reinstall the packages typst and pypandoc_binary"
        raise PdfError(f"no PDF ({reason}): {cure}; {html_path} is complete") from error
    with writing(pdf_path) as temporary:
        temporary.write_bytes(document)
    return [html_path, pdf_path]


def merge(paths: list[Path]) -> tuple[nbformat.NotebookNode, dict[str, str]]:
    """One notebook with the cells of all, and the element id of each notebook's chapter by file name."""
    merged, chapters = nbformat.v4.new_notebook(), {}
    for path in paths:
        with reading(path, "delete it, and run the notebook again"):
            notebook = nbformat.read(path, as_version=4)
        first = re.match(rf"#\s+{CHAPTER.pattern}", notebook.cells[0].source if notebook.cells else "")
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


class MathRenderer(IPythonRenderer):
    """Markdown to HTML with each formula as `<span class="math">` around its TeX, for `set_formulas`."""

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
    """Replace each formula's TeX by MathML, all in one call of pandoc; LabError names one it cannot read."""
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
            heading = formula.find_previous("h1")
            place = f" in '{heading.get_text()}'" if heading else ""
            raise LabError(f"the formula '{tex}'{place} cannot be converted; write it in plain LaTeX")
        math = paragraph.math.extract()
        math["alttext"] = tex  # also what the PDF is set from
        math.annotation.decompose()
        math.semantics.unwrap()
        for table in math.select("mtable:has(mtd[columnalign=right])"):
            table["displaystyle"] = "true"  # aligned equations are as large as a single one
        for accent in math.select("mover > mo[accent]"):
            if mark := SPACING_ACCENTS.get(accent.get_text()):
                accent.string, accent["stretchy"], accent.parent["accent"] = mark, "false", "true"
        for bar in math.select("mo[stretchy=true]"):
            if bar.get_text() in "|‖" and not bar.parent.select("mfrac, munder, munderover, mtable, msqrt"):
                bar["stretchy"] = "false"  # a norm of letters is as high as they are
        formula.clear()
        formula.append(math)
        after = formula.next_sibling
        if isinstance(after, NavigableString) and after[:1] in tuple(".,;:)"):  # no line may begin with it
            formula.append(after[0])
            after.replace_with(after[1:])


def math_font(tree: BeautifulSoup) -> str:
    """The glyphs of STIX Two Math that the formulas need, as base64 WOFF; its brackets keep stretching."""
    text = {*"".join(math.get_text() for math in tree.find_all("math")), *"√−ℎ"}  # drawn for msqrt, -, h
    for letter in map(chr, range(0x1D434, 0x1D7CC)):  # a browser draws <mi>x</mi> with the italic letter
        if unicodedata.normalize("NFKC", letter) in text and "L ITALIC" in unicodedata.name(letter, ""):
            text.add(letter)
    options = subset.Options(flavor="woff", layout_features=["ssty", "dtls", "flac"])
    with as_file(files("ziamath") / "fonts" / "STIXTwoMath-Regular.ttf") as path:
        font = subset.load_font(path, options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(text="".join(sorted(text)))
    subsetter.subset(font)
    buffer = io.BytesIO()
    subset.save_font(font, buffer, options)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def number_sections(tree: BeautifulSoup) -> list[dict[str, Any]]:
    """Give chapters and sections their ids and numbers; return the contents as nested id, label, sections."""
    contents: list[dict[str, Any]] = []
    for heading in tree.select("main h1, main h2"):
        entry: dict[str, Any] = {"sections": []}
        if heading.name == "h1":
            match = CHAPTER.match(heading.get_text())
            if not match or not isinstance(heading.contents[0], NavigableString):
                raise LabError(f"the heading '# {heading.get_text()}' needs a chapter number: '# 2. Title'")
            heading.contents[0].replace_with(heading.contents[0][match.end() :])
            chapter, shown, entry["id"] = match[1], f"{match[1]}.", f"chapter-{match[1]}"
            contents.append(entry)
        else:
            contents[-1]["sections"].append(entry)
            count = len(contents[-1]["sections"])
            shown, entry["id"] = f"{chapter}.{count}", f"section-{chapter}-{count}"
        heading["id"] = entry["id"]
        number = tree.new_tag("span", attrs={"class": "number"})
        number.string = shown
        heading.insert(0, number, " ")
        entry["label"] = heading.decode_contents()
    return contents


def complete_images(tree: BeautifulSoup) -> None:
    """Give figures a height, so that the page does not move while drawn, and the caption if they lack alt."""
    for image in tree.select("img[src^='data:image/png'][width]"):
        width, height = struct.unpack(">II", base64.b64decode(image["src"].partition(",")[2])[16:24])
        image["height"] = round(int(image["width"]) * height / width)
    for figure in tree.select("figure:has(img[alt='']):has(figcaption)"):
        figure.img["alt"] = figure.figcaption.get_text().strip()


def align_tables(tree: BeautifulSoup) -> None:
    """Set columns of numbers flush right, join pandas' two header rows into one, make wide tables scroll."""
    for table in tree.select("table"):
        for tag in [table, *table.select("tr[style]")]:
            del tag["style"], tag["border"]
        head = table.select("thead tr")
        if len(head) == 2:  # pandas puts the names of the columns and of the index in two half empty rows
            pairs = list(zip(head[0].find_all("th"), head[1].find_all("th"), strict=False))
            if not any(upper.get_text(strip=True) and lower.get_text(strip=True) for upper, lower in pairs):
                for upper, lower in pairs:
                    upper.extend(list(lower.contents))
                head[1].decompose()
        rows = [row.find_all("td") for row in table.select("tbody tr")]
        for offset, column in enumerate(zip(*rows, strict=False)):
            if all(NUMERIC.fullmatch(cell.get_text(strip=True)) for cell in column):
                header = head[0].find_all("th")[offset - len(rows[0]) :][:1] if head else []
                for cell in [*column, *header]:
                    cell["class"], cell["style"] = "numeric", "text-align: right"
            for cell in column:
                if len(cell.get_text(strip=True)) > LONG_CELL:
                    cell["class"] = "long"
        if not table.find_parent(class_="scroll"):
            table.wrap(tree.new_tag("div", attrs={"class": "scroll"}))
    for box in tree.select("div.scroll"):
        box["tabindex"] = "0"  # so that the keyboard can scroll it


def link_references(tree: BeautifulSoup, chapters: dict[str, str]) -> None:
    """Link "Figure 2.3", "Tables 4.1 and 4.2" and links between notebooks to their place in the report."""
    ids = {tag["id"] for tag in tree.find_all(id=True)}
    for text in tree.find_all(string=REFERENCE):
        if not text.find_parent(["a", "h1", "h2", "h3", "h4", "code", "pre", "details", "math"]):
            own = {parent.get("id") for parent in text.parents}  # a caption does not link to itself
            linked = BeautifulSoup(_linked(escape(text, quote=False), ids - own), "html.parser")
            text.replace_with(*list(linked.contents))
    for link in tree.select("a[href]"):
        if chapter := chapters.get(Path(link["href"]).name):
            link["href"] = f"#{chapter}"
        elif not re.match(r"https?:|mailto:|#", link["href"]):
            link.unwrap()  # a file beside the notebook is not beside the report


def _linked(html: str, ids: set[str]) -> str:
    def link(reference: re.Match[str]) -> str:
        def part(match: re.Match[str]) -> str:
            target = f"{reference[1].lower()}-{match[1].replace('.', '-')}"
            return f'<a class="reference" href="#{target}">{match[0]}</a>' if target in ids else match[0]

        return REFERENCE_PART.sub(part, reference[0])

    return REFERENCE.sub(link, html)


def check(html: str) -> None:
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
    for tag in tree.select("script, style, pre, code"):
        tag.decompose()
    faults += [f"raw TeX is left in '{text.strip()[:80]}'" for text in tree.find_all(string=RAW_TEX)]
    if faults:
        raise LabError("the report is not whole: " + "; ".join(dict.fromkeys(faults)))


def typeset(tree: BeautifulSoup, title: dict[str, Any]) -> bytes:
    """The PDF of the report's tree, without the code, in the fonts that typst brings: the same everywhere.

    Letters that these lack are set in installed ones.
    """
    import typst  # here, so that a platform without it still gets the HTML

    tree = BeautifulSoup(str(tree), "html.parser")
    for tag in tree.select("details, hr"):
        tag.decompose()
    for math in tree.find_all("math"):
        mode = "; mode=display" if math.get("display") == "block" else ""
        script = tree.new_tag("script", attrs={"type": f"math/tex{mode}"})  # pandoc reads it as a formula
        # typst sets the columns of cases without a gap
        script.string = CASES.sub(lambda match: match[0].replace("&", r"&\quad "), math["alttext"])
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
            alternatives[f'image("{name}"'] = json.dumps(image["alt"], ensure_ascii=False)
            width, height = int(image.get("width", PDF_IMAGE_BOX[0])), int(image.get("height", 1))
            image["width"] = round(width * min(1, PDF_IMAGE_BOX[0] / width, PDF_IMAGE_BOX[1] / height))
            image["src"] = name
            del image["height"]
        body = _typst_markup(tree.main)
        for call, alternative in alternatives.items():  # pandoc drops it
            body = body.replace(call, f"{call}, alt: {alternative}")
        Path(folder, "body.typ").write_text(body, encoding="utf-8")
        Path(folder, "summary.typ").write_text(_typst_markup(tree.select_one(".summary")), encoding="utf-8")
        Path(folder, "report.typ").write_bytes((TEMPLATES / "report.typ").read_bytes())
        faces, _ = covering(tree.get_text() + json.dumps(title, ensure_ascii=False))
        Path(folder, "fonts").mkdir()
        for face in faces:
            shutil.copy(face.path, Path(folder, "fonts"))
        data: dict[str, Any] = {name: title.get(name, "") for name in ("title", "subtitle")}
        data["faces"] = [face.family for face in faces]
        data["author"] = title.get("author", "vitlab")
        data["facts"] = [[str(label), str(value)] for label, value in title["facts"]]
        main, inputs = Path(folder, "report.typ"), {"report": json.dumps(data)}
        fonts = [Path(folder, "fonts")]
        return typst.compile(main, root=folder, font_paths=fonts, ignore_system_fonts=True, sys_inputs=inputs)


def _typst_markup(tag: Tag) -> str:
    """An element in typst's language, with what pandoc gets wrong in formulas put right."""
    options = ["--wrap=none", "--syntax-highlighting=none"]
    markup = pypandoc.convert_text(str(tag), "typst", "html-native_divs-native_spans", extra_args=options)

    def mend(match: re.Match[str]) -> str:
        if match[1]:
            return match[0]  # code, where a dollar is a dollar
        formula = match[0].replace("#h(0em)", "thick").replace("#h(-1em)", "#h(-0.167em)")  # \; \! rounded
        formula = re.sub(r"\b(dot|minus|times)\.circle\b", r"\1.o", formula)  # names that typst has changed
        formula = re.sub(r"\bsect\b", "inter", formula)
        return re.sub(r'(?<!\()"([\w ]+)"', r'op("\1")', formula)  # named operators, spaced as such

    return re.sub(r"(?<!\\)(`+).*?\1|(?<!\\)\$[^$]+\$", mend, markup, flags=re.DOTALL)
