"""What JupyterLab does when it saves a notebook: `make lab` names `without_widgets` to it."""

from typing import Any

WIDGET = "application/vnd.jupyter.widget-view+json"


def without_widgets(model: dict[str, Any], **_: Any) -> None:
    """Leave out of a saved notebook the controls, which live in its kernel: opened without it they are only an error.

    A `pre_save_hook` of Jupyter's contents manager. Pictures, which stand beside the controls, stay.
    """
    if model["type"] != "notebook" or not model.get("content"):
        return
    for cell in model["content"]["cells"]:
        if "outputs" in cell:
            cell["outputs"] = [output for output in cell["outputs"] if WIDGET not in output.get("data", {})]
