"""Where parameters come from: a profile in YAML, a command line, a notebook's parameters cell.

A notebook's cell names the few that its chapter's reader would change, and `more` for any other. Values are taken in
this order, later ones win: the defaults, the reader's own profile params/mine.yaml (for all six notebooks), what the
cell changes, `more`, what papermill injected under its own name (`-p`).
"""

import argparse
import ast
import contextlib
import os
import re
import shlex
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from vitlab.config import LabConfig, parse
from vitlab.errors import LabError
from vitlab.files import expanded
from vitlab.machine import ROOT

COMMON = ("dataset", "data_dir", "preset", "seed", "runs_dir")  # what every notebook's cell has
CELL = "# Parameters of this chapter"  # how a parameters cell begins
INJECTED = re.compile(r"# Parameters\s*$", re.MULTILINE)  # how papermill's does


def own_profile() -> Path:
    """The reader's own values for all notebooks; VITLAB_PARAMS names another file, which then has to be there."""
    return Path(os.environ.get("VITLAB_PARAMS") or ROOT / "params" / "mine.yaml")


def load_params(path: Path, overrides: Mapping[str, Any] | None = None) -> LabConfig:
    """The profile in a YAML file with some values overridden."""
    return parse(LabConfig, read_profile(path) | dict(overrides or {}))


def read_profile(path: Path) -> dict[str, Any]:
    """The values of a YAML file, those under `more` among the others."""
    try:
        source = path.read_text(encoding="utf-8-sig")  # Windows' editors begin a file with a mark
        values = yaml.safe_load(source)
        written = yaml.load(source, yaml.BaseLoader)  # every value as it stands there
        twice = _twice(yaml.compose(source, yaml.SafeLoader))
    except FileNotFoundError:
        beside = [*path.parent.glob("*.yaml")] or [*(ROOT / "params").glob("*.yaml")]
        have = ", ".join(sorted(other.stem for other in beside))
        raise LabError(f"no params file {path}: choose one of {have}, or name the path of your own") from None
    except OSError as error:
        raise LabError(f"cannot read {path} ({error.strerror}): name a params file") from None
    except (yaml.YAMLError, ValueError) as error:  # a text that is no UTF-8, or looks like a date and is none
        raise LabError(f"{path} is not valid YAML: {' '.join(str(error).split())}; quote what is text") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise LabError(f"{path} must hold 'name: value' lines")
    if twice:  # YAML takes the last one
        raise LabError(f"{', '.join(sorted(twice))} stands twice in {path}: take one of them out")
    values = _flat(values, str(path))
    if not isinstance(written.get("more"), dict):  # more: null
        written = {name: text for name, text in written.items() if name != "more"}
    texts = {name: text for name, text in _flat(written, str(path)).items() if LabConfig.is_text(name)}
    return values | {name: "" if values[name] is None else text for name, text in texts.items()}


