"""How the notebooks are written. That each runs with its own defaults is nbmake's part of `make test`."""

import ast
import json
import logging
import re
import subprocess
import sys

import nbformat
import papermill
import pytest

from vitlab.config import LabConfig
from vitlab.data.splits import Source
from vitlab.lab.plan import NOTEBOOKS, Plan
from vitlab.machine import ROOT
from vitlab.parameters import CELL, COMMON, as_profile, from_notebook, load_params

PROFILES = sorted((ROOT / "params").glob("*.yaml"))
TITLES = ["01_data_and_imbalance", "02_vit", "03_dynamic_vit", "04_linear_vit", "05_complexity", "06_comparison"]


def read(path):
    return nbformat.read(path, as_version=4)


def code(path):
    """Of the cells that argue: in exercises a reader may define what they like."""
    cells = [cell for cell in read(path).cells if "exercise" not in cell.metadata.get("tags", [])]
    return [cell.source for cell in cells if cell.cell_type == "code"]


def prose(path):
    cells = [cell for cell in read(path).cells if "exercise" not in cell.metadata.get("tags", [])]
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def shown_characters(source):
    """Characters of a cell inside calls of `say` and `show_…`."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    named = [call for call in calls if re.match(r"say$|show_", getattr(call.func, "id", ""))]
    return sum(len(ast.get_source_segment(source, call)) for call in named)


def parameters_cell(path):
    [cell] = [c for c in read(path).cells if "parameters" in c.metadata.get("tags", [])]
    return cell.source


def read_top(profile):
    """A profile as papermill reads it: `more` is one value."""
    return papermill.iorw.read_yaml_file(str(profile))


def warnings_of(source, target, values, caplog):
    """What papermill warns of as it puts `values` into a notebook, which it does not execute."""
    with caplog.at_level(logging.WARNING, logger="papermill"):
        papermill.execute_notebook(source, target, values, prepare_only=True, kernel_name="python3")
    return [record.getMessage() for record in caplog.records]


def test_six_chapters_in_order():
    assert [path.stem for path in NOTEBOOKS.values()] == TITLES


@pytest.mark.parametrize("path", NOTEBOOKS.values(), ids=TITLES)
class TestEachNotebook:
    def test_is_committed_without_outputs_for_the_standard_kernel(self, path):
        notebook = read(path)
        assert notebook.metadata.kernelspec.name == "python3"
        assert not [c.id for c in notebook.cells if c.get("outputs") or c.get("execution_count")]

    def test_cells_have_ids_of_their_own(self, path):
        ids = [cell["id"] for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
        assert sorted({*ids}) == sorted(ids)

    def test_parameters_cell_is_the_first_and_is_known_as_one(self, path):
        assert code(path)[0] == parameters_cell(path)
        assert parameters_cell(path).startswith(CELL)

    def test_parameters_cell_states_the_defaults_and_their_meaning(self, path):
        defaults, meaning = LabConfig().model_dump(), LabConfig.help()
        _, *lines, last = parameters_cell(path).splitlines()
        for line in lines:
            name, kind, value, comment = re.fullmatch(r"(\w+): (\w+) = (.*?)  # (.*)", line).groups()
            value = ast.literal_eval(value)
            assert (value, comment) == (defaults[name], meaning[name]), name
            assert type(value).__name__ == kind
        assert last.startswith("more: dict = {}  # ")

    def test_parameters_cell_names_ten_at_most_and_those_of_all_chapters_first(self, path):
        *names, last = papermill.inspect_notebook(path)
        assert last == "more"
        assert len(names) <= 10
        assert tuple(names[: len(COMMON)]) == COMMON

    def test_what_it_runs_by_hand_is_the_quick_profile(self, path):
        namespace = {"In": ["", parameters_cell(path)]}
        exec(parameters_cell(path), namespace)
        assert from_notebook(namespace) == load_params(ROOT / "params" / "quick.yaml")

    @pytest.mark.parametrize("profile", PROFILES, ids=lambda p: p.stem)
    def test_reads_what_a_profile_says_and_papermill_knows_all_of_its_names(self, path, profile, tmp_path, caplog):
        """papermill only warns of a name that the parameters cell lacks."""
        assert warnings_of(path, tmp_path / "out.ipynb", read_top(profile), caplog) == []
        namespace = {"In": [""]}
        for source in code(tmp_path / "out.ipynb")[:2]:  # the parameters cell, and what papermill put after it
            namespace["In"].append(source)
            exec(source, namespace)
        assert from_notebook(namespace) == load_params(profile)

    def test_reports_hand_it_no_name_that_it_lacks(self, path, tmp_path, caplog):
        assert warnings_of(path, tmp_path / "out.ipynb", as_profile(LabConfig(seed=3)), caplog) == []

    def test_argues_while_the_package_computes(self, path):
        for source in code(path):
            for node in ast.walk(ast.parse(source)):
                assert not isinstance(node, ast.ClassDef), "a notebook defines no class"
                if isinstance(node, ast.FunctionDef):
                    assert node.end_lineno - node.lineno < 8, f"{node.name} belongs into the package"

    def test_has_four_to_twelve_numbered_figures_and_tables_in_order(self, path):
        source, chapter = "\n".join(code(path)), int(path.name[:2])
        for kind in ("figure", "table"):
            numbers = re.findall(rf'show_{kind}\((?:[^"]|"[^"]*"(?!,))*?"(\d\.\d)"', source)
            assert numbers == [f"{chapter}.{i + 1}" for i in range(len(numbers))]
        assert 4 <= source.count("show_figure(") + source.count("show_table(") <= 12  # diagrams included

    def test_reader_sees_tensors_and_results_rather_than_captions(self, path):
        """Under a quarter of the code stands inside `say` and `show_…`: captions and sentences are the package's."""
        cells = code(path)
        assert sum(map(shown_characters, cells)) < 0.25 * sum(map(len, cells))

    def test_prose_holds_no_software_options(self, path):
        """The paper has this prose but neither code nor parameters: options are told in comments of cells."""
        plain = re.sub(r"\$\$.*?\$\$|\$[^$]*\$|\]\([^)]*\)", " ", prose(path), flags=re.DOTALL)
        assert not re.findall(r"\b[Pp]arameters? `|`[^`]*`|\b[a-z]+_[a-z_]+\b", plain)

    def test_prose_types_no_score(self, path):
        """Scores are read from runs: prose in Markdown cells holds none."""
        assert not re.findall(r"\d+\.\d+ ?%|accuracy of \d", prose(path))

    def test_references_are_linked(self, path):
        assert "**References.**" in prose(path)
        assert "](https://" in prose(path)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: p.stem)
