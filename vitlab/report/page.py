"""What the report's tree needs beyond what nbconvert makes: numbers, links, aligned tables, alternative texts."""

import base64
import re
import struct
from html import escape
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup, NavigableString

from vitlab.errors import LabError

LONG_CELL = 40  # characters from which the text of a table cell may take several lines
CHAPTER = re.compile(r"(\d+|[A-Z])\.\s+(?=\S)")  # "2. Standard ViT"; appendices have a letter
NUMBER = r"(?:[A-Z]\.\d+|\d+(?:\.\d+)?)"
REFERENCE = re.compile(rf"\b(Figure|Table|[Cc]hapter)s?\s{NUMBER}(?:(?:, | and |, and |–| to ){NUMBER})*")
REFERENCE_PART = re.compile(rf"(?:[FTCc]\w+\s)?({NUMBER})")
NUMERIC = re.compile(
    r"[-−+±]?\s?\d[\d.,\s]*(?:e[-+]?\d+)?\s?[\w%×µ/²]{0,10}(?:\s?(?:±|–|\[|\().*)?|[-–—]?|nan|< \d[\d.]*"
)


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
        box["tabindex"], box["role"] = "0", "region"  # so that the keyboard can scroll it
        box["aria-label"] = "table, scrolls sideways"


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
        elif not re.match(r"https?:|mailto:|data:|#", link["href"]):
            link.unwrap()  # a file beside the notebook is not beside the report


def _linked(html: str, ids: set[str]) -> str:
    def link(reference: re.Match[str]) -> str:
        def part(match: re.Match[str]) -> str:
            target = f"{reference[1].lower()}-{match[1].replace('.', '-')}"
            return f'<a class="reference" href="#{target}">{match[0]}</a>' if target in ids else match[0]

        return REFERENCE_PART.sub(part, reference[0])

    return REFERENCE.sub(link, html)
