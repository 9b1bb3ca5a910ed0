"""A reader trains a module of their own in a notebook's cell: without a session and with one, stopped and resumed."""

import importlib
import json
import sys
from collections import deque
from collections.abc import Callable
from functools import cache, cached_property, partial, partialmethod, singledispatchmethod
from pathlib import Path
from types import SimpleNamespace

import nbformat
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
from vitlab.models.registry import build_model
from vitlab.training import session as training_session
from vitlab.training.fit import fit, prepared

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


class Squash:
    """A function with a setting."""

    def __init__(self, power: int) -> None:
        self.power = power

    def __call__(self, x: float) -> float:
        return x**self.power


class Stretch(Squash):
    def __call__(self, x: float) -> float:
        return self.power**x


def powered(power: int) -> Callable[[float], float]:
    return lambda x: x**power


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
        lambda change: Set(options=SimpleNamespace(width=3 if change else 4)),
        lambda change: Set(act=cache(double if change else halve)),
        lambda change: Set(act=Squash(3 if change else 2)),
        lambda change: Set(act=(Stretch if change else Squash)(2)),
        lambda change: Set(acts=[a := powered(2), b := powered(3), b if change else a]),
        lambda change: Set(act=(lambda pair: lambda x: pair)((None, 2) if change else (2, None))),
        lambda change: parametrized(change),
    ],
)
def test_modules_that_differ_in_a_setting_are_two(make: Callable[[bool], nn.Module]) -> None:
    assert module_identity(make(False)) == module_identity(make(False))
    assert module_identity(make(False)) != module_identity(make(True))


