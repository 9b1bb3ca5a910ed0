"""The lab finds what was made before, and says what is missing and which notebook makes it."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SMALL
from torch import nn

from vitlab.analysis import plots, sentences_comparison, tables
from vitlab.config import LabConfig, Recipe
from vitlab.data.splits import Source
from vitlab.errors import LabError
from vitlab.lab import Lab, workers
from vitlab.lab.costs import Costs
from vitlab.lab.results import FEW, check
from vitlab.models.registry import MODELS, Row
from vitlab.models.vit import ViT
from vitlab.report import make
from vitlab.runs import Run
from vitlab.training import session
from vitlab.training.fit import fit

# ---------------------------------------------------------------- what was made before


def test_missing_run_names_the_notebook_that_makes_it(fresh: Lab) -> None:
    with pytest.raises(LabError, match=r"'ViT'.*notebooks/02_vit\.ipynb"):
        fresh.load("ViT")
    with pytest.raises(LabError, match=r"notebooks/03_dynamic_vit\.ipynb"):
        fresh.load("DynamicViT")
    with pytest.raises(LabError, match=r"notebooks/04_linear_vit\.ipynb"):
        fresh.load("Linear ViT")
    with pytest.raises(LabError, match=r"notebooks/01_data_and_imbalance\.ipynb"):
        fresh.load("sampler, seed 0")
    with pytest.raises(LabError, match=r"notebooks/01_data_and_imbalance\.ipynb"):
        fresh.load_study()


def test_missing_run_says_which_values_the_nearest_one_differs_in(done: Lab, few: Source) -> None:
    other = Lab(done.params.replace(lr=0.123, mixup=0.5), few)
    with pytest.raises(LabError, match=r"differs in lr \(0\.002, here 0\.123\), mixup \(0\.0, here 0\.5\)") as caught:
        other.load("ViT")
    assert done.load("ViT").path.name in str(caught.value)  # and not a run of the study, which differs in more
    assert "02_vit.ipynb" in str(caught.value)
    with pytest.raises(LabError, match=r"differs in data \(few, here another\)"):
        Lab(done.params, replace(few, digest="another")).load("ViT")


def test_runs_trained_by_other_code_are_named(
    done: Lab, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {name: done.plan.config(name) for name in ("ViT", "Linear ViT")}
    done.train(wanted)
    assert "was changed" not in capsys.readouterr().out
    monkeypatch.setattr(session, "code_digest", lambda *_: "another")
    done.train(wanted)
    told = capsys.readouterr().out
    assert "Trained before the code of models, losses or training was changed: ViT and Linear ViT. To train" in told
    assert all(done.load(name).path.name in told for name in wanted)
    for environment in (first := Run(done.load("ViT").path)).environments:  # a run of before this was recorded
        environment.pop("code")
        monkeypatch.setattr(Run, "environments", [environment])
    assert first.environments
    done.train(wanted)
    assert "was changed" not in capsys.readouterr().out


def test_missing_study_says_which_values_the_nearest_one_differs_in(done: Lab, few: Source) -> None:
    other = Lab(done.params.replace(study_ratio=3.0, study_epochs=2), few)
    with pytest.raises(LabError, match=r"imbalance_ratio \(2\.0, here 3\.0\).*, steps \(\d+, here \d+\)"):
        other.load_study()


def test_nearest_run_is_one_of_the_same_model(done: Lab, few: Source, tmp_path: Path) -> None:
    alone = Lab(done.params.replace(runs_dir=str(tmp_path)), few)
    for name, parts in (("ViT", ["config.json", "summary.json"]), ("Linear ViT", ["config.json"])):  # not to its end
        path = done.load(name).path
        (tmp_path / path.name).mkdir()
        for part in parts:
            shutil.copy(path / part, tmp_path / path.name / part)
    with pytest.raises(LabError, match="the nearest one there"):
        Lab(alone.params.replace(lr=0.123), few).load("ViT")
    for name in ("Linear ViT", "Linformer ViT"):
        with pytest.raises(LabError, match="not in") as caught:
            alone.load(name)
        assert "nearest one there" not in str(caught.value)


def test_run_that_needs_a_teacher_names_its_notebook(fresh: Lab) -> None:
    with pytest.raises(LabError, match=r"02_vit\.ipynb"):
        fresh.train_one(fresh.plan.config("DynamicViT"))


def test_run_to_start_from_is_called_as_a_command_would_call_it(fresh: Lab) -> None:
    start = fresh.name_of(fresh.plan.config(fresh.plan.backbone))
    with pytest.raises(LabError, match=f"the run to start from, '{start}', is not in"):
        fresh.train_one(fresh.plan.config("DynamicViT"))


def test_crop_of_a_recipe_is_held_against_the_images_size(fresh: Lab) -> None:
    assert fresh.params.recipe(crop=2).crop == 2
    with pytest.raises(LabError, match="crop 40 must be smaller than image_size 8"):
        fresh.params.recipe(crop=40)


def test_lab_without_validation_images_says_so(few: Source) -> None:
    assert not any("No image" in note for note in Lab(SMALL, few).notes)
    zeros = torch.nonzero(few.train.labels == 0)[:, 0]
    places = torch.cat([torch.nonzero(few.train.labels)[:, 0], zeros[:1]])  # one zero alone
    lab = Lab(SMALL, replace(few, train=few.train.take(places)))
    assert len(lab.data.val) == 0
    assert sum("No image is left for validation" in note for note in lab.notes) == 1
    assert not any("validation" in note for note in Lab(SMALL.replace(val_fraction=0), lab.source).notes)


def test_row_of_the_readers_own_is_trained_here_and_not_beside(fresh: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process knows neither the row nor its class."""
    mine = type("Mine", (ViT,), {"__module__": "__main__"})
    monkeypatch.setitem(MODELS, "mine", replace(MODELS["vit"], build=mine, title="My ViT"))
    asked = []
    monkeypatch.setattr(workers, "fitting", lambda todo, images: len(asked.append(todo) or todo))
    config = fresh.plan.config("ViT").replace(model="mine", epochs=1)
    fresh.train({"My ViT": config, "again": config.replace(seed=1)})
    assert asked == [[]]
    assert fresh.run_of(config).complete


