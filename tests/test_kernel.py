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
for text in ('lab.load("', "lab.load('ViT, co", 'x = lab.compare("Li', 'print("'):
    print(*shell.complete(None, text, len(text))[1][:3], sep="; ")""",
    """print(shell.object_inspect_mime("seed")["text/plain"])
seed = print
print("of the splits" in shell.object_inspect_mime("seed")["text/plain"])""",
]


@pytest.mark.slow
def test_names_complete_and_parameters_have_help() -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    names, meaning = ("".join(out.text for out in cell.outputs) for cell in notebook.cells[2:])
    first, rest, of_two, other = names.splitlines()
    assert first == "DynamicViT; Linear ViT; Linformer ViT"
    assert rest == "conv tokenizer"  # a token ends at a comma: what stands before it is there already
    assert of_two == "Linear ViT; Linformer ViT"
    assert "ViT" not in other
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
