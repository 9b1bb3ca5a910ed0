"""The typefaces of the page: what it needs of them travels inside the file."""

import base64
import io
import unicodedata
from importlib.resources import as_file, files
from pathlib import Path

from bs4 import BeautifulSoup
from fontTools import subset

from vitlab.analysis.theme import FONTS

TEXT_FACES = {"Regular": (400, "normal"), "It": (400, "italic"), "Semibold": (600, "normal")}


def text_faces(text: str) -> list[dict[str, object]]:
    """The glyphs of the report's typeface that a text needs: weight, style and base64 WOFF of each face."""
    return [
        {
            "weight": weight,
            "style": style,
            "font": _subset(FONTS / f"SourceSansPro-{face}.ttf", set(text), ["kern", "lnum", "tnum"]),
        }
        for face, (weight, style) in TEXT_FACES.items()
    ]


def _subset(path: Path, characters: set[str], features: list[str]) -> str:
    options = subset.Options(flavor="woff", layout_features=features)
    font = subset.load_font(path, options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(text="".join(sorted(characters)))
    subsetter.subset(font)
    buffer = io.BytesIO()
    subset.save_font(font, buffer, options)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def math_font(tree: BeautifulSoup) -> str:
    """The glyphs of STIX Two Math that the formulas need, as base64 WOFF; its brackets keep stretching."""
    text = {*"".join(math.get_text() for math in tree.find_all("math")), *"√−ℎ"}  # drawn for msqrt, -, h
    for letter in map(chr, range(0x1D434, 0x1D7CC)):  # a browser draws <mi>x</mi> with the italic letter
        if unicodedata.normalize("NFKC", letter) in text and "L ITALIC" in unicodedata.name(letter, ""):
            text.add(letter)
    with as_file(files("ziamath") / "fonts" / "STIXTwoMath-Regular.ttf") as path:
        return _subset(path, text, ["ssty", "dtls", "flac"])