@pytest.mark.parametrize("as_text", [False, True])
def test_run_is_found_by_its_directory_as_well(as_text: bool, done: Lab, tmp_path: Path) -> None:
    run = done.load("ViT")
    elsewhere = tmp_path / run.path.name
    shutil.copytree(run.path, elsewhere)
    assert done.load(run.path.name).path == run.path
    assert done.load(str(elsewhere) if as_text else elsewhere).config == run.config
    assert Run(str(run.path)) == run
    assert done.load("ViT, seed 0") == run
    (elsewhere / "summary.json").unlink()
    with pytest.raises(LabError, match="is not complete: train it to its end first"):
        done.load(elsewhere)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ViT, seed 7", "ViT has seed 0; the parameter seeds says how many"),
        ("Vit", "did you mean 'ViT'"),
        (3, "a run goes by its name, as 'ViT', and not by 3"),
        (["ViT"], "a run goes by its name, as 'ViT', and not by"),
    ],
)
def test_run_that_is_not_there_is_told_with_what_is(name: str | int, words: str, fresh: Lab) -> None:
    with pytest.raises(LabError, match=words):
        fresh.load(name)


def test_run_goes_by_its_title_and_that_of_its_model_in_the_registry_is_told(fresh: Lab) -> None:
    with pytest.raises(LabError, match="there is no run 'tome_vit': did you mean 'ToMe'"):
        fresh.load("tome_vit")


