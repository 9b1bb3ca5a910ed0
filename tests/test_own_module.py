"""A reader trains a module of their own in a notebook's cell: without a session and with one, stopped and resumed."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from vitlab.machine import ROOT

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
