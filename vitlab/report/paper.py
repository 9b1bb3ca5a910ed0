"""The report on paper: the page's tree, without the code, set by typst as PDF.

Its typeface is the page's; what is wider than the text is split, and what is long stands in an appendix.
"""

import base64
import copy
import json
import re
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pypandoc
from bs4 import BeautifulSoup, NavigableString, Tag
from fontTools.ttLib import TTFont

from vitlab.analysis.drawing import Drawing
from vitlab.analysis.theme import FONTS, WIDTH
from vitlab.analysis.typefaces import covering
from vitlab.report.pages import Block, arranged

TEMPLATES = Path(__file__).parent / "templates"
IMAGE_BOX = (WIDTH * 96, 530)  # CSS px: the width of the text, and a little more than half its height
SAME_PAGE = "same-page"  # class of a chapter's heading that begins no page
LONG_TABLE = 24  # rows of a table from which it stands in the appendix
TABLE_SIZE, INSET = 8.5, 8.0  # points: of a table's letters, and beside each of its cells
CODE_WIDTH = 0.602 * 8.0  # points of a character of code: DejaVu Sans Mono at the size that style.typ has
NARROW = 110.0  # points that a column of words may be squeezed to
CASES = re.compile(r"\\begin\{cases\}.*?\\end\{cases\}", re.DOTALL)
BOUNDARY = "BETWEENTWOBLOCKS"
HEADINGS = {"h1": "chapter", "h2": "heading", "h3": "heading", "h4": "heading"}
CONCLUSION = re.compile(r"\bconclusion", re.IGNORECASE)


def typeset(tree: BeautifulSoup, title: dict[str, Any], drawings: dict[str, Drawing]) -> bytes:
    """The PDF of the report's tree, which is taken apart, in the fonts that typst and the package bring."""
    import typst  # here, so that a platform without it still gets the HTML

    for tag in tree.select("details, hr, .tools"):
        tag.decompose()
    for anchor in tree.select("a.anchor"):
        anchor.unwrap()
    for math in tree.find_all("math"):
        mode = "; mode=display" if math.get("display") == "block" else ""
        script = tree.new_tag("script", attrs={"type": f"math/tex{mode}"})  # pandoc reads it as a formula
        # typst sets the columns of cases without a gap
        script.string = CASES.sub(lambda match: match[0].replace("&", r"&\quad "), math["alttext"])
        math.replace_with(script)
    move_long_tables(tree)
    set_tables(tree)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alternatives = place_images(tree, drawings, folder)
        blocks = blocks_of(tree, alternatives)
        for path in TEMPLATES.glob("*.typ"):
            (folder / path.name).write_bytes(path.read_bytes())
        faces, _ = covering(tree.get_text() + json.dumps(title["facts"], ensure_ascii=False))  # of other scripts
        (folder / "fonts").mkdir()
        for face in faces:
            shutil.copy(face.path, folder / "fonts")
        inputs = {"faces": json.dumps([face.family for face in faces])}
        options = {"root": folder, "font_paths": [FONTS, folder / "fonts"], "ignore_system_fonts": True}
        options["sys_inputs"] = inputs
        blocks = measured(blocks, folder, options)
        parts = {
            name: _typst_markup(tag, alternatives) if (tag := tree.select_one(f".{name}")) else ""
            for name in ("summary", "overview")
        }
        parts["body"] = "\n\n".join(
            f"#pagebreak(weak: true)\n{block.markup}" if block.kind == "chapter" else block.markup
            for block in arranged(blocks)
        )
        for part, markup in parts.items():
            (folder / f"{part}.typ").write_text(markup, encoding="utf-8")
        data = {key: title.get(key, "") for key in ("title", "subtitle")}
        data["author"] = title.get("author", "vitlab")
        data["facts"] = [[str(label), str(value)] for label, value in title["facts"]]
        inputs["report"] = json.dumps(data)
        return typst.compile(folder / "report.typ", **options)


def measured(blocks: list[Block], folder: Path, options: dict[str, Any]) -> list[Block]:
    """The blocks with their heights at the width of the text, as typst has them."""
    import typst

    one = "#context [#metadata(measure(block(width: text-width)[{}]).height.pt()) <height>]"
    alone = [re.sub(r"#link\(<[^>]*>\)", "#", block.markup) for block in blocks]  # what they lead to is not there
    lines = ['#import "style.typ": *', *(one.format(markup) for markup in alone)]
    (folder / "measured.typ").write_text("\n".join(lines), encoding="utf-8")
    heights = json.loads(typst.query(folder / "measure.typ", "<height>", field="value", **options))
    return [block._replace(height=height) for block, height in zip(blocks, heights, strict=True)]


