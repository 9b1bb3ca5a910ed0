"""What a notebook shows: numbered figures and tables with captions, computed prose, package source.

Every helper emits one rich output whose metadata carries number, caption and alternative text, so that JupyterLab
shows it readably and `render` can typeset the same thing for the report without guessing.
"""

import inspect
import io
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from IPython import get_ipython
from IPython.display import HTML, Image, Markdown, display
from ipywidgets import interact
from matplotlib.figure import Figure

from vitlab.analysis.typefaces import set_typefaces
from vitlab.texts import unmarked, without_formulas


def show_figure(figure: Figure, number: str, caption: str, alt: str | None = None) -> None:
    """Show a figure with its number ("2.3") and a caption that says what to see; alt defaults to the caption.

    The picture and its caption are two outputs; both carry `vitlab` metadata, and the report joins them.
    """
    buffer = io.BytesIO()
    set_typefaces(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the lab's remarks say so, and what to install
        figure.savefig(buffer, format="png", dpi=170, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    width = round(figure.get_size_inches()[0] * 96)
    meta = {"kind": "figure", "number": number, "caption": caption, "alt": alt or unmarked(caption), "width": width}
    image = Image(buffer.getvalue(), format="png", width=width, alt=meta["alt"])
    display(image, metadata={"image/png": {"width": width, "alt": meta["alt"]}, "vitlab": meta})
    display(Markdown(f"**Figure {number}.** {caption}"), metadata={"vitlab": {"kind": "caption"}})


def show_table(frame: pd.DataFrame, number: str, caption: str, index: bool = True) -> None:
    """Show a table of already formatted cells with its number and caption."""
    html = without_formulas(frame.to_html(border=0, index=index, escape=True))
    display(Markdown(f"**Table {number}.** {caption}"), metadata={"vitlab": {"kind": "caption"}})
    display(HTML(html), metadata={"vitlab": {"kind": "table", "number": number, "caption": caption}})


def explore(draw: Callable[..., Figure], **choices: Any) -> None:
    """In JupyterLab: controls for the arguments of `draw`, which returns the figure; (first, last) makes a slider.

    Without a reader nothing is shown, and the chapter's numbered figures stand alone. papermill, nbconvert and nbmake
    all execute cells through nbclient, which tells the kernel with each cell that nobody can answer (`allow_stdin`).
    """
    shell = get_ipython()
    if shell is None or not hasattr(shell, "kernel") or not shell.get_parent()["content"].get("allow_stdin"):
        return

    def show(**chosen: Any) -> None:
        figure = draw(**chosen)
        set_typefaces(figure)
        display(figure)
        plt.close(figure)

    interact(show, **choices)


def say(text: str) -> None:
    """Show prose whose numbers were computed: Markdown, set like the text around it."""
    display(Markdown(text), metadata={"vitlab": {"kind": "prose"}})


def show_source(item: object) -> None:
    """Show the package's own source of a function or class, so that the code read is the code run."""
    source = inspect.getsource(item).rstrip()
    name = f"{item.__module__}.{item.__qualname__}"
    display(Markdown(f"```python\n{source}\n```"), metadata={"vitlab": {"kind": "source", "name": name}})
