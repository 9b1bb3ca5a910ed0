"""`make report` as its user meets it: the quick profile, whole. The notebooks that follow it here find its runs."""

import dataclasses
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pdfplumber
import pytest
import torch
import yaml
from browser import open_offline
from bs4 import BeautifulSoup
from conftest import SHARED_RUNS
from PIL import Image

from vitlab.__main__ import main
from vitlab.config import LabConfig
from vitlab.errors import LabError
from vitlab.lab.plan import NOTEBOOKS
from vitlab.lab.results import Lab, check
from vitlab.machine import ROOT
from vitlab.models.registry import MODELS
from vitlab.parameters import load_params, profile_path
from vitlab.report import make
from vitlab.runs import Run


def command(out, *options):
    return [sys.executable, "-m", "vitlab", "report", "--out", str(out), *options]


def run(out, runs, *options):
    environment = os.environ | {"VITLAB_RUNS": str(runs)}
    return subprocess.run(command(out, *options), env=environment, cwd="/", capture_output=True, text=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("report"), SHARED_RUNS  # which the kernels that nbmake starts read


@pytest.fixture(scope="module")
def made(place):
    """The report, first killed in the middle and then made."""
    out, runs = place
    environment = os.environ | {"VITLAB_RUNS": str(runs)}
    process = subprocess.Popen(command(out), env=environment, start_new_session=True, cwd="/")
    while process.poll() is None and len(list(runs.glob("*/summary.json"))) < 3:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in runs.glob("*/summary.json")}
    result = run(out, runs)
    return result, done


@pytest.mark.slow
def test_report_ends_well_after_having_been_killed_and_trains_no_finished_run_again(made, place):
    result, done = made
    assert result.returncode == 0, result.stderr
    assert len(done) >= 3
    assert all(path.stat().st_mtime_ns == before for path, before in done.items())
    expected = {"report.html", "report.pdf", "results.csv", "pairs.csv", "results.tex", "comparison.png"}
    assert expected <= {path.name for path in place[0].iterdir()}


@pytest.mark.slow
def test_second_call_trains_and_executes_nothing(made, place):
    out, runs = place
    summaries = {path: path.stat().st_mtime_ns for path in runs.glob("*/summary.json")}
    result = run(out, runs)
    assert result.returncode == 0
    assert "up to date" in result.stdout
    assert all(path.stat().st_mtime_ns == before for path, before in summaries.items())
    assert len(list(runs.glob("*/summary.json"))) == len(summaries)


@pytest.mark.slow
def test_output_is_free_of_warnings_and_tracebacks(made):
    result, _ = made
    assert not re.findall(r"warning|traceback|deprecat", result.stdout + result.stderr, re.IGNORECASE)


@pytest.mark.slow
def test_results_hold_every_model_once(made, place):
    frame = pd.read_csv(place[0] / "results.csv")
    assert frame["model"].is_unique
    assert len(frame) == 14
    assert frame["accuracy"].between(frame["accuracy_low"], frame["accuracy_high"]).all()
    assert frame["accuracy"].is_monotonic_decreasing
    tex = (place[0] / "results.tex").read_text()
    assert all(name in tex for name in (r"\toprule", *frame["model"]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "least"),
    # what the profile's header promises: how a CPU rounds moves some of the 360 images (0.969 with AVX-512)
    [("ViT", 0.96), ("Linear ViT", 0.95), ("Linformer ViT", 0.95), ("InLine ViT", 0.95), ("ResNet-20", 0.95)],
)
def test_models_know_the_digits(made, place, model, least):
    accuracy = pd.read_csv(place[0] / "results.csv").set_index("model")["accuracy"]
    assert accuracy[model] >= least


@pytest.mark.slow
def test_every_number_of_the_comparison_stands_in_results(made, place):
    html = (place[0] / "report.html").read_text()
    for row in pd.read_csv(place[0] / "results.csv").itertuples():
        assert f"{100 * row.accuracy:.1f}" in html
        assert f"{row.parameters:,}" in html


