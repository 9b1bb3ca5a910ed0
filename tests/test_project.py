"""What stands in several places agrees."""

import ast
import importlib.metadata
import re
import shlex
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from PIL import Image

import vitlab
from vitlab import __main__
from vitlab.analysis.tables import by_model, readme_table
from vitlab.machine import ROOT
from vitlab.report.make import file_digest

COMMITTED = ROOT / "reports" / "cifar10_cpu"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_environment_yml_installs_this_project_and_lists_no_version_of_its_own():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = [d for d in dependencies if isinstance(d, str)]
    [pip] = [d["pip"] for d in dependencies if isinstance(d, dict)]
    assert {re.split("[=<>]", d)[0] for d in conda} == {"python", "pip", "make"}
    [python] = [d.partition("=")[2] for d in conda if d.startswith("python")]
    assert python in SpecifierSet(PROJECT["requires-python"])
    assert pip[0] == "-c constraints.txt"
    [extra] = re.fullmatch(r"-e \.\[(\w+)\]", pip[1]).groups()
    assert len(pip) == 2
    assert extra in PROJECT["optional-dependencies"]


def test_exact_versions_are_among_those_that_the_project_asks_for():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    exact = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]
    for requirement in map(Requirement, wanted):
        assert exact[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_exact_versions_take_the_oldest_python_that_the_project_takes():
    """They are tried on one Python; another, an older 3.11 say, is told by pip alone, after all other checks."""
    oldest = f"{PROJECT['requires-python'].removeprefix('>=')}.0"
    for installed in importlib.metadata.distributions():
        assert oldest in SpecifierSet(installed.metadata.get("Requires-Python", "")), installed.metadata["Name"]


def test_make_installs_the_exact_versions():
    assert "--constraint constraints.txt" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("target", ["report", "test", "quick-test", "lab"])
def test_readme_names_the_commands_of_the_makefile(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert f"make {target}" in (ROOT / "README.md").read_text()


def test_commands_of_the_readme_are_understood():
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    blocks += re.findall(r"^    .*\n", __main__.__doc__, re.MULTILINE)
    kinds = ("report", "train", "predict", "evaluate", "analyze", "export")
    commands = re.findall(rf"\bvitlab ((?:{'|'.join(kinds)}) [^\n#]+)", "".join(blocks))
    assert {command.split()[0] for command in commands} == {*kinds}
    for command in commands:
        arguments = __main__.parser().parse_args(shlex.split(command))
        if arguments.command not in ("report", "train"):
            continue
        profile = f"params/{arguments.profile}.yaml" if arguments.command == "report" else arguments.params
        assert (ROOT / profile).exists()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_files_that_a_page_names_exist(page):
    text = (ROOT / page).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    links += re.findall(r'<img[^>]+src="([^"]+)"', text)
    assert not [link for link in links if not (ROOT / link).exists()]
    named = set(re.findall(r"`([\w/]+\.py)`", text))
    assert links or named
    there = [f"/{path.relative_to(ROOT)}" for folder in ("vitlab", "tests") for path in (ROOT / folder).rglob("*.py")]
    assert not [name for name in named if not any(path.endswith(f"/{name}") for path in there)]


def test_readme_shows_the_results_of_the_committed_report():
    table = readme_table(by_model(pd.read_csv(COMMITTED / "results.csv")))
    readme = (ROOT / "README.md").read_text()
    assert table in readme, f"put this table into README.md:\n{table}"
    assert "](reports/cifar10_cpu/comparison.png)" in readme
    with Image.open(COMMITTED / "comparison.png") as picture:
        assert picture.text["Source"] == f"results.csv {file_digest(COMMITTED / 'results.csv')}"


def test_every_module_of_the_package_is_in_its_map():
    lines = vitlab.__doc__.splitlines()
    for path in sorted((ROOT / "vitlab").rglob("*.py")):
        folder, name = path.parent.relative_to(ROOT / "vitlab"), path.stem
        places = lines if folder == Path() else [line for line in lines if line.startswith(f"{folder}/")]
        if not name.startswith("__"):
            assert [line for line in places if re.search(rf"\b{name}\b", line)], path


def test_no_file_and_no_function_of_the_training_is_too_long_to_be_read():
    for path in (ROOT / "vitlab").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(text)) if path.parent.name == "training" else ():
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, (path, node.name)


@pytest.mark.parametrize("place", ["models/*", "data/*", "training/losses", "training/optim", "training/step"])
def test_what_is_to_be_read_never_imports_what_keeps_a_run_alive(place):
    keeps_alive = ("vitlab.training.session", "vitlab.training.fit", "vitlab.lab", "vitlab.runs", "vitlab.report")
    paths = list((ROOT / "vitlab").glob(f"{place}.py"))
    assert paths
    for path in paths:
        assert not [name for name in imports(path) if name.startswith(keeps_alive)], path


@pytest.mark.parametrize(
    ("part", "users"), [("vitlab.lab", ("lab", "report", "__main__")), ("vitlab.report", ("report", "__main__"))]
)
def test_lab_and_report_stand_on_the_rest_and_not_the_rest_on_them(part, users):
    for path in (ROOT / "vitlab").rglob("*.py"):
        if not str(path.relative_to(ROOT / "vitlab")).startswith(users):
            assert not [name for name in imports(path) if name.startswith(part)], path


def imports(path):
    """Modules that a file imports when it runs, those for type checkers alone not among them."""
    found = []
    tree = ast.parse(path.read_text())
    hints = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    passed = {id(inner) for node in hints for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and id(node) not in passed:
            found += [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom) and id(node) not in passed:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found