def blocks_of(tree: BeautifulSoup, alternatives: dict[str, str]) -> list[Block]:
    """The report's text in the blocks that a figure may stand between."""
    kinds = []
    for tag in tree.main.find_all(recursive=False):
        if _goes_on(tag.find_previous_sibling(), tag):
            continue  # with the block before it
        if kinds:
            tag.insert_before(_paragraph(tree, BOUNDARY))
        figure = tag.name == "figure" or (tag.name in ("table", "div") and len(tag.select("tr")) < LONG_TABLE)
        kinds.append(HEADINGS.get(tag.name, "figure" if figure else "text"))
        if SAME_PAGE in tag.get("class", []):
            kinds[-1] = "heading"
        if tag.name == "h2" and CONCLUSION.search(tag.get_text()):
            kinds[-1] = "conclusion"
    markups = _typst_markup(tree.main, alternatives).split(BOUNDARY)
    return [Block(markup.strip(), kind) for markup, kind in zip(markups, kinds, strict=True)]


def _goes_on(before: Tag | None, tag: Tag) -> bool:
    """Whether a paragraph goes on with what stands before it: a formula of its own, or the rest of its sentence."""
    if before is None or (before.name, tag.name) != ("p", "p"):
        return False
    first = next((part for part in tag.contents if isinstance(part, Tag) or part.strip()), "")
    if isinstance(first, Tag):
        return "formula" in first.get("class", [])
    return first.lstrip()[:1].islower()


def _paragraph(tree: BeautifulSoup, text: str) -> Tag:
    paragraph = tree.new_tag("p")
    paragraph.string = text
    return paragraph


def place_images(tree: BeautifulSoup, drawings: dict[str, Drawing], folder: Path) -> dict[str, str]:
    """Write the images as files, at most as large as IMAGE_BOX; return typst's call of each -> alternative text."""
    alternatives = {}
    for number, image in enumerate(tree.find_all("img")):
        drawing = drawings.get(image.get("data-drawing", ""))
        name = f"image{number}.{'svg' if drawing else 'png'}"
        if drawing:
            Path(folder, name).write_text(drawing.svg, encoding="utf-8")
            width, height = (side * 96 / 72 for side in (drawing.width, drawing.height))
        else:
            Path(folder, name).write_bytes(base64.b64decode(image["src"].partition(",")[2]))
            width, height = int(image.get("width", IMAGE_BOX[0])), int(image.get("height", 1))
        image["width"] = round(width * min(1, IMAGE_BOX[0] / width, IMAGE_BOX[1] / height))
        image["src"] = name
        del image["height"], image["data-drawing"]
        alternatives[f'image("{name}"'] = json.dumps(image["alt"], ensure_ascii=False)
    return alternatives


# ---------------------------------------------------------------- tables


def move_long_tables(tree: BeautifulSoup) -> None:
    """Put tables of many rows into an appendix, a sentence in their place."""
    last = tree.select("main h1")[-1:]
    letters = [heading.select_one(".number").get_text()[0] for heading in last if heading.select_one(".number")]
    tables = [f for f in tree.select("figure.table") if len(f.select("tbody tr")) >= LONG_TABLE]
    tables = [figure for figure in tables if not re.match(r"table-[A-Z]", figure.get("id", ""))]
    if not tables:
        return
    letter = chr(ord(letters[0]) + 1) if letters and letters[0].isalpha() else "A"
    heading = tree.new_tag("h1", id=f"chapter-{letter}")
    heading.string = f"{letter}. Long tables"
    if letter != "A":
        heading["class"] = [SAME_PAGE]  # the rest of the appendix before it may be a single row
    tree.main.append(heading)
    for figure in tables:
        name = figure.figcaption.strong.get_text(strip=True).rstrip(".")
        rows = len(figure.select("tbody tr"))
        note = BeautifulSoup(
            f'<p><a href="#{figure["id"]}">{name}</a>, of {rows} rows, stands in appendix {letter}.</p>', "html.parser"
        )
        figure.insert_before(note)
        tree.main.append(figure.extract())


def set_tables(tree: BeautifulSoup) -> None:
    """Give each table what pandoc sets as a typst figure; one wider than the text becomes several."""
    for figure in tree.select("figure.table"):
        caption, parts = figure.figcaption.extract(), fitted(figure.table)
        for number, part in enumerate(parts):
            title = tree.new_tag("caption")
            if number == 0:
                part["id"] = figure["id"]
                title.extend(list(caption.contents))
            else:
                strong = tree.new_tag("strong")
                strong.string = caption_name(parts[0])
                title.extend([strong, " Continued."])
            part.insert(0, title)
        figure.replace_with(*parts)
    for table in tree.select("table:not(:has(caption))"):
        table.replace_with(*fitted(table))


def caption_name(table: Tag) -> str:
    """ "Table 2.1." """
    return table.caption.strong.get_text(strip=True)


