"""What a notebook shows: numbered figures and tables with captions, computed prose, package source.

Every helper emits one rich output whose metadata carries number, caption and alternative text, so that JupyterLab
shows it readably and `render` can typeset the same thing for the report without guessing.
"""

import base64
import inspect
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from IPython import get_ipython
from IPython.display import HTML, Markdown, display
from ipywidgets import interact
from matplotlib.figure import Figure

from vitlab.analysis.drawing import POINT, Drawing, drawing
from vitlab.analysis.figure_data import data_of

VECTOR = "application/vnd.vitlab.drawing+svg"  # for the report; JupyterLab shows the PNG beside it


def show_figure(figure: Figure | Drawing, number: str, caption: str, alt: str | None = None) -> None:
    """Show a figure or a diagram with its number ("2.3") and a caption that says what to see; alt defaults to it.

    The picture and its caption are two outputs; both carry `vitlab` metadata, and the report joins them. A figure's
    metadata also has the numbers it shows, as CSV.
    """
    meta = {"kind": "figure", "number": number, "caption": caption, "alt": alt or caption}
    if isinstance(figure, Drawing):
        shown, values = figure, pd.DataFrame()
        data: dict[str, Any] = {"image/svg+xml": shown.on_white()}
    else:
        values = data_of(figure)
        shown, png = drawing(figure)
        data = {"image/png": base64.b64encode(png).decode()}
    width = round(shown.width * POINT)
    meta |= {"width": width, "size": [shown.width, shown.height], "panels": shown.panels}
    meta["csv"] = values.to_csv(index=False, float_format="%.6g") if len(values) else ""
    about = {"image/png": {"width": width, "alt": meta["alt"]}, "vitlab": meta}
    display({"text/plain": meta["alt"], **data, VECTOR: shown.svg}, metadata=about, raw=True)
    display(Markdown(f"**Figure {number}.** {caption}"), metadata={"vitlab": {"kind": "caption"}})


def show_table(frame: pd.DataFrame, number: str, caption: str, index: bool = True) -> None:
    """Show a table of already formatted cells with its number and caption."""
    html = frame.to_html(border=0, index=index, escape=True)
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
