"""Controls are shown where somebody can use them."""

import nbclient
import nbformat
import pytest

from vitlab.report import notebook

EXPLORE = """
from matplotlib.figure import Figure
from vitlab.report.notebook import explore
explore(lambda layer, ratio=0.7: drawn.append((layer, ratio)) or Figure(), layer=(1, 4), ratio=(0.1, 1.0, 0.1))
"""


@pytest.mark.slow
@pytest.mark.parametrize("reader", [False, True])
def test_controls_appear_only_where_somebody_can_use_them(reader: bool) -> None:
    """The kernel is asked as papermill asks it, and as JupyterLab does."""
    cells = [nbformat.v4.new_code_cell(source) for source in ("drawn = []", EXPLORE, "print(drawn)")]
    client = nbclient.NotebookClient(nbformat.v4.new_notebook(cells=cells), kernel_name="python3")
    with client.setup_kernel():
        client.kc.allow_stdin = reader
        for number, cell in enumerate(cells):
            client.execute_cell(cell, number)
    assert cells[2].outputs[0].text.strip() == ("[(2, 0.7)]" if reader else "[]")  # without a default, the middle
    assert bool(cells[1].outputs) is reader


def test_outside_a_notebook_nothing_is_drawn() -> None:
    notebook.explore(lambda layer: pytest.fail("drawn"), layer=(1, 4))