def test_row_that_a_reader_adds_is_in_the_plan_from_then_on(fresh: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, costs = fresh.plan, fresh.costs
    assert fresh.plan is plan
    monkeypatch.setitem(MODELS, "grid_vit", Row(type("GridViT", (ViT,), {}), "Grid", chapter="04"))
    assert "Grid" in fresh.plan.chapters["04"]
    assert "Grid" not in plan.chapters["04"]
    assert len(fresh.costs.together) == len(costs.together) + 1
    monkeypatch.setitem(MODELS, "own_vit", Row(type("OwnViT", (ViT,), {}), "Grid", chapter="04"))
    with pytest.raises(LabError, match="grid_vit and own_vit in MODELS have one title, 'Grid'"):
        _ = fresh.plan.chapters


def test_run_that_no_chapter_plans_is_compared_as_an_extra_one(done: Lab) -> None:
    name = done.load("ViT").path.name
    with pytest.raises(LabError, match=f"{name!r} is in no chapter's plan: name its directory in extra_runs"):
        done.compare("ViT", name)


def test_start_that_lies_elsewhere_is_refused_before_it_trains(fresh: Lab, tmp_path: Path) -> None:
    config = fresh.plan.config("ViT").replace(init_from=str(tmp_path / "a-run"))
    with pytest.raises(LabError, match="is a path: put that run's directory into"):
        fresh.train_one(config)


def test_module_of_ones_own_sees_whole_images_and_takes_a_recipe(fresh: Lab) -> None:
    grows = Lab(fresh.params.replace(image_size=8, start_size=4, patch_size=2), fresh.source)
    assert grows.params.recipe(epochs=1).start_size == 0
    assert grows.params.recipe(epochs=1, start_size=4).start_size == 4
    with pytest.raises(LabError, match=r"lab\.session takes a module, its recipe"):
        fresh.session(nn.Linear(2, 2), fresh.params.run(epochs=1))


def test_few_validation_images_are_told_of(few: Source) -> None:
    lab = Lab(SMALL.replace(val_fraction=0.05), few)
    n = len(lab.data.val)
    assert 0 < n < FEW
    assert f"Only {n} validation images choose the epochs: one of them is worth {100 / n:.1f} points." in lab.notes


def test_run_starts_from_the_run_that_its_configuration_names(done: Lab) -> None:
    with pytest.raises(LabError, match="the run to start from, 'another', is not in"):
        done.train_one(done.plan.config("DynamicViT").replace(init_from="another"))


def test_every_chapter_finds_the_same_run(done: Lab, few: Source) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.runs_dir.rglob("*")}
    another = Lab(done.params, few)
    found = another.train(another.plan.configs)
    assert {name: run.path for name, run in found.items()} == {name: done.load(name).path for name in found}
    assert {path: path.stat().st_mtime_ns for path in done.runs_dir.rglob("*")} == before  # nothing was trained again
    assert {key: run.path for key, run in another.load_study().items()} == {
        (remedy, seed): found[f"{remedy}, seed {seed}"].path for remedy, seed in another.plan.study
    }


def test_two_names_of_one_run_are_trained_once(fresh: Lab) -> None:
    config = fresh.plan.config("ViT").replace(epochs=1)
    runs = fresh.train({"one": config, "the other": config.replace(num_workers=0)})
    assert runs["one"].path == runs["the other"].path
    assert len(list(fresh.runs_dir.glob("*/summary.json"))) == 1


def test_other_parameters_leave_finished_runs_alone(done: Lab, few: Source) -> None:
    other = Lab(done.params.replace(lr=0.123), few)
    with pytest.raises(LabError, match="not in"):
        other.load("ViT")
    assert done.load("ViT").complete


def test_environment_can_move_the_runs(fresh: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITLAB_RUNS", str(tmp_path / "elsewhere"))
    moved = Lab(fresh.params, fresh.source)
    assert moved.runs_dir == tmp_path / "elsewhere"
    assert moved.run_of(moved.plan.config("ViT")).path.parent == tmp_path / "elsewhere"
    assert moved.costs.folder.parent == tmp_path / "elsewhere"


def test_notebook_opens_its_lab_from_its_parameters_and_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    gave_way = []
    monkeypatch.setattr("vitlab.lab.results.give_way", lambda: gave_way.append(True))  # it would for all other tests
    opened = Lab.open({"__name__": "__main__", "image_size": 8, "linformer_k": 2, "epochs": 3})
    assert opened.params == LabConfig(image_size=8, linformer_k=2, epochs=3)
    assert opened.source.train.images.shape[-1] == 8
    assert gave_way


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, "handwritten digits (scikit-learn)"),
        ({"dataset": "cifar10"}, "CIFAR-10"),
        ({"dataset": "folder", "data_dir": "/somewhere/birds"}, "birds"),
        ({"data_name": "My digits"}, "My digits"),
    ],
)
def test_data_have_a_name_for_the_report(values: dict[str, str], name: str, few: Source) -> None:
    assert Lab(SMALL.replace(**values), few).data_name == name


