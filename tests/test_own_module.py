"""A reader trains a module of their own in a notebook's cell: without a session and with one, stopped and resumed."""

import importlib
import json
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nbclient import NotebookClient
from torch import nn

from vitlab.config import LabConfig
from vitlab.data.splits import Source
from vitlab.errors import LabError
from vitlab.identity import fingerprint, module_identity
from vitlab.lab import Lab
from vitlab.machine import ROOT
from vitlab.training.fit import fit

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


def halve(x: float) -> float:
    return x / 2


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
        lambda change: Set(_k=3 if change else 4),
        lambda change: Set(kinds={"a", "b" if change else "c"}),
        lambda change: Set(stages=[None, 1] if change else [1, None]),
        lambda change: Set(mask=np.arange(3) + change),
        lambda change: Set(options=SimpleNamespace(width=3 if change else 4)),
        lambda change: Set(act=cache(double if change else halve)),
    ],
)
def test_modules_that_differ_in_a_setting_are_two(make: Callable[[bool], nn.Module]) -> None:
    assert module_identity(make(False)) == module_identity(make(False))
    assert module_identity(make(False)) != module_identity(make(True))


def test_what_a_module_gathers_as_it_runs_makes_it_no_other() -> None:
    before, after = Set(seen=None, maps=[]), Set(seen=torch.ones(2), maps=[torch.ones(2)])
    assert module_identity(before) == module_identity(after)


IN_A_CELL = """from torch import nn
scale = 2.0
class Settings:
    power = 2
def weighed(x):
    return scale * x
def attend(x):
    return sum(weighed(y) for y in [x])
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(2, 2)
    def forward(self, x):
        '''What it does.'''
        return attend(self.body(x)) ** Settings.power"""


def cell(source: str) -> nn.Module:
    space = {"__name__": "__main__"}
    exec(source, space)
    return space["Net"]()


@pytest.mark.parametrize(
    "change",
    [
        ("scale = 2.0", "scale = 3.0"),  # a constant that a helper's helper names
        ("scale * x", "scale + x"),  # the code of that one
        ("sum(", "max("),
        ("power = 2", "power = 3"),
        ("nn.Linear(2, 2)", "nn.Linear(2, 2, bias=False)"),
        ("** Settings", "* Settings"),
    ],
)
def test_code_that_a_module_calls_counts_wherever_it_stands(change: tuple[str, str]) -> None:
    before, after = IN_A_CELL, IN_A_CELL.replace(*change)
    assert module_identity(cell(before)) == module_identity(cell(before))
    assert module_identity(cell(before)) != module_identity(cell(after))


def test_where_code_stands_and_what_others_name_alike_does_not_count() -> None:
    moved = "body = power = 3  # no part of it\n\n" + IN_A_CELL
    assert module_identity(cell(IN_A_CELL)) == module_identity(cell(moved))


def test_code_counts_as_it_is_loaded_and_not_as_it_was_written_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, power in (("own_helper", 2), ("own_net", 3)):
        source = IN_A_CELL.replace("** Settings.power", f"** {power}")
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    loaded = importlib.import_module("own_net")
    by_way_of = cell(IN_A_CELL.replace("return attend", "return own_net.attend") + "\nimport own_net")
    known, way = module_identity(loaded.Net()), module_identity(by_way_of)
    (tmp_path / "own_net.py").write_text(IN_A_CELL.replace("2.0", "5.0"), encoding="utf-8")
    assert module_identity(loaded.Net()) == known
    loaded.weighed = halve
    assert module_identity(loaded.Net()) != known
    assert module_identity(by_way_of) != way
    monkeypatch.delitem(sys.modules, "own_net")


def test_function_that_calls_itself_and_class_without_a_file_have_a_fingerprint() -> None:
    def again(n: int) -> int:
        return again(n - 1) if n else 0

    assert fingerprint(again) == fingerprint(again)
    assert len(fingerprint(type("Made", (nn.Module,), {"forward": lambda self, x: x}))) == 12


def test_session_is_for_its_teacher(few: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pupil(nn.Sequential):
        def terms(self, images: torch.Tensor, teacher: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            logits = self(images)
            return logits, {"taught": (logits - teacher(images)).square().mean()}

    monkeypatch.setenv("VITLAB_RUNS", str(tmp_path))
    lab = Lab(LabConfig(), few)
    pixels, classes = lab.data.train.pool[0].numel(), len(lab.data.classes)
    net, recipe = Pupil(nn.Flatten(), nn.Linear(pixels, classes)), lab.params.recipe(epochs=1)
    teachers = [nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes)) for _ in range(2)]  # of other weights
    paths = {lab.session(net, recipe, teacher).run.path for teacher in (None, *teachers)}
    assert len(paths) == 3
    with pytest.raises(LabError, match="opened for another module, recipe, data or teacher"):
        fit(net, lab.data, recipe, lab.session(net, recipe), teachers[0])
    fit(net, lab.data, recipe, lab.session(net, recipe, teachers[0]), teachers[0])
    assert lab.session(net, recipe, teachers[0]).run.complete


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
