"""What a notebook shows: numbered figures and tables with captions, computed prose, package source.

Every helper emits one rich output whose metadata carries number, caption and alternative text, so that JupyterLab
shows it readably and `vitlab.render` can typeset the same thing for the report without guessing.
"""

import inspect
import io
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from IPython import get_ipython
from IPython.display import HTML, Image, Markdown, display
from ipywidgets import interact
from matplotlib.figure import Figure


def show_figure(figure: Figure, number: str, caption: str, alt: str | None = None) -> None:
    """Show a figure with its number ("2.3") and a caption that says what to see; alt defaults to the caption.

    The picture and its caption are two outputs; both carry `vitlab` metadata, and the report joins them.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=170, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    width = round(figure.get_size_inches()[0] * 96)
    meta = {"kind": "figure", "number": number, "caption": caption, "alt": alt or caption, "width": width}
    image = Image(buffer.getvalue(), format="png", width=width, alt=meta["alt"])
    display(image, metadata={"image/png": {"width": width, "alt": meta["alt"]}, "vitlab": meta})
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


def scores_table(results: pd.DataFrame) -> pd.DataFrame:
    """`Lab.results` for reading: a row a model, every score with its 95 % interval, costs with their units."""

    def percent(name: str) -> list[str]:
        return [f"{100 * v:.1f}" for v in results[name]]

    def between(low: str, high: str, digits: str, unit: float = 1) -> list[str]:
        return [f"{a * unit:{digits}} – {b * unit:{digits}}" for a, b in zip(results[low], results[high], strict=True)]

    columns = {
        "accuracy (%)": percent("accuracy"),
        "95 % interval": between("accuracy_low", "accuracy_high", ".1f", 100),
        "macro F1": [f"{v:.3f}" for v in results["macro_f1"]],
        "its interval": between("macro_f1_low", "macro_f1_high", ".3f"),
        "top-2 (%)": percent("top_2"),
        "calibration error": [f"{v:.3f}" for v in results["calibration_error"]],
        "parameters": [f"{v:,}" for v in results["parameters"]],
        "million MACs": [f"{v / 1e6:,.2f}" for v in results["macs"]],
        "latency (ms)": [f"{v:.2f}" for v in results["latency_ms"]],
        "images/s": [f"{v:,.0f}" for v in results["images_per_second"]],
        "training (min)": [f"{v / 60:.1f}" for v in results["training_seconds"]],
    }
    return pd.DataFrame(columns, index=list(results["model"]))


def pairs_table(pairs: pd.DataFrame) -> pd.DataFrame:
    """`Lab.pairs` for reading: differences B − A in points, each with the paired bootstrap's 95 % interval."""
    rows = [
        {
            "A": row.a,
            "B": row.b,
            "accuracy, B − A": f"{100 * row.difference:+z.1f}",
            "95 % interval": f"{100 * row.interval[0]:+z.1f} – {100 * row.interval[1]:+z.1f}",
            "macro F1, B − A": f"{100 * row.f1_difference:+z.1f}",
            "its interval": f"{100 * row.f1_interval[0]:+z.1f} – {100 * row.f1_interval[1]:+z.1f}",
            "only A right": row.only_a,
            "only B right": row.only_b,
            "p": f"{row.p:.2g}" if row.p >= 0.001 else "< 0.001",
        }
        for row in pairs.itertuples()
    ]
    return pd.DataFrame(rows)


def study_table(scores: pd.DataFrame, few: int) -> pd.DataFrame:
    """`Lab.study_scores` for reading: mean ± standard deviation over seeds; of one seed, the bootstrap's interval."""
    names = {
        "accuracy": "accuracy",
        "balanced_accuracy": "balanced accuracy",
        "macro_f1": "macro F1",
        "recall_common": f"recall, {few} commonest",
        "recall_rare": f"recall, {few} rarest",
        "calibration_error": "calibration error",
    }
    rows = {}
    for remedy, runs in scores.groupby("remedy", sort=False):
        row = rows[remedy.replace("_", " ")] = {}
        for name, label in names.items():
            row[label] = f"{runs[name].mean():.3f}"
            if len(runs) > 1:
                row[label] += f" ± {runs[name].std():.3f}"
            elif f"{name}_low" in runs:
                row[label] += f" ({runs[f'{name}_low'].item():.3f} – {runs[f'{name}_high'].item():.3f})"
    return pd.DataFrame(rows).T


def say(text: str) -> None:
    """Show prose whose numbers were computed: Markdown, set like the text around it."""
    display(Markdown(text), metadata={"vitlab": {"kind": "prose"}})


def show_source(item: object) -> None:
    """Show the package's own source of a function or class, so that the code read is the code run."""
    source = inspect.getsource(item).rstrip()
    name = f"{item.__module__}.{item.__qualname__}"
    display(Markdown(f"```python\n{source}\n```"), metadata={"vitlab": {"kind": "source", "name": name}})
