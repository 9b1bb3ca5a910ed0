"""A reader trains a module of their own in a notebook's cell: without a session and with one, stopped and resumed."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nbformat
import pytest
import torch
import torch.nn.functional as F
from nbclient import NotebookClient
from torch import nn

from vitlab.machine import ROOT
from vitlab.runs import module_identity

PARAMETERS = """# Parameters of this chapter
image_size = 8
runs_dir = "{runs}"
more = {{"linformer_k": 2}}"""
NET = """import torch
from torch import nn
from vitlab.lab import Lab
from vitlab.training.fit import fit
from vitlab.training.session import RunSession

class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.head = nn.Linear(4 * width, 10)
    def forward(self, images):
        return self.head(self.body(images).flatten(1))

lab = Lab.open(globals())
recipe = lab.params.recipe(epochs=2, batch_size=64, lr=0.01)
torch.manual_seed(0)
net = Net()"""
PLAIN = "model, history = fit(net, lab.data, recipe)\nassert model is net and not model.training\nlen(history)"
STOPPED = """torch.manual_seed(0)
net = Net()
class Stopped(RunSession):
    def before_step(self, step):
        if step == 25:
            raise KeyboardInterrupt
try:
    fit(net, lab.data, recipe, Stopped(lab.session(net, recipe).run, checkpoint_seconds=0))
except KeyboardInterrupt:
    print("stopped")"""
RESUMED = """class Counting(RunSession):
    steps = []
    def before_step(self, step):
        self.steps.append(step)
again = Net()
session = Counting(lab.session(again, recipe).run)
resumed, rows = fit(again, lab.data, recipe, session)
same = all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), resumed.state_dict().values()))
print(session.steps[0], same, rows["loss"].tolist() == history["loss"].tolist())"""
LOADED = """loaded, _ = fit(Net(), lab.data, recipe, Counting(session.run))
print(len(Counting.steps), session.run.summary["test"]["accuracy"] > 0.2, session.run.path.name)"""
CHANGED = """class Net(Net):
    def forward(self, images):
        return 2 * super().forward(images)
print(lab.session(Net(), recipe).run.path != session.run.path)
session.run.model(Net())"""


class Set(nn.Module):
    """A module whose attributes and frozen parameters a test sets."""

    def __init__(self, frozen: bool = False, **attributes: object) -> None:
        super().__init__()
        self.body = nn.Linear(2, 2).requires_grad_(not frozen)
        vars(self).update(attributes)


def double(x: float) -> float:
    return 2 * x


@pytest.mark.parametrize(
    "make",
    [
        lambda change: Set(width=3 if change else 2),
        lambda change: Set(act=F.gelu if change else F.relu),
        lambda change: Set(act=torch.tanh if change else torch.relu),
        lambda change: Set(act=double if change else F.relu),
        lambda change: Set(act=partial(F.gelu, approximate="tanh" if change else "none")),
        lambda change: Set(norm=nn.BatchNorm1d if change else nn.LayerNorm),
        lambda change: Set(rates={"body": 0.1 if change else 0.2}),
        lambda change: Set(sizes=[[1, 2], [3 if change else 4]]),
        lambda change: Set(frozen=change),
    ],
)
def test_modules_that_differ_in_a_setting_are_two(make: Callable[[bool], nn.Module]) -> None:
    assert module_identity(make(False)) == module_identity(make(False))
    assert module_identity(make(False)) != module_identity(make(True))


@pytest.mark.slow
def test_module_of_the_readers_own_is_trained_kept_resumed_and_never_taken_for_another(tmp_path: Path) -> None:
    sources = [PARAMETERS.format(runs=tmp_path), NET, PLAIN, STOPPED, RESUMED, LOADED, CHANGED]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    NotebookClient(notebook, timeout=120, allow_errors=True, resources={"metadata": {"path": str(ROOT)}}).execute()
    said, names = {}, ("cell", "net", "plain", "stopped", "resumed", "loaded", "changed")
    for name, cell in zip(names, notebook.cells, strict=True):
        texts = [out.get("text", "") for out in cell.outputs if out.get("name") == "stdout"]
        errors = [out.evalue for out in cell.outputs if out.output_type == "error"]
        said[name] = "".join(texts).strip(), errors
    assert said["plain"] == ("", []), said
    assert said["stopped"] == ("stopped", [])
    assert said["resumed"] == ("25 True True", [])
    steps, scored, name = said["loaded"][0].split()
    assert (steps, scored, name.startswith("own-Net-seed0-")) == ("15", "True", True)  # 20 steps an epoch: none again
    assert said["changed"][0] == "True"
    assert "holds weights of a class Net" in said["changed"][1][0]
    record = json.loads((tmp_path / name / "config.json").read_text(encoding="utf-8"))
    assert record["module"]["class"] == "Net"
    assert "model" not in record["config"]  # no vit