def test_profiles_open_with_what_how_long_and_what_to_expect(profile):
    header = profile.read_text().split("\n\n")[0]
    assert all(f"# {word}" in header for word in ("Runs", "Takes", "Expect"))


@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: p.stem)
def test_profiles_count_their_trainings_right(profile, few: Source):
    plan = Plan(load_params(profile), few)
    said = re.search(r"(\d+) (?:short )?trainings", profile.read_text())
    assert int(said[1]) == len(plan.configs)


# ---------------------------------------------------------------- papermill, for real


def test_warning_of_an_unknown_name_would_be_seen(tmp_path, caplog):
    [warning] = warnings_of(NOTEBOOKS["05"], tmp_path / "out.ipynb", {"lrr": 0.1, "seed": 1}, caplog)
    assert "lrr" in warning


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Chapter 05's parameters cell, and one that shows what it amounts to."""
    path = tmp_path_factory.mktemp("short") / "short.ipynb"
    show = "from vitlab.parameters import from_notebook\nprint(from_notebook(globals()).model_dump_json())"
    notebook = read(NOTEBOOKS["05"])
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    notebook.cells = [first, nbformat.v4.new_code_cell(show)]
    nbformat.write(notebook, path)
    return path


def papermill_command(notebook, out, *options):
    """`papermill notebook out …` from a shell: its exit code, and the executed notebook's last output."""
    command = [sys.executable, "-m", "papermill", notebook, out, "--no-progress-bar", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, read(out).cells[-1].outputs[-1]


@pytest.mark.slow
def test_single_value_wins_over_the_profile(short, tmp_path):
    """1e-3 is no number in YAML, and chapter 05's cell has no lr."""
    profile = ROOT / "params" / "cifar10_cpu.yaml"
    code, output = papermill_command(
        short, tmp_path / "out.ipynb", "-f", profile, "-p", "lr", "1e-3", "-p", "seed", "4"
    )
    assert code == 0
    assert LabConfig(**json.loads(output.text)) == load_params(profile, {"lr": 1e-3, "seed": 4})


@pytest.mark.slow
def test_misspelt_value_stops_the_notebook_and_names_the_nearest(short, tmp_path):
    code, output = papermill_command(short, tmp_path / "out.ipynb", "-p", "lrr", "1e-3")
    assert code != 0
    assert output.ename == "LabError"
    assert "did you mean 'lr'" in output.evalue
    assert output.traceback == [f"LabError: {output.evalue}"]
