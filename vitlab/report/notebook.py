"""What a notebook shows: numbered figures and tables with captions, computed prose, package source.

Every helper emits one rich output whose metadata carries number, caption and alternative text, so that JupyterLab
shows it readably and `render` can typeset the same thing for the report without guessing.
"""

import base64
import inspect
import io
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML, DisplayHandle, Image, Markdown, display
from ipywidgets import VBox, interactive
from matplotlib.figure import Figure
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from vitlab.analysis.drawing import POINT, Drawing, drawing
from vitlab.analysis.figure_data import data_of
from vitlab.analysis.typefaces import typeset
from vitlab.kernel import reader
from vitlab.texts import unmarked, without_formulas

VECTOR = "application/vnd.vitlab.drawing+svg"  # for the report; JupyterLab shows the PNG beside it
# pygments' classes by the colour that JupyterLab's editor has for them
KINDS = (
    ("keyword", ":is(.k, .kn, .kc, .ow)"),
    ("def", ":is(.nf, .nc, .fm)"),
    ("string", ":is(.s1, .s2, .sa, .sd, .si)"),
    ("number", ":is(.mi, .mf)"),
    ("comment", ":is(.c1, .ch)"),
    ("builtin", ":is(.nb, .bp)"),
    ("operator", ".o"),
)


def show_figure(figure: Figure | Drawing, number: str, caption: str, alt: str | None = None) -> None:
    """Show a figure or a diagram with its number ("2.3") and a caption that says what to see; alt defaults to it.

    The picture and its caption are two outputs; both carry `vitlab` metadata, and the report joins them. A figure's
    metadata also has the numbers it shows, as CSV.
    """
    meta = {"kind": "figure", "number": number, "caption": caption, "alt": alt or unmarked(caption)}
    if isinstance(figure, Drawing):
        shown, values = figure, pd.DataFrame()
        data: dict[str, Any] = {"image/svg+xml": shown.on_white()}
    else:
        values = data_of(figure)
        with typeset(figure):
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
    html = without_formulas(frame.to_html(border=0, index=index, escape=True))
    display(Markdown(f"**Table {number}.** {caption}"), metadata={"vitlab": {"kind": "caption"}})
    display(HTML(html), metadata={"vitlab": {"kind": "table", "number": number, "caption": caption}})


def explore(draw: Callable[..., Figure], **choices: Any) -> None:
    """In JupyterLab: controls for the arguments of `draw`, which returns the figure; (first, last) makes a slider.

    An argument's default is where its control begins. Without a reader nothing is shown, and the chapter's numbered
    figures stand alone.
    """
    if not reader():
        return
    controls = interactive(lambda **chosen: chosen, **choices).children[:-1]  # without the output that it fills
    for control in controls:
        begin = inspect.signature(draw).parameters[control.description].default
        control.value = control.value if begin is inspect.Parameter.empty else begin
    display(VBox(controls))
    picture = Picture()

    def show(_: Any = None) -> None:
        picture.draw(draw(**{control.description: control.value for control in controls}))

    for control in controls:
        control.observe(show, "value")
    show()


class Picture:
    """An output whose picture is replaced without the page moving, and that stays in a saved notebook."""

    def __init__(self) -> None:
        self.handle: DisplayHandle | None = None

    def draw(self, figure: Figure) -> None:
        """Show this figure instead of the one before."""
        buffer = io.BytesIO()
        with typeset(figure):
            figure.savefig(buffer, format="png", dpi=140, facecolor="white")
        plt.close(figure)
        image = Image(buffer.getvalue(), format="png", width=round(figure.get_size_inches()[0] * 96))
        if self.handle:
            self.handle.update(image)
        else:
            self.handle = display(image, display_id=True)


def say(text: str) -> None:
    """Show prose whose numbers were computed: Markdown, set like the text around it. Nothing of an empty text."""
    if text:
        display(Markdown(text), metadata={"vitlab": {"kind": "prose"}})


def show_source(item: object) -> None:
    """Show the package's own source of a function or class, so that the code read is the code run."""
    source = inspect.getsource(item).rstrip()
    name = f"{item.__module__}.{item.__qualname__}"
    shown = {"text/plain": source, "text/markdown": f"```python\n{source}\n```", "text/html": _scrolling(source)}
    display(shown, raw=True, metadata={"vitlab": {"kind": "source", "name": name}})


def _scrolling(source: str) -> str:
    """Python source as HTML for JupyterLab: its colours, light or dark; a long text or line scrolls, no word breaks."""
    coloured = highlight(source, PythonLexer(), HtmlFormatter(noclasses=False, nowrap=True))
    rules = "".join(
        f".vitlab-source {names} {{ color: var(--jp-mirror-editor-{kind}-color) }}" for kind, names in KINDS
    )
    box = "margin: 0; max-height: 32em; overflow: auto; white-space: pre; word-break: normal; overflow-wrap: normal"
    edge = "padding: 0.6em; border: 1px solid var(--jp-border-color2); background: var(--jp-cell-editor-background)"
    return f'<style>{rules}</style><pre class="vitlab-source" tabindex="0" style="{box}; {edge}">{coloured}</pre>'