def fitted(table: Tag, available: float = WIDTH * 72) -> list[Tag]:
    """The table, with the widths of its columns where they would not fit by themselves; or parts of it that do.

    Cells of numbers are never broken; headers break at words, and cells of words if they have to. Each part repeats the
    first column.
    """
    rows = [row.find_all(["th", "td"], recursive=False) for row in table.select("tr")]
    head = table.select_one("thead tr")
    if not rows or len({len(row) for row in rows}) > 1:
        return [table]
    for row in rows[1 if head else 0 :]:
        for cell in row:
            if not is_wordy(cell):
                unbreakable(cell)
    columns = list(zip(*rows, strict=True))
    natural = [natural_width(column) for column in columns]
    least = [least_width(column, bool(head)) for column in columns]
    if sum(natural) <= available:
        return [table]
    if sum(least) <= available:
        set_widths(table, shared_out(least, natural, available), available)
        return [table]
    groups, left = [[0]], available - least[0]
    for at in range(1, len(columns)):
        if least[at] > left and len(groups[-1]) > 1:
            groups.append([0])
            left = available - least[0]
        groups[-1].append(at)
        left -= least[at]
    if len(groups) == 1:  # a single column wider than the page
        set_widths(table, shared_out(least, natural, available), available)
        return [table]
    return [part for group in groups for part in fitted(with_columns(table, group), available)]


def shared_out(least: list[float], natural: list[float], available: float) -> list[float]:
    """Widths between least and natural ones that fill what is available, if it suffices."""
    spare = max(0.0, available - sum(least))
    wish = sum(natural) - sum(least)
    return [low + spare * (high - low) / wish if wish else low for low, high in zip(least, natural, strict=True)]


def with_columns(table: Tag, kept: list[int]) -> Tag:
    part = copy.copy(table)
    for row in part.select("tr"):
        for at, cell in enumerate(row.find_all(["th", "td"], recursive=False)):
            if at not in kept:
                cell.decompose()
    return part


def set_widths(table: Tag, widths: list[float], available: float) -> None:
    group = BeautifulSoup("", "html.parser").new_tag("colgroup")
    for width in widths:
        share = min(width / available, 1)
        group.append(BeautifulSoup(f'<col style="width: {100 * share:.3f}%">', "html.parser").col)
    table.insert(0, group)


def is_wordy(cell: Tag) -> bool:
    """Text that may take several lines, unlike a number with its interval."""
    return "numeric" not in cell.get("class", []) and bool(re.search(r"[A-Za-z]{3,}", cell.get_text()))


def unbreakable(cell: Tag) -> None:
    for text in cell.find_all(string=True):
        text.replace_with(NavigableString(text.replace(" ", "\u00a0")))


def natural_width(column: tuple[Tag, ...]) -> float:
    return max(cell_width(cell, cell.get_text().strip()) for cell in column) + INSET


def least_width(column: tuple[Tag, ...], has_head: bool) -> float:
    """Points that a column needs at least: of its longest word, or of its longest number."""
    body = column[1:] if has_head else column
    words = [max((cell_width(cell, word) for word in cell.get_text().split(" ")), default=0) for cell in column]
    whole = [cell_width(cell, cell.get_text().strip()) for cell in body]
    wordy = any(map(is_wordy, body))
    return max(*words, min(NARROW, max(whole, default=0)) if wordy else max(whole, default=0)) + INSET


def cell_width(cell: Tag, text: str) -> float:
    """Points that a text of this cell takes on a line, which is wider where it is code."""
    return CODE_WIDTH * len(text) if cell.code else text_width(text, cell.name == "th")


@cache
def _advances(bold: bool) -> tuple[dict[int, int], int]:
    font = TTFont(FONTS / f"SourceSansPro-{'Semibold' if bold else 'Regular'}.ttf")
    widths = font["hmtx"]
    return {code: widths[name][0] for code, name in font.getBestCmap().items()}, font["head"].unitsPerEm


def text_width(text: str, bold: bool = False) -> float:
    """Points that a text takes on a line of a table."""
    advances, unit = _advances(bold)
    return sum(advances.get(ord(c), unit // 2) for c in text) / unit * TABLE_SIZE


# ---------------------------------------------------------------- pandoc


def _typst_markup(tag: Tag, alternatives: dict[str, str]) -> str:
    """An element in typst's language, with what pandoc gets wrong in formulas put right, and alternative texts."""
    options = ["--wrap=none", "--syntax-highlighting=none"]
    markup = pypandoc.convert_text(str(tag), "typst", "html-native_divs-native_spans", extra_args=options)

    def mend(match: re.Match[str]) -> str:
        if match[1]:
            return match[0]  # code, where a dollar is a dollar
        formula = match[0].replace("#h(0em)", "thick").replace("#h(-1em)", "#h(-0.167em)")  # \; \! rounded
        formula = re.sub(r"\b(dot|minus|times)\.circle\b", r"\1.o", formula)  # names that typst has changed
        formula = re.sub(r"\bsect\b", "inter", formula)
        return re.sub(r'(?<!\()"([\w ]+)"', r'op("\1")', formula)  # named operators, spaced as such

    markup = re.sub(r"(?<!\\)(`+).*?\1|(?<!\\)\$[^$]+\$", mend, markup, flags=re.DOTALL)
    for call, alternative in alternatives.items():  # pandoc drops it
        markup = markup.replace(call, f"{call}, alt: {alternative}")
    return markup