@pytest.mark.slow
def test_paper_holds_no_software_options(made, place):
    """Names of parameters stand in code, which is folded and not in the PDF, and in the appendix."""
    page = BeautifulSoup((place[0] / "report.html").read_text(encoding="utf-8"), "html.parser")
    for part in page.select("details, pre, .code, svg, style, script, math"):
        part.decompose()
    text = page.select_one("header .summary").get_text() + page.main.get_text().partition("A. Parameters")[0]
    assert "6. Comparison" in text
    assert not re.findall(r"\b[a-z]+_[a-z_]+\b|\b[Pp]arameter [a-z`]+|[Ss]et to none", text)


@pytest.mark.slow
def test_each_conclusion_answers_and_ends_with_its_limits(made, place):
    page = BeautifulSoup((place[0] / "report.html").read_text(encoding="utf-8"), "html.parser")
    conclusions = [heading for heading in page.select("main h2") if "Conclusion" in heading.get_text()]
    assert len(conclusions) == 6
    for heading in conclusions:
        first = heading.find_next("p")
        assert first.strong or first.em, first.get_text()  # what is taken, or was found
        rest = list(itertools.takewhile(lambda tag: tag.name != "h1", heading.find_next_siblings()))
        assert any(tag.get_text().startswith("Limits.") for tag in rest)
        assert not [tag for tag in rest if tag.name == "figure"]


@pytest.mark.slow
def test_page_one_answers_five_questions(made, place):
    page = BeautifulSoup((place[0] / "report.html").read_text(encoding="utf-8"), "html.parser")
    asked = [bold.get_text() for bold in page.select("header .summary li strong")]
    assert len(asked) == 5
    assert all(question.endswith("?") for question in asked)
    with pdfplumber.open(place[0] / "report.pdf") as pdf:
        first = pdf.pages[0].extract_text()
    assert all(question in first.replace("\n", " ") for question in asked)
    assert "The models in short" in first


def tables_of(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    html = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    return [text for text in html if "<table" in text]  # a function's source is HTML as well


@pytest.mark.slow
def test_chapter_06_can_be_made_from_the_runs_kept_beside_the_report(made, place, tmp_path, monkeypatch):
    kept = place[0] / "runs"
    assert sum(path.stat().st_size for path in kept.rglob("*") if path.is_file()) < 5 * 2**20
    monkeypatch.setenv("VITLAB_RUNS", str(kept))
    target = tmp_path / "06.ipynb"
    parameters = yaml.safe_load((place[0] / make.PARAMETERS).read_text(encoding="utf-8"))
    make.run_notebook(NOTEBOOKS["06"], target, parameters)  # as papermill's -f hands them over
    again, before = (nbformat.read(path, 4) for path in (target, place[0] / "notebooks" / NOTEBOOKS["06"].name))
    assert len(tables_of(again)) == 4
    assert tables_of(again) == tables_of(before)


@pytest.mark.slow
def test_best_vit_of_a_report_is_of_use_without_its_run(made, place, tmp_path, capsys, monkeypatch):
    scores = {}
    for path in SHARED_RUNS.glob("*/summary.json"):
        of = Run(path.parent)
        if MODELS[of.config.model].is_vit and of.config.imbalance == "none" and of.config.keep_epoch == "best":
            scores[of.path.name] = of.summary["val_accuracy"]
    (weights,) = (place[0] / "runs").glob("*/model.safetensors")
    assert scores[weights.parent.name] == max(scores.values())
    kept, whole = Run(weights.parent), Run(SHARED_RUNS / weights.parent.name)
    assert not (kept.path / "model.pt").exists()
    assert kept.weights().keys() == whole.weights().keys()
    assert all(torch.equal(kept.weights()[name], values) for name, values in whole.weights().items())
    monkeypatch.setenv("VITLAB_RUNS", str(tmp_path))
    Image.new("L", (16, 16), 99).save(tmp_path / "some.png")
    assert main(["predict", str(place[0]), str(tmp_path / "some.png")]) == 0
    assert str(whole.predict(tmp_path / "some.png").answer) in capsys.readouterr().out


@pytest.mark.slow
def test_page_opens_offline_in_a_browser(made, place):
    path = place[0] / "report.html"
    assert path.stat().st_size < 6 * 2**20
    for width in (1280, 400):
        page = open_offline(path, width=width)
        assert page["requests"] == []
        assert page["errors"] == []
        assert page["empty_images"] == 0
        assert page["overflow"] <= 0
        assert not re.search(r"\$\$|\\frac|\\operatorname|\\mathrm", page["text"])


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    """refused(*options): what a call that must fail says, and the folder of its runs."""

    def call(*options):
        monkeypatch.setenv("VITLAB_RUNS", str(tmp_path / "runs"))
        assert main(["report", "--out", str(tmp_path / "out"), *options]) == 1
        return capsys.readouterr().err, tmp_path / "runs"

    return call


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--set", "epoch=3"], "did you mean 'epochs'?"),
        (["--set", "device=mps"], "device is mps"),
        (["--set", "lr=fast"], "parameter lr"),
        (["--set", "patch_size=5"], "does not divide image_size"),
        (["--set", "heads=3"], "does not divide dim"),
        (["--profile", "quik"], "choose one of cifar10_cpu, cifar10_gpu, quick"),
        (["--data", "/nowhere"], "there is no folder"),
        (["--set", "runs_dir="], "runs_dir is ''"),
    ],
)
def test_wrong_input_is_one_sentence_before_any_work(refused, options, expected):
    error, runs = refused(*options)
    assert expected in error
    assert len(error.strip().splitlines()) == 1
    assert not list(runs.glob("*/config.json"))
    assert not (runs.parent / "out").exists()


