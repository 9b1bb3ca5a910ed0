"""Texts that come from users, names of classes, folders and data, remarks: shown, never read as markup. And numbers.

Figures take them as they are (`analysis.typefaces` sees to that), Markdown and HTML through `markdown` and `literal`.
"""

import difflib
import html
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

# read by Markdown, by HTML, or as the bound of a formula; at the beginning of a text also as that of a list
MARKUP = re.compile(r"[\\`*_{}\[\]#|$<>&~^]|^[-+=:]|(?<=^\d)[.)]|(?<=^\d\d)[.)]")
FORMULA = re.compile(r"[$\\]")
FIRST_STRONG_ISOLATE, POP_ISOLATE = "\u2068", "\u2069"
NAME_WIDTH = 20  # columns of a class name in a figure


def shown(name: str | Path) -> str:
    """A name of the file system as it can be printed: composed (NFC), bytes that are no UTF-8 as \\xe9, no controls."""
    text = os.fsencode(str(name)).decode("utf-8", "backslashreplace")
    text = unicodedata.normalize("NFC", text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def signed(value: float, form: str = "+z.1f") -> str:
    """A number that may be negative, as type sets it: with a minus sign, not a hyphen, and none before a zero.

    form: a format with z, as "z.2f".
    """
    return format(value, form).replace("-", "−")


def unit_of_time(seconds: Iterable[float]) -> tuple[str, int, str]:
    """In what to tell these times: a unit, its seconds, and a number's format; minutes where the longest has ten."""
    return ("min", 60, ",.1f") if max(seconds) >= 600 else ("s", 1, ",.0f")


def markdown(text: str) -> str:
    """Markdown that shows exactly this text, in JupyterLab and in the report.

    One in Arabic or Hebrew is isolated: what stands beside it would else be drawn into its direction.
    """
    source = MARKUP.sub(lambda match: _entity(match[0]), " ".join(text.split()))
    return f"{FIRST_STRONG_ISOLATE}{source}{POP_ISOLATE}" if any(map(_to_the_left, text)) else source


def literal(text: object) -> str:
    """HTML that shows exactly this text; a dollar stands in an element of its own, where it bounds no formula."""
    return without_formulas(html.escape(str(text)))


def without_formulas(source: str) -> str:
    """HTML whose text holds dollars and backslashes that bound no formula."""
    return FORMULA.sub(lambda match: _entity(match[0]), source)


def _to_the_left(character: str) -> bool:
    return unicodedata.bidirectional(character) in ("R", "AL")


def _entity(character: str) -> str:
    entity = f"&#{ord(character)};"
    return f"<span>{entity}</span>" if FORMULA.match(character) else entity


def unmarked(source: str) -> str:
    """The text of a line of Markdown that `markdown` made part of: for an alternative text."""
    return html.unescape(re.sub(r"</?span>", "", source))


def width(text: str) -> int:
    """Columns that a text takes: two for a Chinese character."""
    return sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def shortened(names: Iterable[str], columns: int = NAME_WIDTH) -> list[str]:
    """Names for a figure: a long one loses its middle; where two would then be alike, both get their number."""
    names = list(names)
    short = [_shortened(name, columns) for name in names]
    alike = {name for name in short if short.count(name) > 1} if len({*short}) < len({*names}) else set()
    return [
        f"{_shortened(n, columns - 4)} #{i + 1}" if s in alike else s
        for i, (n, s) in enumerate(zip(names, short, strict=True))
    ]


def _shortened(name: str, columns: int) -> str:
    if width(name) <= columns:
        return name
    head, tail = name, name
    while width(head) > (columns - 1) * 2 // 3:
        head = head[:-1]
    while width(tail) > columns - 1 - width(head):
        tail = tail[1:]
    return f"{head}…{tail}"


def listed(words: Iterable[str]) -> str:
    """a, b and c."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def unshowable(text: str) -> str:
    """The characters of a text that neither HTML nor PDF can hold: controls, halves of pairs; "" if there are none."""
    return "".join(c for c in text if not c.isprintable() and not c.isspace() and unicodedata.category(c) != "Cf")


def nearest(name: str, known: Iterable[str], place: str) -> str:
    """What somebody who wrote `name` may have meant of those that are `known`, or in which place they stand."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"all are in {place}"
