"""The look of every figure: one typeface, one palette, one width; a model has the same colour and marker throughout.

The colours are told apart in grey print (their lightness differs by 5 L* or more) and by colour-blind readers. What is
drawn in INK, MUTED, RULE, white or a colour of PALETTE changes with the page where a reader prefers a dark one.
"""

from collections.abc import Collection, Iterable
from functools import cache
from itertools import chain, cycle, product, starmap
from pathlib import Path
from typing import NamedTuple

import font_source_sans_pro
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

FONT = "Source Sans Pro"
FONTS = Path(font_source_sans_pro.font_directory)
FACES = ("Regular", "It", "Semibold", "Bold")
WIDTH = 6.69  # inches: the text width of the PDF, 17 cm
SMALLEST = 8.0  # points: nothing in a figure is smaller, sub- and superscripts apart

INK, MUTED, RULE = "#1d2126", "#5b6470", "#d6dae0"
# indigo, orange, green, purple, sky, rust, ochre, grey
PALETTE = ("#292da4", "#f7a443", "#4c935d", "#9d3aae", "#4c9cc8", "#853c15", "#c2a354", "#6d747c")
PALETTE_DARK = ("#6f9dff", "#f2ba3e", "#60b687", "#c994dd", "#47d5e8", "#e07b3c", "#dcd67a", "#a3abb5")
MARKERS = "osD^vPX*"  # so that series differ in grey print as well

SEQUENTIAL, DIVERGING = "cividis", "RdBu"  # colour maps: both read the same to the colour-blind

TICKS = ("major", "size", 4.8), ("major", "width", 1.0), ("minor", "size", 3.2), ("minor", "width", 0.8)


class Look(NamedTuple):
    """Colour and marker of a series."""

    colour: str
    marker: str


# what a model's name holds -> colour of its family, and marker; the first that fits
FAMILIES = (
    ("resnet-20, ", 7, "o"),  # trained longer, as the name goes on to say
    ("resnet", 7, "X"),
    ("dynamicvit", 1, "D"),
    ("linformer", 4, "^"),
    ("inline vit without", 5, "X"),
    ("inline", 5, "v"),
    ("linear vit with", 2, "D"),
    ("linear", 2, "s"),
    ("kernelised", 2, "s"),
    ("tome", 6, "P"),
    ("evit", 5, "o"),
    ("top-k", 4, "P"),
    ("random", 7, "v"),
    ("patch tokenizer, ", 5, "^"),  # of a larger ViT, as the next one
    ("vit-", 5, "s"),
    ("tokenizer, ", 3, "D"),
    ("light tokenizer", 3, "o"),
    ("tokenizer", 3, "s"),
    ("fine-tuned", 0, "^"),
    ("vit with the local term", 0, "v"),
    ("fewer blocks", 0, "s"),
    ("narrower", 0, "D"),
    (" epochs", 0, "X"),
    ("vit", 0, "o"),
    ("softmax", 0, "o"),
)


# remedies, which are told apart by colour and marker in every figure of chapter 1
REMEDY_LOOKS = {
    "balanced": Look(INK, "*"),
    "none": Look(PALETTE[7], "o"),
    "sampler": Look(PALETTE[0], "s"),
    "class_weights": Look(PALETTE[4], "^"),
    "both": Look(PALETTE[5], "X"),
    "effective_number": Look(PALETTE[2], "v"),
    "drw": Look(PALETTE[6], "D"),
    "ldam_drw": Look(PALETTE[1], "P"),
    "logit_adjustment": Look(PALETTE[3], "o"),
    "post_hoc": Look(PALETTE[3], "s"),
}


def remedy_looks(names: Collection[str]) -> dict[str, Look]:
    """Name -> look; remedies that a reader added take colours that are left, and then looks that are."""
    found = {name: REMEDY_LOOKS[name] for name in names if name in REMEDY_LOOKS}
    for name in names:
        used = {look.colour for look in found.values()}
        spare = starmap(Look, product([c for c in PALETTE if c not in used] or PALETTE, MARKERS))
        found[name] = found.get(name) or next(look for look in spare if look not in found.values())
    return {name: found[name] for name in names}


def looks(names: Iterable[str]) -> dict[str, Look]:
    """Name -> look. Two of one figure never look the same: the second gets another marker of its family's colour, and
    where these are spent, another colour.
    """
    found: dict[str, Look] = {}
    spare = cycle(PALETTE)
    for name in names:
        fits = (row for word, *row in FAMILIES if word in own_words(name))
        number, marker = next(fits, (None, MARKERS[0]))
        colour = next(spare) if number is None else PALETTE[number]
        own = [Look(colour, marker), *(Look(colour, other) for other in MARKERS)]
        free = (look for look in chain(own, starmap(Look, product(PALETTE, MARKERS))) if look not in found.values())
        found[name] = next(free, own[0])
    return found


def own_words(name: str) -> str:
    """What a model is, without the one that it is compared with: "ViT, narrower, as DynamicViT" is a ViT."""
    return name.lower().partition(", as ")[0]


@cache
def _register_fonts() -> None:
    for face in FACES:
        font_manager.fontManager.addfont(FONTS / f"SourceSansPro-{face}.ttf")


def use_theme() -> None:
    """Set the look of all figures of this process."""
    _register_fonts()
    plt.rcParams.update(
        {
            "axes.prop_cycle": plt.cycler(color=PALETTE),
            "lines.linewidth": 1.2,
            "lines.markersize": 4.8,
            "lines.solid_capstyle": "round",
            "patch.linewidth": 0.8,
            "patch.edgecolor": "w",
            "patch.force_edgecolor": True,
            **{f"{axis}tick.{kind}.{what}": value for axis in "xy" for kind, what, value in TICKS},
            "font.family": [FONT, "DejaVu Sans"],  # the second has what the first lacks
            "font.size": 9,
            "axes.labelsize": 9,
            "axes.titlesize": 9,
            "xtick.labelsize": SMALLEST,
            "ytick.labelsize": SMALLEST,
            "legend.fontsize": SMALLEST,
            "mathtext.fontset": "custom",
            **{f"mathtext.{kind}": FONT for kind in ("rm", "cal", "sf", "tt")},
            "mathtext.it": f"{FONT}:italic",
            "mathtext.bf": f"{FONT}:bold",
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": MUTED,
            "xtick.color": MUTED,
            "ytick.color": MUTED,
            "xtick.labelcolor": INK,
            "ytick.labelcolor": INK,
            "axes.linewidth": 0.8,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": RULE,
            "grid.linewidth": 0.6,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "hatch.color": "0.7",
            "hatch.linewidth": 0.5,
            "image.cmap": SEQUENTIAL,
            "legend.frameon": False,
            "legend.title_fontsize": 9,
            "svg.fonttype": "none",  # text stays text: it can be searched, and is set in the page's own typeface
            "svg.hashsalt": "vitlab",  # the same figure has the same bytes
        }
    )


def canvas(rows: int = 1, columns: int = 1, height: float = 2.6, **options) -> tuple[Figure, np.ndarray]:
    """A figure as wide as the text, `height` inches high, and its axes (rows, columns)."""
    use_theme()
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height), layout="constrained", squeeze=False, **options)
    return figure, axes


def legible(figure: Figure) -> None:
    """Enlarge what is too small to be read in print."""
    for text in figure.findobj(Text):
        if text.get_fontsize() < SMALLEST:
            text.set_fontsize(SMALLEST)
