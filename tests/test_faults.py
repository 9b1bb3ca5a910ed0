"""What goes wrong around the lab, on machines and by the ways in that people have: one sentence each, and no hang."""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch
from papermill import cli as papermill_cli
from PIL import Image

from vitlab import files, machine
from vitlab.__main__ import main
from vitlab.config import LabConfig, Recipe, RunConfig, parse
from vitlab.data import batches
from vitlab.data.sources import load_source
from vitlab.data.splits import Source, Split
from vitlab.errors import LabError
from vitlab.lab import Lab, workers
from vitlab.lab.plan import NOTEBOOKS
from vitlab.machine import ROOT
from vitlab.parameters import CELL, as_profile, from_notebook, load_params
from vitlab.report import kernels, make
from vitlab.runs import Run
from vitlab.training.session import RunSession

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITLAB_CACHE", str(tmp_path / "cache"))


# ---------------------------------------------------------------- all ways in


@pytest.fixture
def unlike(tmp_path: Path) -> Path:
    """A folder whose test part lacks a class, with a name that no 8-bit locale has."""
    for part, names in (("train", ("猫", "dog")), ("test", ("dog",))):
        for name in names:
            (tmp_path / "数据" / part / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (8, 8), (40 * i, 9, 9)).save(tmp_path / "数据" / part / name / f"{i}.png")
    return tmp_path / "数据"


def by_report(folder: Path, capsys: pytest.CaptureFixture) -> str:
    assert main(["report", "--data", str(folder), "--out", str(folder.parent / "out")]) == 1
    return capsys.readouterr().err


def by_train(folder: Path, capsys: pytest.CaptureFixture) -> str:
    assert main(["train", "--params", "quick", "--run", "ViT", "--data", str(folder)]) == 1
    return capsys.readouterr().err


def by_cell(folder: Path, capsys: pytest.CaptureFixture) -> str:
    with pytest.raises(LabError) as caught:
        Lab.open({"dataset": "folder", "data_dir": str(folder)})
    return str(caught.value)