def test_report_of_other_parameters_is_not_overwritten(tmp_path, refused):
    (tmp_path / "out").mkdir()
    make.keep_parameters(check(LabConfig()), tmp_path / "out")
    error, runs = refused("--set", "seed=7", "notes=any")
    assert "holds a report with other values of seed: choose another folder" in error
    assert not runs.exists()


def test_report_of_other_data_is_not_overwritten(tmp_path):
    lab = check(LabConfig())
    make.keep_parameters(lab, tmp_path)
    make.require_own(lab, tmp_path)
    other = Lab(lab.params, dataclasses.replace(lab.source, digest="other"))
    with pytest.raises(LabError, match="other values of data:"):
        make.require_own(other, tmp_path)


def test_report_keeps_the_profile_that_makes_it_again_elsewhere(tmp_path):
    params = LabConfig(seed=7, notes="Run 3", data_name="007", sizes=["small"], epochs=3, stages=[1, 2])
    here = params.replace(runs_dir="else/where", device="cpu", processes=2, num_workers=0)
    make.keep_parameters(check(here), tmp_path)
    assert load_params(profile_path(str(tmp_path / make.PARAMETERS))) == params


def test_results_depend_on_no_machine_place_or_name():
    elsewhere = {"device": "cpu", "processes": 2, "num_workers": 0, "runs_dir": "else/where", "data_name": "mine"}
    assert make.result_parameters(check(LabConfig(**elsewhere))) == make.result_parameters(check(LabConfig()))


def test_results_depend_on_the_runs_that_are_compared_as_well():
    class Extra:  # a lab whose runs of other labs lie wherever they do
        def __init__(self, *names):
            self.params, self.source, self.extra = LabConfig(), check(LabConfig()).source, dict.fromkeys(names)

    alone, beside, moved = (make.result_parameters(Extra(*names)) for names in ((), ("b", "a"), ("a", "b")))
    assert alone != beside == moved


def test_broken_image_is_named(tmp_path, refused):
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (16, 16)).save(tmp_path / "data" / name / f"good{number}.png")
    (tmp_path / "data" / "dog" / "torn.png").write_bytes(b"\x89PNG\r\n")
    error, _ = refused("--data", str(tmp_path / "data"))
    assert re.search(r"cannot read .*torn\.png .*: repair", error)