def parametrized(change: bool) -> nn.Module:
    """torch makes a class of its own of such a module."""

    class Own(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    class Other(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return -super().forward(x)

    Other.__name__, Other.__qualname__ = Own.__name__, Own.__qualname__
    return nn.utils.parametrizations.weight_norm((Other if change else Own)(2, 2))


def gathered(**attributes: object) -> tuple[nn.Module, nn.Module]:
    """A module as it was made, and as it is after a look at some images."""
    ones = torch.ones(2)
    return Set(seen=None, maps=[], by_block={}, slots=[None] * 2, last=deque()), Set(
        seen=ones.numpy(), maps=[(ones, ones)], by_block={"0": ones}, slots=[ones] * 2, last=deque([ones])
    )


def test_what_a_module_gathers_as_it_runs_makes_it_no_other() -> None:
    before, after = gathered()
    assert module_identity(before) == module_identity(after)


class Told:
    """Answers to any name, as some settings do."""

    def __init__(self) -> None:
        self.values = {"width": 3}

    def __getattr__(self, name: str) -> object:
        return self.values[name]


class Odd(nn.Module):
    """What else a class may have."""

    triple = partialmethod(Squash, power=3)
    own = property(lambda self: self.width)

    @cached_property
    def factor(self) -> int:
        return 2

    @singledispatchmethod
    def shown(self, value: object) -> str:
        return str(value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x


def test_whatever_a_class_or_an_attribute_is_it_has_an_identity() -> None:
    itself: list = []
    itself.append(itself)
    odd = Odd()
    before = module_identity(odd)
    odd(torch.ones(2))
    assert module_identity(odd) == before
    assert module_identity(Set(told=Told())) == module_identity(Set(told=Told()))
    assert module_identity(Set(itself=itself)) == module_identity(Set(itself=itself))
    assert module_identity(torch.compile(odd)) == before


def test_order_of_classes_of_one_name_is_that_of_the_modules() -> None:
    """Not that of their addresses."""

    def alike() -> type[nn.Module]:
        return type("Attention", (nn.Module,), {"forward": lambda self, x: x})

    def other() -> type[nn.Module]:
        return type("Attention", (nn.Module,), {"forward": lambda self, x: -x})

    made = [nn.Sequential(*(kind()() for kind in (alike, other))) for _ in range(20)]
    assert len({module_identity(module)["source"] for module in made}) == 1


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


def test_how_code_is_parted_into_cells_does_not_count() -> None:
    """Of one cell the compiler keeps equal constants once."""
    first = "def f(x):\n    return x in (1, 2) or x in {3, 4}\n"
    second = "def g(x):\n    return x in (1, 2), (), x in {3, 4}\n"
    last = "class Net(nn.Module):\n    def forward(self, x):\n        return f(x), g(x), (1, 2), ()\n"
    whole, parts = {"__name__": "__main__", "nn": nn}, {"__name__": "__main__", "nn": nn}
    exec(first + second + last, whole)
    for source in (first, second, last):
        exec(source, parts)
    assert module_identity(whole["Net"]()) == module_identity(parts["Net"]())


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
    half = nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes)).bfloat16()
    assert lab.session(net, recipe, half).run.path not in paths
    with pytest.raises(LabError, match="perhaps a module as teacher"):
        lab.session(net, recipe, nn.Linear)


def test_training_that_was_kept_is_said_to_be_read(
    few: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("VITLAB_RUNS", str(tmp_path))
    lab = Lab(LabConfig(), few)
    recipe = lab.params.recipe(epochs=1)
    make = lambda: nn.Sequential(nn.Flatten(), nn.Linear(lab.data.train.pool[0].numel(), len(lab.data.classes)))  # noqa: E731
    fit(net := make(), lab.data, recipe, lab.session(net, recipe))
    assert "trained before" not in capsys.readouterr().out
    again = lab.session(net := make(), recipe)
    fit(net, lab.data, recipe, again)
    told = f"Sequential was trained before: read from {again.run.path}. Delete that folder to train it anew.\n"
    assert capsys.readouterr().out == told
    monkeypatch.setattr(training_session, "code_digest", lambda *_: "another")
    fit(net := make(), lab.data, recipe, lab.session(net, recipe))
    assert "was trained before, by other code of losses or training than today's: read" in capsys.readouterr().out


@pytest.mark.parametrize("answers", [(9,), (1, 10)])
def test_answers_of_another_shape_are_told_with_the_one_that_is_wanted(answers: tuple, few: Source) -> None:
    lab = Lab(LabConfig(batch_size=4), few)
    classes = len(lab.data.classes)
    net = nn.Sequential(nn.Flatten(), nn.Linear(lab.data.train.pool[0].numel(), answers[-1]), nn.Unflatten(1, answers))
    with pytest.raises(LabError, match=rf"Sequential answers with \(4, .*\), and \(4, {classes}\) is wanted"):
        fit(net, lab.data, lab.params.recipe(epochs=1))


def test_own_vit_with_a_convolutional_tokenizer_is_prepared_as_the_labs_is(few: Source, tmp_path: Path) -> None:
    lab = Lab(LabConfig(image_size=8, linformer_k=2, runs_dir=str(tmp_path), epochs=1, tokenizer="conv"), few)
    config = lab.plan.config("ViT")
    _, history = fit(prepared(build_model(config, 10, 1), lab.data), lab.data, lab.params.recipe(epochs=1))
    assert history["loss"].tolist() == lab.train_one(config).history["loss"].tolist()
    plain = nn.Linear(2, 2)
    assert prepared(plain, lab.data) is plain


def test_module_with_another_setting_is_refused_but_for_one_that_a_look_has_changed(
    few: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counting(nn.Sequential):
        calls = 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return super().forward(images)

    monkeypatch.setenv("VITLAB_RUNS", str(tmp_path))
    lab = Lab(LabConfig(), few)
    make = lambda kind: kind(nn.Flatten(), nn.Linear(lab.data.train.pool[0].numel(), len(lab.data.classes)))  # noqa: E731
    net, recipe = make(Counting), lab.params.recipe(epochs=1)
    session = lab.session(net, recipe)
    fit(net, lab.data, recipe, session)
    picture = lab.data.test.pool[0, 0].numpy()
    assert session.run.predict(picture, make(Counting)).answer in lab.data.classes
    with pytest.raises(LabError, match="an instance of it with the same settings, and this one has another calls"):
        session.run.predict(picture, net)
    with pytest.raises(LabError, match=r"holds weights of a class .*Counting: pass an instance of it, and this"):
        session.run.predict(picture, make(nn.Sequential))
    net, recipe = make(Counting), lab.params.recipe(epochs=1, seed=1)
    session = lab.session(net, recipe)
    net(torch.zeros(1, *lab.data.train.pool.shape[1:]))  # a look at it
    fit(net, lab.data, recipe, session)
    assert session.run.predict(picture, make(Counting)).answer in lab.data.classes


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
    read, told = said["loaded"][0].splitlines()
    assert "trained before: read from " in read
    steps, scored, name = told.split()
    assert (steps, scored, name.startswith("own-Net-seed0-")) == ("15", "True", True)  # 20 steps an epoch: none again
    assert said["changed"][0] == "True"
    assert "holds weights of a class Net" in said["changed"][1][0]
    record = json.loads((tmp_path / name / "config.json").read_text(encoding="utf-8"))
    assert record["module"]["class"] == "Net"
    assert "model" not in record["config"]  # no vit