def _twice(node: yaml.Node | None) -> set[str]:
    """Names that a profile has twice, or the mapping under its `more`."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    names = [key.value for key, _ in pairs]
    inner = (_twice(value) for key, value in pairs if key.value == "more")
    return {name for name in names if names.count(name) > 1}.union(*inner)


def profile_path(profile: str) -> Path:
    """A profile by its name, which stands for params/<name>.yaml, or by its path."""
    return expanded(profile) if profile.endswith((".yaml", ".yml")) else ROOT / "params" / f"{profile}.yaml"


def as_profile(params: LabConfig, without: Collection[str] = ()) -> dict[str, Any]:
    """Parameters as a profile has them: what every cell has at top level, the rest under `more`."""
    values = params.model_dump(exclude={*without})
    return {name: values.pop(name) for name in COMMON if name in values} | {"more": values}


def _flat(values: Mapping[str, Any], place: str) -> dict[str, Any]:
    """`values` with those under `more` among them."""
    rest = {name: value for name, value in values.items() if name != "more"}
    more = values.get("more") or {}
    if not isinstance(more, dict):
        raise LabError(f"more in {place} is {more!r}, not a mapping: write more = {{'name': value}}")
    if twice := sorted(rest.keys() & more.keys()):
        raise LabError(f"{', '.join(twice)} stands twice in {place}, also under more: take one of them out")
    return rest | more


# ---------------------------------------------------------------- a command line


def add_overrides(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], dict[str, Any]]:
    """Give a command the options --data and --set; the function returned reads the parameters out of its arguments."""
    parser.add_argument("--words", default="", help="the same as --set in one text, as make passes it on")
    parser.add_argument("--data", default="", help="folder of class folders, instead of the profile's data (DATA=…)")
    parser.add_argument(
        "--set",
        nargs="*",
        action="extend",
        default=[],
        type=_override,
        metavar="name=value",
        help="parameters (SET='…')",
    )

    def overrides(arguments: argparse.Namespace) -> dict[str, Any]:
        folder = {"dataset": "folder", "data_dir": os.path.abspath(expanded(arguments.data))}
        return overrides_in(arguments.words) | dict(arguments.set) | (folder if arguments.data else {})

    return overrides


def overrides_in(words: str) -> dict[str, Any]:
    """Parameters in one text, "epochs=5 'notes=Run 3'", as SET has them."""
    try:
        return dict(_override(word) for word in shlex.split(words))
    except (argparse.ArgumentTypeError, ValueError) as error:  # of a quotation that does not end
        raise LabError(f"SET: {error}; quote a value with spaces as SET=\"'notes=Run 3'\"") from None


def _override(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not name=value")
    others = {word.partition("=")[0] for word in value.split()[1:] if "=" in word}
    if others & LabConfig.model_fields.keys() and not LabConfig.is_text(name):
        raise argparse.ArgumentTypeError(f"{text!r} holds several parameters: quote each by itself, or none")
    try:
        return name, value if LabConfig.is_text(name) else yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        raise argparse.ArgumentTypeError(f"the value of {text!r} is not valid YAML") from None


# ---------------------------------------------------------------- a notebook


def from_notebook(namespace: Mapping[str, Any]) -> LabConfig:
    """Configuration from a notebook's globals: what its parameters cell and papermill's cell after it assign.

    Nothing else counts, whatever it is called: not a loop variable, not a name of a startup file. Without IPython's
    history of cells (`In`) the names that are parameters count.
    """
    cells = namespace.get("In")
    if not isinstance(cells, list):
        own, injected = {name: namespace[name] for name in (*LabConfig.model_fields, "more") if name in namespace}, {}
    else:
        own, injected = _assigned(cells, namespace)
    defaults = LabConfig().model_dump()
    cell = {name: value for name, value in own.items() if name not in injected and name != "more"}
    if "more" not in injected:
        _flat(cell | {"more": own.get("more")}, "the parameters cell")
    changed = {name: value for name, value in cell.items() if name not in defaults or value != defaults[name]}
    asked = own_profile().is_file() or os.environ.get("VITLAB_PARAMS")
    mine = read_profile(own_profile()) if asked else {}
    more = _flat({"more": (own | injected).get("more")}, "the parameters cell")
    _tell_of_other_values(mine, cell.keys() - changed.keys() - more.keys(), defaults)
    _tell_of_texts(injected | (more if "more" in injected else {}))
    return parse(LabConfig, mine | changed | more | {name: injected[name] for name in injected if name != "more"})


def _tell_of_other_values(mine: Mapping[str, Any], shown: Collection[str], defaults: Mapping[str, Any]) -> None:
    """Print which values of the reader's profile count instead of the defaults that the parameters cell shows."""
    told = [f"{name} = {mine[name]!r}" for name in sorted(shown) if name in mine and mine[name] != defaults[name]]
    if told:
        print(f"From {own_profile().name}, instead of the defaults in the parameters cell: {', '.join(told)}.")


def _tell_of_texts(handed: Mapping[str, Any]) -> None:
    """Print which texts papermill has handed over as numbers: whether 7 was written as 007, it does not tell.

    LabError for None, of which no text can be made.
    """
    for name, value in handed.items():
        if LabConfig.is_text(name) and not isinstance(value, str):
            keep = f"hand it over by papermill's `-r {name} TEXT`, or quote it in a profile"
            if value is None:
                raise LabError(f"{name}, a text, arrived as None: {keep}")
            print(f"{name}, a text, arrived as {value} and is taken for '{value}'. If it was another: {keep}.")


def _assigned(cells: list[str], namespace: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the newest run of the parameters cell assigns, and what papermill injected after it."""
    newest = max((i for i, source in enumerate(cells) if source.lstrip().startswith(CELL)), default=-1)
    if newest < 0:
        raise LabError(f"the parameters cell, which begins with {CELL!r}, has not been run: run it first")
    injected = [source for source in cells[newest + 1 :] if INJECTED.match(source.lstrip())]
    later = [pair for source in injected for pair in _values(source, namespace).items()]
    return _values(cells[newest], namespace), dict(later)


def _values(source: str, namespace: Mapping[str, Any]) -> dict[str, Any]:
    """What a cell assigns at its top level, as it stands there: another cell may have used the name since."""
    values: dict[str, Any] = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
        values |= {name: namespace[name] for name in names if name in namespace}
        if all(isinstance(target, ast.Name) for target in targets):
            with contextlib.suppress(ValueError):  # not literal: then its value is what the name has
                values |= dict.fromkeys(names, ast.literal_eval(node.value))
    return values
