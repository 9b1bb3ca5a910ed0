"""How the notebooks are written. That each runs with its own defaults is nbmake's part of `make test`."""

import ast
import difflib
import re

import nbformat
import papermill
import pytest
import yaml

from vitlab.config import RESEMBLES, ROOT, LabConfig, load_params
from vitlab.data import Source
from vitlab.lab import NOTEBOOKS, Lab

PROFILES = sorted((ROOT / "params").glob("*.yaml"))
TITLES = ["01_data_and_imbalance", "02_vit", "03_dynamic_vit", "04_linear_vit", "05_complexity", "06_comparison"]


def read(path):
    return nbformat.read(path, as_version=4)


def code(path):
    return [cell.source for cell in read(path).cells if cell.cell_type == "code"]


def prose(path):
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def parameters(path):
    return {name: ast.literal_eval(p["default"]) for name, p in papermill.inspect_notebook(path).items()}


def test_six_chapters_in_order():
    assert [path.stem for path in NOTEBOOKS.values()] == TITLES


@pytest.mark.parametrize("path", NOTEBOOKS.values(), ids=TITLES)
class TestEachNotebook:
    def test_is_committed_without_outputs_for_the_standard_kernel(self, path):
        notebook = read(path)
        assert notebook.metadata.kernelspec.name == "python3"
        assert not [c.id for c in notebook.cells if c.get("outputs") or c.get("execution_count")]

    def test_parameters_cell_states_the_defaults_and_their_meaning(self, path):
        [cell] = [c for c in read(path).cells if "parameters" in c.metadata.get("tags", [])]
        defaults, meaning = LabConfig().model_dump(), LabConfig.help()
        for line in cell.source.splitlines():
            name, value, comment = re.fullmatch(r"(\w+): \w+ = (.*?)  # (.*)", line).groups()
            assert (ast.literal_eval(value), comment) == (defaults[name], meaning[name]), name

    def test_argues_while_the_package_computes(self, path):
        for source in code(path):
            for node in ast.walk(ast.parse(source)):
                assert not isinstance(node, ast.ClassDef), "a notebook defines no class"
                if isinstance(node, ast.FunctionDef):
                    assert node.end_lineno - node.lineno < 8, f"{node.name} belongs into the package"

    def test_prose_is_long_enough_to_explain_and_short_enough_to_read(self, path):
        assert 600 <= len(prose(path).split()) <= 1200  # captions and computed sentences come on top

    def test_has_four_to_nine_numbered_figures_and_tables_in_order(self, path):
        source, chapter = "\n".join(code(path)), int(path.name[:2])
        for kind in ("figure", "table"):
            numbers = re.findall(rf'show_{kind}\((?:[^"]|"[^"]*"(?!,))*?"(\d\.\d)"', source)
            assert numbers == [f"{chapter}.{i + 1}" for i in range(len(numbers))]
        assert 4 <= source.count("show_figure(") + source.count("show_table(") <= 10

    def test_prose_types_no_score(self, path):
        """Scores are read from runs: prose in Markdown cells holds none."""
        assert not re.findall(r"\d+\.\d+ ?%|accuracy of \d", prose(path))

    def test_no_name_it_makes_is_taken_for_a_parameter_when_a_cell_is_run_again(self, path):
        first, *rest = [ast.parse(source) for source in code(path)]
        assert {target.target.id for target in first.body} >= {"epochs", "seed"}  # the parameters
        inner = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.FunctionDef, ast.Lambda)
        for tree in rest:
            local = {id(name) for node in ast.walk(tree) if isinstance(node, inner) for name in ast.walk(node)}
            for node in ast.walk(tree):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and id(node) not in local:
                    assert not difflib.get_close_matches(node.id, LabConfig.model_fields, n=1, cutoff=RESEMBLES)

    def test_references_are_linked(self, path):
        assert "**References.**" in prose(path)
        assert "](https://" in prose(path)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: p.stem)
def test_profiles_name_the_notebooks_parameters(profile):
    """papermill only warns of a name that the parameters cell lacks, so profile and cells must agree."""
    values = yaml.safe_load(profile.read_text())
    for path in NOTEBOOKS.values():
        assert values.keys() == parameters(path).keys()


def test_quick_profile_is_what_a_notebook_runs_by_hand():
    assert yaml.safe_load((ROOT / "params" / "quick.yaml").read_text()) == parameters(NOTEBOOKS["02"])


@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: p.stem)
def test_profiles_open_with_what_how_long_and_what_to_expect(profile):
    header = profile.read_text().split("\n\n")[0]
    assert all(f"# {word}" in header for word in ("Runs", "Takes", "Expect"))


@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: p.stem)
def test_profiles_count_their_trainings_right(profile, few: Source):
    lab = Lab(load_params(profile), few)
    said = re.search(r"(\d+) (?:short )?trainings", profile.read_text())
    assert int(said[1]) == len(lab.names) + len(lab.study)
