"""Typefaces for letters that the usual ones lack: names in Chinese, Arabic, …, in figures and in the PDF."""

import contextlib
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

USUAL = Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")  # comes with matplotlib
# a file with faces for several regions is used with that of the course's readers
REGIONS = (" SC", " CN", " TC", " HK", " JP", " KR")
HAN = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC")  # how the names of such characters begin
PACKAGES = {"cjk": "fonts-noto-cjk", "symbol": "fonts-symbola", "other": "fonts-noto-core"}  # of Debian and Ubuntu


class Face(NamedTuple):
    """A typeface of a font file."""

    path: str
    family: str


@cache
def _glyphs(path: str) -> frozenset[int]:
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):  # bitmaps, or a damaged file
        return frozenset()


def _files() -> list[str]:
    """Installed font files, those to be preferred first; searched anew, for matplotlib's own list may be an old one."""

    def rank(path: str) -> tuple[bool, bool, bool, str]:
        name = Path(path).stem.lower()
        odd = any(word in name for word in ("bold", "italic", "oblique", "light", "thin", "black", "mono", "condensed"))
        return odd, "sans" not in name, "serif" in name, path

    return [str(USUAL), *sorted(font_manager.findSystemFonts(), key=rank)]


@cache
def _covering(characters: frozenset[str]) -> tuple[tuple[Face, ...], str]:
    faces, missing = [], set(characters)
    for path in _files() if missing else ():
        if found := {c for c in missing if ord(c) in _glyphs(path)}:
            missing -= found
            faces.append(Face(path, _family(path)))
        if not missing:
            break
    return tuple(faces), "".join(sorted(missing))


def _family(path: str) -> str:
    first = FT2Font(path)
    names = [first.family_name, *(FT2Font(path, face_index=i).family_name for i in range(1, first.num_faces))]
    return min(names, key=lambda name: next((i for i, end in enumerate(REGIONS) if name.endswith(end)), len(REGIONS)))


def covering(text: str) -> tuple[tuple[Face, ...], str]:
    """Few installed faces that have, together, the letters of a text which the usual ones lack; and what none has."""
    return _covering(frozenset(c for c in text if _unusual(c)))


def _unusual(character: str) -> bool:
    """Beyond Latin, Greek, Cyrillic, punctuation and mathematics, which the usual faces have."""
    code = ord(character)
    beyond = 0x0530 <= code < 0x1E00 or 0x2E80 <= code < 0xFE00 or 0xFE20 <= code < 0x1D400 or code >= 0x1F000
    return beyond and character.isprintable() and not character.isspace()


def note(texts: Iterable[str]) -> str:
    """A sentence on characters that no installed face has, and what to install; "" if there are none."""
    missing = covering("".join(texts))[1]
    if not missing:
        return ""
    packages = dict.fromkeys(PACKAGES[_kind(c)] for c in missing)
    return (
        f"No installed typeface has {', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}: figures and PDF show "
        f"boxes until one is installed (Debian, Ubuntu: apt install {' '.join(packages)}) and the report is made again."
    )


def _kind(character: str) -> str:
    if unicodedata.name(character, "").startswith(HAN):
        return "cjk"
    return "symbol" if unicodedata.category(character).startswith("S") else "other"


@contextlib.contextmanager
def typeset(figure: Figure) -> Iterator[None]:
    """Give each text of a figure the faces that have its letters, and draw it without a warning for each it lacks."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            axis.get_ticklabels()  # they have their texts from now on
    for text in figure.findobj(Text):
        faces, _ = covering(text.get_text())
        for face in faces:
            _register(face)
        if faces:
            text.set_fontfamily([*mpl.rcParams["font.family"], *(face.family for face in faces)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the lab's remarks say so, and what to install
        yield


@cache
def _register(face: Face) -> None:
    font_manager.fontManager.addfont(face.path)