def by_papermill(folder: Path, capsys: pytest.CaptureFixture) -> str:
    values = as_profile(LabConfig(dataset="folder", data_dir=str(folder)))
    with pytest.raises(LabError) as caught:
        make.run_notebook(NOTEBOOKS["01"], folder.parent / "01.ipynb", values)
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("way", [by_report, by_train, by_cell, by_papermill])
def test_every_way_in_says_the_same_before_any_work(
    way: Callable, unlike: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("VITLAB_RUNS", str(tmp_path / "runs"))
    said = way(unlike, capsys)
    assert "猫 is missing in" in said
    assert "Traceback" not in said
    assert not list((tmp_path / "runs").glob("*/config.json"))


def test_folder_given_to_digits_is_refused_instead_of_passed_over() -> None:
    with pytest.raises(LabError, match=r"data_dir is given, but dataset is digits, .*dataset=folder"):
        LabConfig().replace(data_dir="photos")


# ---------------------------------------------------------------- texts as parameters

TEXTS = ["Run 3 #best", "2024", "007", "1e3", "Note: x", "no", "null", "~", "[a", "{x", "2024-01-01", "- a", "'", "a=b"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", ["notes", "data_name"])
def test_text_on_the_command_line_is_that_text(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(make, "make", lambda profile, overrides, out: seen.append(overrides))
    assert main(["report", "--set", f"{name}={text}"]) == 0
    assert main(["report", "--words", f'seed=3 "{name}={text}"']) == 0
    assert seen == [{name: text}, {"seed": 3, name: text}]
    assert getattr(load_params(ROOT / "params" / "quick.yaml", seen[0]), name) == text


@pytest.mark.parametrize("text", ["2024", "007", "1e3", "no", "2024-01-01", "12:30:00"])
def test_text_in_a_profile_stays_as_it_is_written(text: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(f"notes: {text}\nmore:\n  data_name: {text}\n", encoding="utf-8")
    params = load_params(tmp_path / "p.yaml")
    assert (params.notes, params.data_name) == (text, text)


def test_empty_text_in_a_profile_is_empty(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("notes:\ndata_name: ~\n", encoding="utf-8")
    assert (load_params(tmp_path / "p.yaml").notes, load_params(tmp_path / "p.yaml").data_name) == ("", "")


def handed_over(name: str, value: object) -> LabConfig:
    return from_notebook({"In": ["", f"{CELL}\nseed: int = 0", f"# Parameters\n{name} = {value!r}"], "seed": 0})


@pytest.mark.parametrize("typed", ["2024", "007", "1e3", "True", "x", "2024-01-01"])
@pytest.mark.parametrize("name", ["notes", "data_name"])
def test_text_that_papermill_hands_over_as_a_number_is_told_of(
    name: str, typed: str, capsys: pytest.CaptureFixture
) -> None:
    value = papermill_cli._resolve_type(typed)
    assert getattr(handed_over(name, value), name) == str(value)
    told = f"arrived as {value} and is taken for '{value}'. If it was another: hand it over by papermill's"
    assert (told in capsys.readouterr().out) == (not isinstance(value, str))
    assert getattr(handed_over(name, typed), name) == typed  # as by -r
    assert capsys.readouterr().out == ""


def test_text_that_papermill_hands_over_as_none_is_refused() -> None:
    with pytest.raises(LabError, match="notes, a text, arrived as None: hand it over by papermill's `-r notes TEXT`"):
        handed_over("notes", papermill_cli._resolve_type("None"))


def test_words_without_a_name_say_how_to_quote(capsys: pytest.CaptureFixture) -> None:
    assert main(["report", "--words", "notes=Run 3"]) == 1
    assert "'3' is not name=value; quote a value with spaces" in capsys.readouterr().err


def test_profile_may_be_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(make, "check", lambda params: seen.append(params) or exec("raise LabError('enough')"))
    (tmp_path / "mine.yaml").write_text("seed: 7\n", encoding="utf-8")
    with pytest.raises(LabError, match="enough"):
        make.make(str(tmp_path / "mine.yaml"), {}, str(tmp_path / "out"))
    assert seen[0].seed == 7
    with pytest.raises(LabError, match=r"choose one of .*quick"):
        make.make("no_such", {}, str(tmp_path / "out"))


# ---------------------------------------------------------------- numbers beyond a range


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 2**64}, {"seed": 2**63 - 1}, {"seed": -1}, {"epochs": 10**30}, {"dim": 2**40}, {"depth": 10**9},
        {"heads": 2**70, "dim": 2**70}, {"image_size": 10**6, "patch_size": 1}, {"mlp_ratio": 1e300},
        {"batch_size": 2**70}, {"num_workers": 10**9}, {"study_seeds": 10**9}, {"lr": 10**400}, {"linformer_k": 2**70},
        {"image_size": 2, "patch_size": 2},
    ],
)  # fmt: skip
def test_numbers_that_no_machine_takes_are_refused_in_a_sentence(changes: dict) -> None:
    with pytest.raises(LabError) as caught:
        LabConfig().replace(**changes)
    assert "\n" not in str(caught.value)


def test_images_that_fit_into_no_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LabError, match=r"image_size 8192 would need .* GiB of memory"):
        load_source(RunConfig(image_size=8192, patch_size=512))


@pytest.mark.parametrize(
    ("changes", "possible"),
    [
        ({"image_size": 8, "patch_size": 8, "batch_size": 4, "accumulate": 4}, False),
        ({"image_size": 8, "patch_size": 8, "batch_size": 5, "accumulate": 2}, True),  # pieces of three and two
        ({"image_size": 8, "patch_size": 8, "batch_size": 7, "accumulate": 3}, False),  # three, three and one
        ({"image_size": 8, "patch_size": 4, "batch_size": 4, "accumulate": 4}, True),
        ({"image_size": 8, "patch_size": 4, "start_size": 4, "batch_size": 4, "accumulate": 4}, False),
    ],
)
def test_batch_norm_over_one_value_is_seen_before_training(changes: dict, possible: bool, few: Source) -> None:
    lab = Lab(LabConfig(dim=16, depth=4, heads=2, linformer_k=1, tokenizers=["patch", "conv", "light"], **changes), few)
    for name in ("conv", "light"):
        config = lab.plan.config(f"ViT, {name} tokenizer")
        if possible:
            lab.require_possible(config)
        else:
            with pytest.raises(LabError, match="one image of one token"):
                lab.require_possible(config)


def test_compiling_without_a_compiler_is_refused(few: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none() -> None:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    lab = Lab(LabConfig(compile=True), few)
    with pytest.raises(LabError, match=r"no C\+\+ compiler"):
        lab.require_possible(lab.plan.config("ViT"))


# ---------------------------------------------------------------- containers


def control_groups(root: Path, own: str, contents: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in contents.items():
        path = root / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n", encoding="utf-8")
    (root / "own").write_text(own + "\n", encoding="utf-8")
    monkeypatch.setattr(machine, "CGROUPS", root / "cgroup")
    monkeypatch.setattr(machine, "OWN_CGROUPS", root / "own")
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: SimpleNamespace(available=2**40, total=2**41))
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: range(64), raising=False)
    for cached in (machine.memory, machine.cores):
        cached.cache_clear()
        monkeypatch.setattr(machine, cached.__name__, cached.__wrapped__)


VERSION_1 = {
    "memory/docker/a/memory.limit_in_bytes": "4096", "memory/docker/a/memory.usage_in_bytes": "2000",
    "memory/docker/a/memory.stat": "cache 9\ntotal_inactive_file 500",
    "cpu,cpuacct/docker/a/cpu.cfs_quota_us": "250000",
    "cpu,cpuacct/docker/a/cpu.cfs_period_us": "100000", "memory/memory.limit_in_bytes": str(2**63 - 4096),
    "memory/memory.usage_in_bytes": "1",
}  # fmt: skip
VERSION_2 = {
    "pod/memory.max": "4096", "pod/memory.current": "2000", "pod/memory.stat": "anon 3\ninactive_file 500",
    "pod/cpu.max": "250000 100000", "pod/box/memory.max": "max", "pod/box/memory.current": "10",
    "pod/box/cpu.max": "max 100000",
}  # fmt: skip
OWN_1 = "5:memory:/docker/a\n4:cpu,cpuacct:/docker/a\n1:name=systemd:/docker/a"


@pytest.mark.parametrize(
    ("own", "contents"),
    [
        (OWN_1, VERSION_1),
        # seen from inside, the mount is the container's own group and the path the host's
        (OWN_1, {name.replace("docker/a/", ""): text for name, text in list(VERSION_1.items())[:5]}),
        ("0::/pod/box", VERSION_2),
        ("0::/", {name.removeprefix("pod/"): text for name, text in list(VERSION_2.items())[:4]}),
    ],
    ids=["version 1", "version 1 from inside", "version 2, limit above", "version 2 from inside"],
)
def test_limits_of_a_container_are_seen(
    own: str, contents: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control_groups(tmp_path, own, contents, monkeypatch)
    assert machine.free_memory(CPU) == 4096 - 2000 + 500
    assert machine.memory() == 4096
    assert machine.cores() == 3


@pytest.mark.parametrize(
    ("own", "contents"),
    [
        ("0::/", {}),
        ("0::/x", {"x/memory.max": "max", "x/memory.current": "5", "x/cpu.max": "max 100000"}),
        ("4:memory:/\n3:cpu:/", {"memory/memory.limit_in_bytes": str(2**63 - 4096), "cpu/cpu.cfs_quota_us": "-1"}),
        ("", {"memory.max": "7"}),
    ],
)
def test_without_limits_the_machine_counts(
    own: str, contents: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control_groups(tmp_path, own, contents, monkeypatch)
    assert (machine.free_memory(CPU), machine.memory(), machine.cores()) == (2**40, 2**41, 64)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux gives memory that it does not have")
def test_allocation_beyond_a_containers_limit_fails_instead_of_killing() -> None:
    """In a process of its own: a limit that this one could not take back would stay."""
    script = """
import torch
from vitlab import machine
machine._memory_limits = lambda: [(2**31, 2**31 - 2**28)]
with machine.within_memory():
    torch.ones(2**20)
    try:
        torch.ones(2**28)
    except RuntimeError as error:
        print("refused", "allocate memory" in str(error))
print(torch.ones(2**27).sum().item() > 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8", timeout=120)
    assert done.stdout.split() == ["refused", "True", "True"], done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux gives memory that it does not have")
def test_a_limit_of_the_users_is_not_raised() -> None:
    script = """
import resource
from vitlab import machine
machine._memory_limits = lambda: [(2**40, 2**38)]
machine.free_memory = lambda on: 2**40
own = 2**36, resource.getrlimit(resource.RLIMIT_DATA)[1]
resource.setrlimit(resource.RLIMIT_DATA, own)
with machine.within_memory():
    print(resource.getrlimit(resource.RLIMIT_DATA)[0] <= 2**36)
print(resource.getrlimit(resource.RLIMIT_DATA) == own)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8", timeout=120)
    assert done.stdout.split() == ["True", "True"], done.stderr


@pytest.mark.slow
def test_whoever_stops_reading_gets_no_traceback() -> None:
    usual = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # written at the end
    shell = f"{sys.executable} -m vitlab report --help | true"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, encoding="utf-8", timeout=120, env=usual)
    assert done.stderr == ""


def test_batches_are_read_ahead_without_processes_and_a_fault_ends_them(
    few: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that finds no shared memory would die, and its reader wait for ever."""
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"), raising=False)
    recipe = Recipe(batch_size=16, num_workers=3)
    order = torch.randperm(len(few.train))
    read = list(batches.batches(few.train, None, order, recipe, CPU))
    assert torch.equal(torch.cat([images for images, _ in read]), few.train.images_at(order))
    assert torch.equal(torch.cat([labels for _, labels in read]), few.train.labels[order])

    def gone(split: Split, places: torch.Tensor) -> torch.Tensor:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Split, "images_at", gone)
    with pytest.raises(OSError, match="Input/output error"):
        list(batches.batches(few.train, None, order, recipe, CPU))


@pytest.mark.slow
def test_worker_that_is_killed_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="was killed, most likely for want of memory"):
        workers.side_by_side(os._exit, [[(9,), (9,)]], 2)


# ---------------------------------------------------------------- launchers


LEFT_OVER = {
    "torchrun": {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"},
    "MPICH": {"PMI_SIZE": "4", "PMI_RANK": "2"},
    "Open MPI": {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "2"},
    "a cluster": {"LOCAL_RANK": "3", "SLURM_PROCID": "1", "SLURM_NTASKS": "4"},
}


@pytest.mark.parametrize("left", LEFT_OVER.values(), ids=LEFT_OVER)
def test_what_other_launchers_left_in_the_environment_starts_nothing(
    left: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    session = RunSession(Run(tmp_path / "run"))
    assert (machine.launched_processes(), session.processes, session.accelerator, session.main) == (1, 1, None, True)


@pytest.mark.parametrize("words", ["--num_processes 2", "--num-processes=2", "--num_processes=16 --mixed_precision no"])
def test_launcher_that_starts_fewer_processes_than_asked_is_told_on(
    words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["python", "/usr/bin/accelerate", "launch", *words.split(), "-m", "vitlab", "train"]
    process = SimpleNamespace(parent=lambda: SimpleNamespace(cmdline=lambda: command))
    monkeypatch.setattr(machine.psutil, "Process", lambda: process)
    with pytest.raises(LabError, match="--multi_gpu"):
        machine.require_as_launched()


@pytest.mark.parametrize(
    "command", ["accelerate launch --num_processes 1 -m vitlab", "bash run.sh 2", "accelerate launch"]
)
def test_other_parents_are_let_through(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    process = SimpleNamespace(parent=lambda: SimpleNamespace(cmdline=command.split))
    monkeypatch.setattr(machine.psutil, "Process", lambda: process)
    machine.require_as_launched()


# ---------------------------------------------------------------- files of our own


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


@pytest.mark.parametrize("share", [0, 0.5])
def test_damaged_cache_is_made_again(share: float, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(4):
            pixels = np.random.default_rng([name == "cat", i]).integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    config = RunConfig(dataset="folder", data_dir=str(tmp_path / "data"), image_size=8)
    before = load_source(config)
    [cache] = (tmp_path / "cache").iterdir()
    cut(cache, share)
    after = load_source(config)
    assert (after.digest, after.notes) == (before.digest, before.notes)
    assert load_source(config).digest == before.digest


READERS: dict[str, Callable[[Run], object]] = {
    "summary.json": lambda run: run.summary,
    "config.json": lambda run: run.record,
    "history.csv": lambda run: run.history,
    "predictions.npz": lambda run: run.predictions,
    "environment.json": lambda run: run.environments,
    "model.pt": lambda run: run.weights(),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("content", [b"", b"{", b"\0" * 50, b"PK\3\4 and no more"])
def test_damaged_file_of_a_run_is_named_with_what_to_do(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_bytes(content)
    with pytest.raises(LabError) as caught:
        READERS[name](Run(tmp_path / "run"))
    assert str(tmp_path / "run" / name) in str(caught.value)
    assert "delete the folder" in str(caught.value)


@pytest.fixture
def copied(done: Lab, tmp_path: Path) -> Run:
    """A run that a test may damage."""
    run = done.load("ViT")
    shutil.copytree(run.path, tmp_path / run.path.name)
    return Run(tmp_path / run.path.name)


def test_history_that_was_cut_short_is_damaged(copied: Run) -> None:
    path = copied.path / "history.csv"
    assert len(copied.history) == copied.summary["epochs"]
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for cut in (lines[:-1], [*lines[:-1], lines[-1][:5]], lines[:1]):
        path.write_text("".join(cut), encoding="utf-8")
        with pytest.raises(LabError, match=r"history\.csv .*delete the folder"):
            _ = Run(copied.path).history


def test_damaged_record_is_no_sign_of_other_code(copied: Run) -> None:
    (copied.path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(LabError, match=r"config\.json .*delete the folder"):
        _ = Run(copied.path).config


def with_unknown_value(run: Run) -> None:
    run.write_json("config.json", run.record | {"config": run.record["config"] | {"of_another_day": 1}})


def with_other_weights(run: Run) -> None:
    run.save("model.pt", run.weights() | {"of_another_day": torch.zeros(1)})


@pytest.mark.parametrize("change", [with_unknown_value, with_other_weights])
def test_run_of_other_code_is_named_with_what_to_do(change: Callable[[Run], None], copied: Run) -> None:
    change(copied)
    with pytest.raises(LabError, match=r"was made by other code, .*of_another_day.*go back to the commit") as caught:
        Run(copied.path).model()
    assert str(copied.path) in str(caught.value)


def test_run_of_a_row_that_a_notebook_made_is_no_reason_to_delete_it(copied: Run) -> None:
    copied.write_json("config.json", copied.record | {"config": copied.record["config"] | {"model": "grid_vit"}})
    with pytest.raises(LabError, match="is a run of 'grid_vit', a row that a notebook put into MODELS: use it there"):
        Run(copied.path).model()


def test_missing_file_of_a_complete_run_is_named(done: Lab, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text('{"test": {}}', encoding="utf-8")
    with pytest.raises(LabError, match=r"predictions\.npz is missing"):
        _ = Run(tmp_path / "run").predictions


@pytest.mark.parametrize("content", ["", "{", '{"code": 1', "[]", "null"])
def test_damaged_measurement_is_taken_again(content: str, fresh: Lab) -> None:
    assert fresh.costs.measured("thing", 1, lambda: 5) == 5
    [path] = fresh.costs.folder.iterdir()
    path.write_text(content, encoding="utf-8")
    assert fresh.costs.measured("thing", 1, lambda: 6) == 6
    assert fresh.costs.measured("thing", 1, None) == 6


@pytest.mark.parametrize("content", ["", "{", "- a", "just words"])
def test_damaged_parameters_of_a_report_are_named(content: str, fresh: Lab, tmp_path: Path) -> None:
    (tmp_path / make.PARAMETERS).write_text(content, encoding="utf-8")
    with pytest.raises(LabError, match=r"parameters\.yaml is empty or damaged"):
        make.require_own(fresh, tmp_path)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a place where nobody can write")
@pytest.mark.parametrize("place", ["cache", "report", "run"])
def test_place_that_takes_no_file_says_which_parameter_names_another(
    place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    nowhere = Path("/proc/nowhere")
    if place == "report":
        assert main(["report", "--out", str(nowhere)]) == 1
        assert "OUT=<folder>" in capsys.readouterr().err
    elif place == "cache":
        with (
            pytest.raises(LabError, match="VITLAB_CACHE=<folder>"),
            files.writing(nowhere / "x", "VITLAB_CACHE=<folder>") as t,
        ):
            torch.save({}, t)
    else:
        with pytest.raises(LabError, match="runs_dir"):
            Run(nowhere / "run").save("model.pt", {})


def test_cache_lies_in_the_users_folder_where_the_checkout_is_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VITLAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(machine.os, "access", lambda path, mode: not str(path).startswith(str(ROOT)))
    assert machine.cache_folder() == machine.platformdirs.user_cache_path("vitlab")
    monkeypatch.setattr(machine.os, "access", lambda path, mode: True)
    assert machine.cache_folder() == ROOT / "data" / "cache"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a place where nobody can write")
def test_notebook_runs_where_nobody_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [nbformat.v4.new_code_cell("import os\nos.getcwd()")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "in.ipynb")
    monkeypatch.chdir("/proc")
    make.run_notebook(tmp_path / "in.ipynb", tmp_path / "out.ipynb", {})
    assert nbformat.read(tmp_path / "out.ipynb", 4).cells[-1].outputs[0].data["text/plain"] == "'/proc'"


# ---------------------------------------------------------------- other kernels, other encodings


def test_notebooks_run_in_this_interpreter_whatever_else_is_called_python3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    other = {"argv": ["false"], "display_name": "other", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(other), encoding="utf-8")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    cells = [nbformat.v4.new_code_cell("import sys\nsys.executable")]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "x"}})
    nbformat.write(notebook, tmp_path / "in.ipynb")
    make.run_notebook(tmp_path / "in.ipynb", tmp_path / "out.ipynb", {})
    [result] = nbformat.read(tmp_path / "out.ipynb", 4).cells[-1].outputs
    assert ast.literal_eval(result.data["text/plain"]) == sys.executable
    assert kernels.OwnKernels().get_kernel_spec("python3").argv[0] == sys.executable


def test_every_text_file_is_opened_with_its_encoding() -> None:
    """Elsewhere the locale decides, and Latin-1 has no dash."""
    faults = []
    for path in sorted((ROOT / "vitlab").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            given = {keyword.arg for keyword in node.keywords}
            binary = any(isinstance(a, ast.Constant) and "b" in str(a.value) for a in node.args[:1] if name == "open")
            opens = name in ("read_text", "write_text") or (name == "open" and not binary and "mode" not in given)
            if opens and "encoding" not in given and not _is_images_or_labs_open(node):
                faults.append(f"{path.name}:{node.lineno}")
    assert not faults


def _is_images_or_labs_open(node: ast.Call) -> bool:
    return isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") in ("Image", "Lab")


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["latin-1", "cp932", "ascii"])
def test_terminal_of_another_encoding_gets_the_sentence(encoding: str, unlike: Path) -> None:
    command = [sys.executable, "-m", "vitlab", "train", "--params", "quick", "--run", "ViT", "--data", str(unlike)]
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=120)
    assert done.returncode == 1
    assert b"is missing in" in done.stderr
    assert b"Traceback" not in done.stderr


def test_data_are_called_by_the_name_that_the_user_gave(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    params = parse(LabConfig, {"dataset": "folder", "data_dir": str(tmp_path / "link")})
    assert Lab(params, None).data_name == "link"