def test_folder_that_cannot_be_written_is_named_before_any_work(tmp_path, refused):
    (tmp_path / "file").write_text("")
    error, _ = refused("--out", str(tmp_path / "file" / "out"))
    assert "cannot write" in error


@pytest.mark.slow
def test_full_disk_is_said_before_any_work(tmp_path):
    """A limit on file sizes stands in for a full disk: the same error from the same call."""
    limited = f'ulimit -f 512; exec "$0" -m vitlab report --out {tmp_path / "out"}'
    environment = os.environ | {"VITLAB_RUNS": str(tmp_path / "runs")}
    shell = ["bash", "-c", limited, sys.executable]
    result = subprocess.run(shell, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 1
    assert "free some space" in result.stderr
    assert not list(tmp_path.glob("runs/*/config.json"))


def test_interrupted_command_says_how_it_goes_on(tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(make, "check", interrupt)
    assert main(["report", "--out", str(tmp_path)]) == 130
    assert "the same command goes on from what it has kept" in capsys.readouterr().err


# ---------------------------------------------------------------- a model of one's own

TOY = '''
"""Patches and a mean: as little as a model can be."""

from torch import Tensor, nn


class Toy(nn.Module):
    def __init__(self, *, channels: int, num_classes: int, patch_size: int, dim: int, **_) -> None:
        super().__init__()
        self.tokens = nn.Conv2d(channels, dim, patch_size, patch_size)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.tokens(images).relu().mean((2, 3)))
'''
SETTINGS = ["image_size=8", "dim=16", "depth=4", "heads=2", "mlp_ratio=2.0", "linformer_k=2", "epochs=1"]
BUDGET = ["fine_tune_epochs=1", "study_epochs=1", "study_seeds=1", "batch_size=256", "precision=fp32", "rounds=1"]
FEW = ["equal_cost=[]", "study_remedies=sampler"]


def vitlab_in(place: Path, *words: str) -> subprocess.CompletedProcess:
    own = {"VITLAB_RUNS": str(place / "runs"), "PYTHONPATH": str(place), "JUPYTER_PREFER_ENV_PATH": "1"}
    command = [sys.executable, "-m", "vitlab", *words]
    return subprocess.run(command, cwd=place, env=os.environ | own, capture_output=True, text=True)


@pytest.mark.slow
def test_model_of_one_file_and_one_row_is_in_the_report(tmp_path: Path) -> None:
    for part in ("vitlab", "notebooks", "params"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "vitlab" / "models" / "toy.py").write_text(TOY)
    registry = tmp_path / "vitlab" / "models" / "registry.py"
    row = 'from vitlab.models import toy\n\nMODELS = {\n    "toy": Row(toy.Toy, "Toy", chapter="04"),\n'
    registry.write_text(registry.read_text().replace("MODELS = {\n", row))

    done = vitlab_in(tmp_path, "report", "--profile", "quick", "--set", *SETTINGS, *BUDGET, *FEW)
    assert done.returncode == 0, done.stderr[-2000:]
    results = pd.read_csv(tmp_path / "reports" / "quick" / "results.csv").set_index("model")
    assert results.loc["Toy", "run"].startswith("digits-toy-")
    # the tokenizer's 8·8·16 and the head's 16·10, as torch counts them
    assert (results.loc["Toy", "parameters"], results.loc["Toy", "macs"]) == (16 * 17 + 170, 8 * 8 * 16 + 160)
    assert results.loc["Toy", "latency_ms"] > 0
    report = (tmp_path / "reports" / "quick" / "report.html").read_text(encoding="utf-8")
    for chapter in ("chapter-4", "chapter-5", "chapter-6"):
        part = report.split(f'id="{chapter}"')[1].split('id="chapter-')[0]
        assert "Toy" in part