def test_costs_are_of_models_for_the_labs_own_data(done: Lab) -> None:
    assert (done.costs.num_classes, done.costs.channels) == (10, 1)
    assert done.costs.folder == done.runs_dir / "complexity"


def test_comparison_is_that_of_the_stored_predictions(done: Lab) -> None:
    got = done.compare("ViT", "Linear ViT")
    (a, labels), (b, _) = done.load("ViT").predictions, done.load("Linear ViT").predictions
    right_a, right_b = a.argmax(1) == labels, b.argmax(1) == labels
    assert got["difference"] == pytest.approx(right_b.mean() - right_a.mean())
    assert (got["only_a"], got["only_b"]) == (np.sum(right_a & ~right_b), np.sum(right_b & ~right_a))
    assert got["interval"][0] <= got["difference"] <= got["interval"][1]


# ---------------------------------------------------------------- runs from elsewhere

COST = {"parameters": 5, "macs": 6, "latency_ms": 7.0, "images_per_second": 8.0}


def test_speed_of_compared_models_is_what_was_measured_and_unknown_of_a_module_of_ones_own(
    done: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(Costs, "ratio", lambda _, *given, only_read: asked.append((given, only_read)) or (1.5, 0.1))
    assert done.speed("Linear ViT", "ViT") == (1.5, 0.1)
    configs = done.plan.config("Linear ViT"), done.plan.config("ViT")
    assert asked == [((*configs, "images_per_second"), True)]
    own = SimpleNamespace(config=Recipe())
    monkeypatch.setitem(vars(done), "extra", {"mine": own})
    assert all(math.isnan(value) for value in done.speed("mine", "ViT"))


@pytest.fixture
def elsewhere(done: Lab, few: Source, tmp_path: Path) -> Lab:
    """The finished lab with a run of another lab, whose images have another digest, in the comparison."""
    other = Lab(done.params.replace(runs_dir=str(tmp_path), seed=7), replace(few, digest="moved"))
    run = other.train_one(other.plan.config("Linear ViT"))
    return Lab(done.params.replace(extra_runs=f"{run.path}, {done.load('ViT').path}"), few)


def test_extra_runs_are_compared_with_the_labs_own(elsewhere: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Costs, "of", lambda self, config, only_read: COST)
    frame = tables.results(elsewhere).set_index("model")
    own = elsewhere.plan.names
    [foreign] = set(frame.index) - {*own, elsewhere.load("ViT").path.name}
    assert len(frame) == len(own) + 2
    assert (frame.loc[foreign, "seed"], frame.loc[foreign, "run"]) == (7, foreign)
    assert elsewhere.compare("ViT", frame.loc["ViT", "run"])["difference"] == 0  # the same run by its directory
    assert len(tables.pairs(elsewhere)) == len(frame) * (len(frame) - 1) / 2


def test_extra_runs_cost_is_measured_where_nobody_has_yet(elsewhere: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = []
    monkeypatch.setattr(Costs, "of", lambda self, config, only_read: allowed.append(not only_read) or COST)
    tables.results(elsewhere)
    assert allowed == [False] * len(elsewhere.plan.names) + [True] * 2


@pytest.mark.slow
def test_extra_run_that_cannot_be_compared_is_refused(done: Lab, few: Source, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no complete run"):
        Lab(done.params.replace(extra_runs=str(tmp_path)), few).load("ViT")
    with pytest.raises(LabError, match="two directories have the same name"):
        Lab(done.params.replace(extra_runs=f"{tmp_path}/a/run, {tmp_path}/b/run"), few).load("ViT")
    with pytest.raises(LabError, match="this lab has a run 'ViT' of its own"):
        Lab(done.params.replace(extra_runs=f"{tmp_path}/a/ViT"), few).load("ViT")
    fewer = few.test.take(torch.arange(59))
    darker = replace(few.test, pool=few.test.pool // 2)  # of the same classes in the same order
    for digest, test in (("59", fewer), ("dark", darker)):
        other = Lab(done.params.replace(runs_dir=str(tmp_path)), replace(few, test=test, digest=digest))
        run = other.train_one(other.plan.config("ViT"))
        with pytest.raises(LabError, match="tested on other images"):
            tables.results(Lab(done.params.replace(extra_runs=str(run.path)), few))


@pytest.mark.slow
def test_report_keeps_runs_from_elsewhere_with_those_they_started_from(
    done: Lab, few: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "costs").mkdir()
    (tmp_path / "costs" / "models.json").write_text("{}")
    monkeypatch.setattr(Costs, "path_of", lambda self, config: tmp_path / "costs" / "models.json")
    other = Lab(done.params.replace(runs_dir=str(tmp_path / "elsewhere"), seed=7), few)
    start = other.train_one(other.plan.config(other.plan.backbone))
    run = other.train_one(other.plan.config("DynamicViT"))
    lab = Lab(done.params.replace(extra_runs=str(run.path)), few)
    assert make.best_vit(done).summary["val_accuracy"] == max(
        done.load(name).summary["val_accuracy"] for name in done.plan.names if "ResNet" not in name
    )
    run.write_json("summary.json", run.summary | {"val_accuracy": 1.0})
    make.keep_runs(lab, tmp_path / "report" / "runs")
    (weights,) = (tmp_path / "report" / "runs").glob("*/model.safetensors")
    kept = Run(weights.parent)
    assert (kept.path.name, kept.starts()[0].path.name) == (run.path.name, start.path.name)
    assert kept.training_seconds == run.training_seconds
    again = Lab(lab.params.replace(extra_runs=str(kept.path)), few)  # from the copies
    assert again.compare("ViT", run.path.name) == lab.compare("ViT", run.path.name)
    shutil.rmtree(tmp_path / "elsewhere")
    make.keep_runs(again, tmp_path / "another")  # a copy without weights is not the one whose weights are kept
    (weights,) = (tmp_path / "another").glob("*/model.safetensors")
    assert weights.parent.name == make.best_vit(done).path.name


@pytest.mark.slow
def test_run_of_the_readers_own_module_is_compared_as_well(
    done: Lab, few: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it costs is unknown, but for its parameters and the time of its training."""
    monkeypatch.setattr(Costs, "of", lambda self, config, only_read: COST)
    place = Lab(done.params.replace(runs_dir=str(tmp_path)), few)
    module, recipe = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), place.params.recipe(epochs=1)
    session = place.session(module, recipe)
    fit(module, place.data, recipe, session)
    run = session.run
    assert run.path.parent == tmp_path
    lab = Lab(done.params.replace(extra_runs=str(run.path)), few)
    results, pairs = tables.results(lab), tables.pairs(lab)
    row = results.set_index("model").loc[run.path.name]
    assert (row["parameters"], row["accuracy"]) == (650, run.summary["test"]["accuracy"])
    assert row[["macs", "latency_ms", "images_per_second"]].isna().all()
    assert row["training_seconds"] > 0
    assert len(pairs) == len(results) * (len(results) - 1) / 2
    plots.accuracy_against_cost(results).canvas.draw()
    ahead = results.assign(accuracy=results["accuracy"].where(results["model"] != run.path.name, 1.0))
    for frame in (results, ahead):
        assert "nan" not in sentences_comparison.leaders(frame, pairs.assign(p=1.0)) + tables.readme_table(frame)
        assert run.path.name not in sentences_comparison.frontier(frame)


# ---------------------------------------------------------------- before any work


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"depth": 2}, "depth 4 or more"),
        ({"linformer_k": 5}, "linformer_k 5 must not exceed the 4 patches"),
        ({"extra_runs": "nowhere"}, "nowhere is no complete run"),
    ],
)
def test_wrong_parameter_shows_before_any_work(values: dict, words: str) -> None:
    with pytest.raises(LabError, match=words):
        check(SMALL.replace(**values))


def test_right_parameters_give_the_lab() -> None:
    lab = check(SMALL)
    assert (lab.params, len(lab.plan.names)) == (SMALL, 14)
