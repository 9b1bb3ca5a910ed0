"""What a notebook's kernel offers its reader: names inside a call, help for parameters, no dead controls in files."""

import nbformat
import pytest
from nbclient import NotebookClient

from vitlab.analysis import pictures, plots
from vitlab.report.saving import WIDGET, without_widgets

CELLS = [
    "# Parameters of this chapter\nseed = 3\nmore = {}",
    "from vitlab.lab import Lab\nlab = Lab.open(globals())\nlab = Lab.open(globals())",  # twice, as a reader does
    """shell = get_ipython()
def complete(text):
    return sorted(shell.complete(None, text, len(text))[1])
print(complete('lab.load("') == sorted(lab.plan.configs))
print(complete("lab.load('ViT, conv") == sorted(n[5:] for n in lab.plan.configs if n.startswith("ViT, conv")))
print(complete('x = lab.compare("Li') == sorted(n for n in lab.plan.names if n.startswith("Li")))
print("ViT" in complete('print("'))""",
    """print(shell.object_inspect_mime("seed")["text/plain"])
seed = print
print("of the splits" in shell.object_inspect_mime("seed")["text/plain"])""",
]


@pytest.mark.slow
def test_names_complete_and_parameters_have_help() -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    names, meaning = ("".join(out.text for out in cell.outputs) for cell in notebook.cells[2:])
    # a token ends at a comma: of "ViT, conv tokenizer" what stands before it is there already
    assert names.split() == ["True", "True", "True", "False"]
    assert meaning == "seed = 3\n\nof the splits, the weights and every step\nFalse\n"


@pytest.mark.parametrize("module", [plots, pictures])
def test_modules_of_figures_offer_their_own_functions_alone(module) -> None:
    assert {"np", "plt", "Tensor"}.isdisjoint(dir(module))
    assert set(module.__all__) == set(dir(module))
    assert all(getattr(module, name).__module__ == module.__name__ for name in dir(module))


def test_saved_notebook_keeps_pictures_and_leaves_out_controls() -> None:
    controls = nbformat.v4.new_output("display_data", {WIDGET: {"model_id": "1"}, "text/plain": "VBox()"})
    picture = nbformat.v4.new_output("display_data", {"image/png": "…"})
    said = nbformat.v4.new_output("stream", text="said")
    cells = [
        nbformat.v4.new_code_cell("explore", outputs=[controls, picture, said]),
        nbformat.v4.new_markdown_cell("x"),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    without_widgets(model={"type": "notebook", "content": notebook}, path="x.ipynb", contents_manager=None)
    assert notebook.cells[0].outputs == [picture, said]
    without_widgets(model={"type": "file", "content": "text"})
    without_widgets(model={"type": "notebook"})


DECODING = """
import pathlib, tempfile
from PIL import Image
from vitlab.data.decode import decode
folder = pathlib.Path(tempfile.mkdtemp())
Image.new("RGB", (8, 8)).save(folder / "a.png")
_ = decode({"train": [str(folder / "a.png")]}, 8, {})
"""


@pytest.mark.slow
@pytest.mark.parametrize("reader", [False, True])
def test_decoding_leaves_no_bar_in_a_notebook(reader: bool) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(DECODING)])
    client = NotebookClient(notebook, kernel_name="python3")
    with client.setup_kernel():
        client.kc.allow_stdin = reader
        client.execute_cell(notebook.cells[0], 0)
    assert [output.data["text/html"] for output in notebook.cells[0].outputs] == ([""] if reader else [])
