"""A trained model in use: the commands predict, evaluate, analyze and export, and one sentence for each wrong input."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from vitlab import __main__
from vitlab.analysis.timing import ROUNDS
from vitlab.config import RunConfig
from vitlab.data.pictures import as_pixels
from vitlab.data.sources import load_source
from vitlab.data.splits import Source
from vitlab.export import export
from vitlab.lab import Lab, use
from vitlab.runs import Run


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """root/{train,test}/{blue,red}: 30 and 10 noisy images each, of 12×10 pixels."""
    root, rng = tmp_path_factory.mktemp("data") / "colours", np.random.default_rng(0)
    for part, number in (("train", 30), ("test", 10)):
        for name, channel in (("blue", 2), ("red", 0)):
            (root / part / name).mkdir(parents=True)
            for i in range(number):
                pixels = rng.integers(0, 120, (10, 12, 3), dtype=np.uint8)
                pixels[..., channel] += 100
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


@pytest.fixture
def run(colours: Path, tiny: RunConfig, train: Callable[..., Run]) -> Run:
    config = tiny.replace(dataset="folder", data_dir=str(colours), epochs=15, batch_size=8, lr=0.01)
    return train(config, load_source(config))


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., tuple]:
    """command("predict", …): exit code, what it prints, and what it complains of; in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("VITLAB_RUNS", str(tmp_path))

    def run_it(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = __main__.main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run_it


@pytest.mark.slow
def test_predict_answers_for_each_picture(run: Run, colours: Path, command: Callable) -> None:
    for name in (run.path, run.path.name):  # a directory, or a name in runs/
        code, said, _ = command("predict", name, colours / "test/red/0.png", colours / "test/blue/1.png")
        assert code == 0
        first, second = said.splitlines()
        assert first.startswith(f"{colours}/test/red/0.png: red ")
        assert second.startswith(f"{colours}/test/blue/1.png: blue ")
        assert first.endswith("The picture was cropped and resized from 12×10 to 8×8.")


@pytest.mark.slow
def test_evaluate_on_own_test_images_finds_what_training_found(run: Run, colours: Path, command: Callable) -> None:
    for data in ([], ["--data", colours]):
        code, said, _ = command("evaluate", run.path.name, *data)
        assert code == 0
        assert f"accuracy {run.summary['test']['accuracy']:.1%} of 20 images" in said
        assert "own test images" in said


def test_folder_that_a_link_leads_to_is_the_one_that_was_learned_from(
    colours: Path, command: Callable, tiny: RunConfig, train: Callable[..., Run], tmp_path: Path
) -> None:
    linked = tmp_path / "linked"
    linked.symlink_to(colours)
    config = tiny.replace(dataset="folder", data_dir=str(linked), epochs=1)
    run = train(config, load_source(config))
    for data in (colours, linked):
        code, said, _ = command("evaluate", run.path, "--data", data)
        assert code == 0
        assert "own test images" in said


@pytest.mark.slow
def test_evaluate_on_other_images(run: Run, colours: Path, command: Callable, tmp_path: Path) -> None:
    """The same images in another folder, so that answers are known; with one picture in grey."""
    other = tmp_path / "other"
    for name in ("red", "blue"):
        (other / name).mkdir(parents=True)
        for path in (colours / "test" / name).iterdir():
            (other / name / path.name).write_bytes(path.read_bytes())
    code, said, _ = command("evaluate", run.path, "--data", other)
    assert code == 0
    assert f"accuracy {run.summary['test']['accuracy']:.1%} of 20 images" in said
    assert "20 of 20 images were cropped and resized to 8×8." in said
    rows = pd.read_csv(tmp_path / "here" / f"{run.path.name}-other.csv")
    assert list(rows.columns) == ["file", "class", "answer", "confidence"]
    assert (rows["class"] == rows["file"].map(lambda file: Path(file).parent.name)).all()
    assert (rows["class"] == rows["answer"]).mean() == pytest.approx(run.summary["test"]["accuracy"])


@pytest.mark.slow
@pytest.mark.parametrize("part", ["test", "val"])
def test_evaluate_takes_a_folder_with_one_part(
    part: str, run: Run, colours: Path, command: Callable, tmp_path: Path
) -> None:
    shutil.copytree(colours / "test", tmp_path / "other" / part)
    code, said, wrong = command("evaluate", run.path, "--data", tmp_path / "other")
    assert (code, wrong) == (0, "")
    assert f"accuracy {run.summary['test']['accuracy']:.1%} of 20 images" in said
    assert f"Scored is {part} alone." in said


def test_picture_that_cannot_be_read_keeps_no_other_from_its_answer(
    run: Run, colours: Path, command: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, load = [], Run.weights
    monkeypatch.setattr(Run, "weights", lambda self: loads.append(self) or load(self))
    red, blue = colours / "test/red/0.png", colours / "test/blue/1.png"
    code, said, wrong = command("predict", run.path, red, "a.png", blue, "b.png")
    assert code == 1
    assert said.splitlines()[0].startswith(f"{red}: red ")
    assert said.splitlines()[1].startswith(f"{blue}: blue ")
    assert "no picture a.png: check its path; there is no picture b.png" in wrong
    assert len(loads) == 1


def test_what_evaluate_passes_over_is_counted_and_all_broken_images_are_named(
    run: Run, colours: Path, command: Callable, tmp_path: Path
) -> None:
    place = tmp_path / "other" / "test" / "red"
    (tmp_path / "other" / "train" / "red").mkdir(parents=True)
    (place / "more").mkdir(parents=True)
    for i, path in enumerate(sorted((colours / "test" / "red").iterdir())):
        (place / ("more" if i else "") / path.name).write_bytes(path.read_bytes())
    (place / "notes.txt").write_text("words")
    code, said, _ = command("evaluate", run.path, "--data", tmp_path / "other", "--csv", tmp_path / "other.csv")
    assert code == 0
    assert "of 10 images" in said
    assert "9 of 10 images lie in folders inside" in said
    assert "Passed over in the folder: 1 .txt (test/red/notes.txt)." in said
    assert "Scored is test alone." in said
    for name in ("torn.png", "empty.png"):
        (place / name).write_bytes(b"")
    code, _, wrong = command("evaluate", run.path, "--data", tmp_path / "other")
    assert code == 1
    assert "cannot read 2 images" in wrong
    assert wrong.count("\n") == 1


def test_deep_images_are_read_by_one_rule_for_the_folder(
    run: Run, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dark one of 16 bits stays dark beside a bright one."""
    (tmp_path / "deep" / "red").mkdir(parents=True)
    for name, value in (("dark", 3000), ("bright", 60000)):
        Image.fromarray(np.full((8, 8), value, np.uint16)).save(tmp_path / "deep" / "red" / f"{name}.png")
    seen = []
    monkeypatch.setattr(use, "_logits", lambda _, images: seen.append(images) or np.zeros((2, 2), np.float32))
    use.evaluate_run(run, str(tmp_path / "deep"))
    assert seen[0].amax((1, 2, 3)).tolist() == [233, 12]


def test_pictures_are_read_by_the_rule_of_those_that_were_learned(
    tiny: RunConfig, train: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by what there is beside them: alone, a dark picture of 12 bits would be bright, and on another ground."""
    clear = np.full((8, 8, 4), 255, np.uint8)  # white, half of it transparent
    clear[:4, :, 3] = 0
    for name in ("dim", "lit"):
        (tmp_path / "scans" / name).mkdir(parents=True)
        for i in range(12):
            value = (i + 1) * (100 if name == "dim" else 330)
            Image.fromarray(np.full((8, 8), value, np.uint16)).save(tmp_path / "scans" / name / f"{i}.png")
        Image.fromarray(clear - np.uint8([5, 5, 5, 0])).save(tmp_path / "scans" / name / "clear.png")
        Image.fromarray(clear - np.uint8([6, 6, 6, 0])).save(tmp_path / "scans" / name / "clear2.png")
    config = tiny.replace(dataset="folder", data_dir=str(tmp_path / "scans"), epochs=1)
    run = train(config, load_source(config))
    assert run.record["rule"] == {"bounds": {"16-bit or 32-bit": [100, 3960]}, "ground": "black"}
    dark = np.full((8, 8), 486, np.uint16)
    pixels, _ = as_pixels(Image.fromarray(dark), 3, 8, run.record["rule"])
    assert pixels.unique().tolist() == [round(255 * (486 - 100) / (3960 - 100))]
    told = run.predict(Image.fromarray(dark))
    assert told.remark == "The picture was scaled from 100 – 3960 to black – white."
    (tmp_path / "other" / "dim").mkdir(parents=True)
    Image.fromarray(dark).save(tmp_path / "other" / "dim" / "a.png")
    black = np.zeros((8, 8, 4), np.uint8)  # alone it would be put on white
    black[:4, :, 3] = 255
    Image.fromarray(black).save(tmp_path / "other" / "dim" / "b.png")
    seen = []
    monkeypatch.setattr(use, "_logits", lambda _, images: seen.append(images) or np.zeros((2, 2), np.float32))
    use.evaluate_run(run, str(tmp_path / "other"))
    assert torch.equal(seen[0][0], pixels)
    assert not seen[0][1].any()


def test_classes_may_be_absent_but_not_strange(run: Run, colours: Path, command: Callable, tmp_path: Path) -> None:
    (tmp_path / "some" / "red").mkdir(parents=True)
    Image.new("RGB", (8, 8), (220, 60, 60)).save(tmp_path / "some" / "red" / "a.png")
    code, said, _ = command("evaluate", run.path, "--data", tmp_path / "some", "--csv", tmp_path / "mine.csv")
    assert code == 0
    assert "no images of blue" in said
    assert (tmp_path / "mine.csv").exists()
    (tmp_path / "some" / "red").rename(tmp_path / "some" / "green")
    code, _, wrong = command("evaluate", run.path, "--data", tmp_path / "some")
    assert code == 1
    assert "knows no class 'green': name the folders as its classes, blue, red" in wrong


def test_report_s_copy_is_scored_on_its_own_test_images_where_its_data_are_named(
    run: Run, colours: Path, command: Callable, tmp_path: Path
) -> None:
    report = tmp_path / "report"
    run.copy_small_files(report / "runs")
    (report / "report.html").write_text("")
    assert "the report" in (wrong := command("evaluate", report)[2])
    assert "keeps no weights: make it again" in wrong
    export(run, report / "runs" / run.path.name / "model.safetensors")
    assert "a report's copy, which does not say where" in command("evaluate", report)[2]
    code, said, _ = command("evaluate", report, "--data", colours, "--csv", tmp_path / "copy.csv")
    assert code == 0
    assert "These are the run's own test images." in said
    assert said.splitlines()[:3] == command("evaluate", run.path, "--csv", tmp_path / "run.csv")[1].splitlines()[:3]
    moved = shutil.copytree(colours, tmp_path / "elsewhere")  # of another name: images like any others
    assert "own test images" not in command("evaluate", report, "--data", moved, "--csv", tmp_path / "moved.csv")[1]
    namesake = tmp_path / "other" / colours.name
    (namesake / "red").mkdir(parents=True)
    Image.new("RGB", (8, 8), (220, 60, 60)).save(namesake / "red" / "a.png")
    code, said, _ = command("evaluate", report, "--data", namesake, "--csv", tmp_path / "namesake.csv")
    assert (code, "own test images" in said) == (0, False)


@pytest.mark.parametrize("change", ["moved", "changed"])
def test_that_it_cannot_be_told_whether_images_were_learned_is_said(
    change: str, colours: Path, tiny: RunConfig, train: Callable[..., Run], tmp_path: Path
) -> None:
    own = shutil.copytree(colours, tmp_path / "own")
    config = tiny.replace(dataset="folder", data_dir=str(own), epochs=1)
    run = train(config, load_source(config))
    if change == "moved":
        own.rename(tmp_path / "mine")
        words = "its own images are no longer where they were"
    else:
        shutil.copytree(own / "train", tmp_path / "mine")
        next((own / "train" / "red").iterdir()).unlink()
        words = "the folder of its own images has changed since"
    _, _, remark = use.evaluate_run(run, str(tmp_path / "mine"))
    assert f"Whether it was trained with some of them cannot be told: {words}." in remark


def test_images_that_it_was_trained_with_are_told_of(run: Run, colours: Path, tmp_path: Path) -> None:
    shutil.copytree(colours / "train", tmp_path / "mine")
    scores, _, remark = use.evaluate_run(run, str(tmp_path / "mine"))
    assert f"{scores['n']} of these images are among those that it was trained with" in remark
    shutil.rmtree(tmp_path / "mine")
    shutil.copytree(colours / "test", tmp_path / "mine")
    assert "trained with" not in use.evaluate_run(run, str(tmp_path / "mine"))[2]


def test_train_says_what_was_done_to_the_data_and_begins_with_what_others_go_on_from(
    command: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trained = []
    done = Run(tmp_path)
    done.write_json("summary.json", {"test": {"accuracy": 0.5}})
    done.write_json("environment.json", [{"code": "another"}])
    monkeypatch.setattr(Lab, "train_one", lambda _, config: trained.append(config.model) or done)
    monkeypatch.setattr(Run, "config", RunConfig())
    code, said, _ = command("train", "--params", "quick", "--run", "ToMe", "ViT, conv tokenizer")
    assert code == 0
    assert trained == ["vit", "tome_vit"]
    assert "note: The same 13 people" in said
    assert "Trained before the code of models, losses or training was changed: " in said


def test_own_folder_that_has_changed_is_scored_as_any_other(
    colours: Path, tiny: RunConfig, train: Callable[..., Run], tmp_path: Path
) -> None:
    folder = shutil.copytree(colours, tmp_path / "mine")
    config = tiny.replace(dataset="folder", data_dir=str(folder), epochs=1)
    run = train(config, load_source(config))
    shutil.copy(folder / "test" / "red" / "0.png", folder / "test" / "red" / "new.png")
    scores, _, remark = use.evaluate_run(run, str(folder))
    assert scores["n"] == 21
    assert "own test images" not in remark
    (folder / "train" / "red" / "0.png").write_bytes(b"broken")
    scores, _, remark = use.evaluate_run(run, str(colours))
    assert scores["n"] == 20
    assert "Whether it was trained with some of them cannot be told: " in remark


def test_answers_of_an_earlier_evaluation_are_kept(run: Run, colours: Path, command: Callable, tmp_path: Path) -> None:
    for name in ("", "-2", "-3"):
        assert command("evaluate", run.path, "--data", colours / "test")[1].endswith(
            f"{run.path.name}-test{name}.csv\n"
        )
    (tmp_path / "precious.txt").write_text("mine")
    code, _, told = command("evaluate", run.path, "--csv", tmp_path / "precious.txt")
    assert code == 1
    assert "precious.txt exists already: name another file with --csv" in told
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_copy_of_a_cifar10_run_scores_the_class_folders_that_are_named_not_its_own_images(
    run: Run, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.copy_small_files(tmp_path / "runs")
    copy = Run(tmp_path / "runs" / run.path.name)
    export(run, copy.path / "model.safetensors")
    copy.write_json(
        "config.json", copy.record | {"config": copy.record["config"] | {"dataset": "cifar10", "data_dir": ""}}
    )
    monkeypatch.setattr(use, "load_source", lambda config: pytest.fail("its own data were asked for"))
    scores, rows, remark = use.evaluate_run(Run(copy.path), str(colours))
    assert scores["n"] == len(rows) > 0
    assert "own test images" not in remark


def test_grey_models_take_colour_folders(train: Callable[..., Run], tiny: RunConfig, tmp_path: Path) -> None:
    run = train(tiny)  # of digits
    (tmp_path / "colour" / "3").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "colour" / "3" / "a.jpg")
    scores, rows, remark = use.evaluate_run(run, str(tmp_path / "colour"))
    assert scores["n"] == len(rows) == 1
    assert "1 of 1 images were cropped and resized" not in remark
    assert "All were made grey." in remark


def test_colour_pictures_are_made_grey_in_one_way(train: Callable[..., Run], tiny: RunConfig, tmp_path: Path) -> None:
    run, rng = train(tiny), np.random.default_rng(0)
    (tmp_path / "colour" / "3").mkdir(parents=True)
    path = tmp_path / "colour" / "3" / "a.png"
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    rows = use.evaluate_run(run, str(tmp_path / "colour"))[1]
    assert rows["confidence"][0] == pytest.approx(run.predict(path).probabilities.max(), abs=1e-6)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such file name")
def test_file_whose_name_is_no_utf8_is_scored(
    train: Callable[..., Run], tiny: RunConfig, command: Callable, tmp_path: Path
) -> None:
    run = train(tiny)
    (tmp_path / "colour" / "3").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(os.fsdecode(bytes(tmp_path / "colour" / "3") + b"/caf\xe9.png"))
    code, *_ = command("evaluate", run.path, "--data", tmp_path / "colour", "--csv", tmp_path / "a.csv")
    assert code == 0
    assert pd.read_csv(tmp_path / "a.csv")["file"][0].endswith(r"caf\xe9.png")


def test_run_is_found_from_within_its_folder(
    train: Callable[..., Run], tiny: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(tiny)
    monkeypatch.chdir(run.path)
    assert use.find_run(".").path.name == run.path.name


def test_analyze_takes_channels_and_classes_from_the_data_it_is_given(command: Callable, colours: Path) -> None:
    def parameters(*words: object) -> int:
        code, said, wrong = command("analyze", "--preset", "nano", "--models", "vit", *words, "--set", "rounds=1")
        assert code == 0, wrong
        return int(said.splitlines()[1].split()[1].replace(",", ""))

    ten = parameters()
    assert parameters("--data", colours) == ten - 8 * (64 + 1)  # two classes
    assert "nowhere" in command("analyze", "--models", "vit", "--data", colours / "nowhere")[2]


def test_analyze_measures_in_as_many_rounds_as_it_is_told(command: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    measure = use.complexity.measure
    monkeypatch.setattr(use.complexity, "measure", lambda *a, rounds: asked.append(rounds) or measure(*a, rounds=1))
    for more in ([], ["--set", "rounds=3"]):
        command("analyze", "--preset", "nano", "--models", "vit", *more)
    assert asked == [ROUNDS, 3]


@pytest.mark.slow
def test_analyze_has_a_row_for_each_chosen_model(command: Callable) -> None:
    code, said, _ = command("analyze", "--preset", "nano", "--models", "vit", "dynamic_vit", "--set", "depth=4")
    assert code == 0
    head, *rows = said.splitlines()
    assert "parameters" in head
    assert [row.split()[0] for row in rows] == ["ViT", "DynamicViT"]
    parameters = [int(row.split()[1].replace(",", "")) for row in rows]
    assert parameters[0] < parameters[1]


@pytest.mark.slow
def test_export_says_what_it_wrote_and_how_well_it_answers(run: Run, command: Callable, tmp_path: Path) -> None:
    code, said, _ = command("export", run.path.name, tmp_path / "model.safetensors")
    assert code == 0
    assert "run again by torch, its logits differ by 0e+00 at most" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["predict", "nothing", "a.png"], "nothing is neither a run directory nor a run's name"),
        (["predict", "RUN", "a.png"], "there is no picture a.png"),
        (["evaluate", "RUN", "--data", "nowhere"], "there is no folder"),
        (["evaluate", "RUN", "--data", "."], "holds no class folders with images"),
        (["export", "RUN", "model.pth"], "choose .onnx, .pt2, .safetensors"),
        (["analyze", "--models", "vitt"], "did you mean 'vit'?"),
        (["analyze", "--preset", "tini"], "invalid choice: 'tini'"),
        (["predict", "RUN"], "the following arguments are required: IMAGE; vitlab predict --help shows what there is"),
        (["evalute", "RUN"], "invalid choice: 'evalute'"),
        (["analyze", "--preset", "nano", "--set", "dept=3"], "did you mean 'depth'?"),
    ],
)
def test_wrong_inputs_are_one_sentence(words: list[str], sentence: str, run: Run, command: Callable) -> None:
    code, said, wrong = command(*(run.path.name if word == "RUN" else word for word in words))
    assert (code, said) == (1, "")
    assert sentence in wrong
    assert len(wrong.splitlines()) == 1


def test_unfinished_runs_and_modules_of_ones_own_are_told_apart(run: Run, command: Callable) -> None:
    summary = run.summary
    (run.path / "summary.json").unlink()
    assert "is not complete" in command("predict", run.path, "a.png")[2]
    run.write_json("summary.json", summary)
    run.write_json("config.json", run.record | {"module": {"class": "Net"}})
    assert "weights of a class Net of your own" in command("predict", run.path, "a.png")[2]


def test_changed_data_are_not_taken_for_the_runs_own(train: Callable[..., Run], tiny: RunConfig, few: Source) -> None:
    """`few` is a part of the digits that the run's configuration names."""
    run = train(tiny)
    assert not torch.equal(few.test.labels, load_source(run.config).test.labels)
    with pytest.raises(use.LabError, match="have changed since it was trained"):
        use.evaluate_run(run)
