"""What stands in several places agrees."""

import re
import tomllib
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from PIL import Image

from vitlab.config import ROOT, load_params
from vitlab.lab import Lab
from vitlab.report import file_digest, result_parameters
from vitlab.tables import readme_table

COMMITTED = ROOT / "reports" / "cifar10_cpu"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_environment_yml_installs_this_project_and_lists_no_version_of_its_own():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = [d for d in dependencies if isinstance(d, str)]
    [pip] = [d["pip"] for d in dependencies if isinstance(d, dict)]
    assert {re.split("[=<>]", d)[0] for d in conda} == {"python", "pip", "make"}
    [python] = [d.partition("=")[2] for d in conda if d.startswith("python")]
    least = PROJECT["requires-python"].removeprefix(">=")
    assert tuple(map(int, python.split("."))) >= tuple(map(int, least.split(".")))
    [extra] = re.fullmatch(r"-e \.\[(\w+)\]", pip[0]).groups()
    assert len(pip) == 1
    assert extra in PROJECT["optional-dependencies"]


def test_torch_is_pinned():
    assert {"torch==2.14.1", "torchvision==0.29.1"} <= set(PROJECT["dependencies"])


@pytest.mark.parametrize("target", ["report", "test", "lab"])
def test_readme_names_the_commands_of_the_makefile(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert f"make {target}" in (ROOT / "README.md").read_text()


def test_files_that_the_readme_names_exist():
    readme = (ROOT / "README.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", readme) if not link.startswith("http")]
    links += re.findall(r'<img[^>]+src="([^"]+)"', readme)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_readme_shows_the_results_of_the_committed_report():
    table = readme_table(pd.read_csv(COMMITTED / "results.csv"))
    readme = (ROOT / "README.md").read_text()
    assert table in readme, f"put this table into README.md:\n{table}"
    assert "](reports/cifar10_cpu/comparison.png)" in readme
    with Image.open(COMMITTED / "comparison.png") as picture:
        assert picture.text["Source"] == f"results.csv {file_digest(COMMITTED / 'results.csv')}"


def test_the_committed_report_is_of_the_profile_as_it_is_now():
    stored = yaml.safe_load((COMMITTED / "parameters.yaml").read_text())
    params = load_params(ROOT / "params" / "cifar10_cpu.yaml", {"dataset": "folder", "data_dir": "anywhere"})
    lab = Lab(params, SimpleNamespace(digest=stored["data"]))
    assert result_parameters(lab) == stored
    results = pd.read_csv(COMMITTED / "results.csv")
    plan = {name: config for chapter in lab.plan.values() for name, config in chapter.items()}
    named = {name: lab.run_of(config).path.name for name, config in plan.items()}
    assert dict(zip(results["model"], results["run"], strict=True)) == named


def test_every_module_of_the_package_is_in_its_map():
    text = (ROOT / "vitlab" / "__init__.py").read_text()
    modules = {path.stem for path in (ROOT / "vitlab").glob("*.py")} - {"__init__"}
    assert not [name for name in modules if not re.search(rf"\b{name}\b", text)]
