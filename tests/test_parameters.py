"""Where parameters come from: profiles, a command line, a notebook's cell; and which of them wins."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
import yaml

from vitlab.config import LabConfig
from vitlab.errors import LabError
from vitlab.files import absolute
from vitlab.machine import ROOT
from vitlab.parameters import (
    CELL,
    COMMON,
    add_overrides,
    as_profile,
    from_notebook,
    load_params,
    own_profile,
    profile_path,
    read_profile,
)

PROFILES = sorted((ROOT / "params").glob("*.yaml"))
DEFAULT = LabConfig()
OF_CHAPTER = (
    f"{CELL}. Anything may follow\nepochs: int = {DEFAULT.epochs}  # of chapters 02 and 04\n"
    f"lr: float = {DEFAULT.lr}\nmore: dict = {{}}"
)


# ---------------------------------------------------------------- profiles


@pytest.fixture
def profile(tmp_path: Path) -> Callable[[str], Path]:
    """profile(text): a file with this text."""

    def write(text: str) -> Path:
        path = tmp_path / "p.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_scientific_notation_that_yaml_reads_as_text_becomes_a_number(profile: Callable[[str], Path]) -> None:
    assert load_params(profile("lr: 1e-3\n")).lr == 0.001  # without a dot YAML 1.1 reads a string


@pytest.mark.parametrize("name", ["mixup", "crop", "epochs", "dim", "optimizer"])
def test_yamls_no_is_refused_where_a_number_or_word_is_meant(name: str, profile: Callable[[str], Path]) -> None:
    with pytest.raises(LabError, match=f"{name} is False"):
        load_params(profile(f"{name}: no\n"))


def test_yamls_yes_is_accepted_for_a_switch(profile: Callable[[str], Path]) -> None:
    assert load_params(profile("flip: yes\n")).flip is True


def test_values_under_more_stand_beside_the_others(profile: Callable[[str], Path]) -> None:
    assert load_params(profile("seed: 3\nmore:\n  epochs: 4\n  ema: 0.9\n")) == LabConfig(seed=3, epochs=4, ema=0.9)
    for nothing in ("", " null", " ~", " {}"):
        assert load_params(profile(f"seed: 3\nmore:{nothing}\n")) == LabConfig(seed=3)


def test_value_that_stands_twice_in_a_profile_is_refused(profile: Callable[[str], Path]) -> None:
    with pytest.raises(LabError, match=r"seed stands twice in .*p\.yaml, also under more"):
        load_params(profile("seed: 3\nmore:\n  seed: 4\n"))
    for text in ("lr: 0.1\nseed: 3\nlr: 0.2\n", "seed: 3\nmore:\n  lr: 0.1\n  lr: 0.2\n"):
        with pytest.raises(LabError, match=r"lr stands twice in .*p\.yaml: take one of them out"):
            load_params(profile(text))


@pytest.mark.parametrize("text", ["1,3", "1, 3", "[1, 3]", [1, 3]])
def test_list_may_be_written_as_a_text(text: str | list) -> None:
    assert LabConfig(preset="tiny", stages=text).stages == [1, 3]
    for texts in ("[patch, conv]", "['patch', \"conv\"]"):
        assert LabConfig(tokenizers=texts).tokenizers == ["patch", "conv"]
    assert LabConfig(preset="tiny", stages=3).stages == [3]
    assert LabConfig(repeated="ViT, fine-tuned; ToMe").repeated == ["ViT, fine-tuned", "ToMe"]


def test_more_that_holds_no_names_is_refused(profile: Callable[[str], Path]) -> None:
    with pytest.raises(LabError, match=r"more in .*p\.yaml is 5, not a mapping"):
        load_params(profile("more: 5\n"))


def test_misspelt_name_under_more_names_the_nearest(profile: Callable[[str], Path]) -> None:
    with pytest.raises(LabError, match="unknown parameter 'epoch': did you mean 'epochs'"):
        load_params(profile("more:\n  epoch: 4\n"))


def test_profile_values_can_be_overridden(profile: Callable[[str], Path]) -> None:
    config = load_params(profile("epochs: 3\nmore:\n  seed: 1\n"), {"seed": 2})
    assert (config.epochs, config.seed) == (3, 2)


def test_all_parameters_survive_being_written_as_a_profile(profile: Callable[[str], Path]) -> None:
    params = LabConfig(preset="tiny", seed=3, lr=0.1, mixup=0.2, depth=3, notes="ρ")
    written = as_profile(params)
    assert [*written] == [*COMMON, "more"]
    assert load_params(profile(yaml.safe_dump(written))) == params


def test_unknown_profile_names_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("")
    with pytest.raises(LabError, match="choose one of one"):
        load_params(tmp_path / "two.yaml")


@pytest.mark.parametrize("text", ["epochs: [3", "- a\n- b\n", "just words", "", "data_name: 2024-02-30"])
def test_file_that_holds_no_parameters_is_named(text: str, profile: Callable[[str], Path]) -> None:
    with pytest.raises(LabError, match=r"p\.yaml"):
        load_params(profile(text))


@pytest.mark.parametrize("content", [b"\xff\xfe epochs: 3", b"no: 3", None])
def test_file_that_is_no_profile_is_one_sentence(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(LabError, match=re.escape(str(path))) as caught:
        load_params(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_profile_is_valid_and_has_at_top_level_what_every_notebook_has(path: Path) -> None:
    assert load_params(path).epochs >= 1
    assert [*yaml.safe_load(path.read_text(encoding="utf-8"))] == [*COMMON, "more"]


def test_the_three_profiles_exist() -> None:
    assert {"quick", "cifar10_cpu", "cifar10_gpu"} <= {path.stem for path in PROFILES}


def test_quick_profile_equals_the_defaults() -> None:
    assert load_params(ROOT / "params" / "quick.yaml").model_dump() == LabConfig().model_dump()


# ---------------------------------------------------------------- a command line


def parsed(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser(exit_on_error=False)
    overrides = add_overrides(parser)
    return overrides(parser.parse_args(words))


def test_values_of_a_command_line_are_read_as_yaml() -> None:
    assert parsed("--set", "epochs=3", "notes=a = b", "flip=yes") == {"epochs": 3, "notes": "a = b", "flip": True}
    assert parsed("--set", "epochs=3", "--set", "flip=yes") == {"epochs": 3, "flip": True}
    assert parsed() == {}


def test_data_of_a_command_line_are_a_folder_and_win_over_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = parsed("--data", "mine", "--set", "dataset=digits", "seed=3")
    assert given == {"dataset": "folder", "data_dir": str(tmp_path / "mine"), "seed": 3}


@pytest.mark.parametrize(
    ("word", "fault"),
    [
        ("epochs", "is not name=value"),
        ("epochs=[3", "is not valid YAML"),
        ("epochs=5 seed=1", "holds several parameters"),
        ("repeated=ViT; ToMe seeds=3", "holds several parameters"),
    ],
)
def test_word_of_a_command_line_that_is_no_value_is_told(word: str, fault: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises((argparse.ArgumentError, SystemExit)) as caught:
        parsed("--set", word)
    told = str(caught.value) + capsys.readouterr().err
    assert f"{word!r}" in told
    assert fault in told


# ---------------------------------------------------------------- a notebook


class Notebook:
    """A kernel's globals, and its history of cells as IPython keeps it beside names of its own."""

    def __init__(self, **startup: Any) -> None:
        ipython = {"__name__": "__main__", "In": [""], "Out": {}, "_": "", "_i1": "x", "Path": Path, "exit": print}
        self.namespace = ipython | startup

    def run(self, *cells: str) -> "Notebook":
        for source in cells:
            self.namespace["In"].append(source)
            exec(source, self.namespace)
        return self

    def inject(self, **values: Any) -> "Notebook":
        """As papermill does: a cell of its own after the parameters cell."""
        return self.run("\n".join(["# Parameters", *(f"{name} = {value!r}" for name, value in values.items())]))

    @property
    def params(self) -> LabConfig:
        return from_notebook(self.namespace)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's own profile, in which nothing stands yet."""
    path = tmp_path / "own.yaml"
    path.write_text("{}", encoding="utf-8")
    monkeypatch.setenv("VITLAB_PARAMS", str(path))
    return path


def test_what_the_cell_assigns_becomes_the_configuration() -> None:
    cell = f'{CELL}\ndataset: str = "digits"\nepochs: int = 3\nlr = 5e-4\nmore: dict = {{"flip": True}}'
    assert Notebook().run(cell).params == LabConfig(epochs=3, lr=5e-4, flip=True)


def test_cell_as_it_is_committed_gives_the_defaults() -> None:
    assert Notebook().run(OF_CHAPTER).params == LabConfig()


@pytest.mark.parametrize("source", ["epochs = 3", "# My parameters\nepochs = 3", f'"""\n{CELL}\n"""\nepochs = 3'])
def test_cell_is_known_by_its_first_line(source: str) -> None:
    with pytest.raises(LabError, match=f"{CELL}.* has not been run: run it first"):
        _ = Notebook().run(source).params
    assert Notebook().run(source, f"\n{OF_CHAPTER}").params == LabConfig()


def test_name_of_a_startup_file_is_no_parameter() -> None:
    notebook = Notebook(seeds=3, ema=0.5, patience=7, more_of_it={"epochs": 1}).run(OF_CHAPTER)
    assert notebook.params == LabConfig()


def test_names_that_other_cells_make_are_no_parameters() -> None:
    notebook = Notebook().run("flip = True", OF_CHAPTER)
    notebook.run("for epoch in range(3):\n    total = epoch", "patience, name = 12, 'ViT'", "keep_ratoi = ema = 0.5")
    assert notebook.params == LabConfig()


def test_parameters_name_that_another_cell_uses_keeps_its_value() -> None:
    notebook = Notebook().run(f"{CELL}\nepochs = 3\nlr: float = 0.1\nmore = {{'ema': 0.9}}")
    notebook.run("for epochs in range(9):\n    more = lr = 7")
    assert notebook.params == LabConfig(epochs=3, lr=0.1, ema=0.9)
    assert notebook.inject(seed=4).run("seed = 5").params == LabConfig(epochs=3, lr=0.1, ema=0.9, seed=4)


def test_value_in_the_cell_may_be_computed() -> None:
    cell = f"{CELL}\nepochs = lines = 3\nlr, ema = 1e-3, 0.9\nbatch_size = 2 ** 5\nnotes: str"
    with pytest.raises(LabError, match="'lines'"):
        _ = Notebook().run(cell).params
    assert Notebook().run(cell.replace("= lines", "")).params == LabConfig(epochs=3, lr=1e-3, ema=0.9, batch_size=32)


def test_what_a_cell_does_beside_assigning_is_no_parameter() -> None:
    cell = f"{CELL}\nimport math\nepochs = 3\nfor patience in range(9):\n    ema = 0.5\ndef flip(): hold = 0.1"
    assert Notebook().run(cell).params == LabConfig(epochs=3)


def test_misspelt_name_in_the_cell_names_the_nearest() -> None:
    with pytest.raises(LabError, match="did you mean 'study_seeds'"):
        _ = Notebook().run(f"{CELL}\nstudy_sedes: int = 3").params


def test_name_in_the_cell_that_is_like_no_parameter_is_told() -> None:
    with pytest.raises(LabError, match="unknown parameter 'zzzz'"):
        _ = Notebook().run(f"{CELL}\nzzzz = 3").params


def test_mended_typo_works_when_the_cell_is_run_again() -> None:
    notebook = Notebook().run(f"{CELL}\nepoch = 3\nmore = {{'emma': 0.9}}")
    with pytest.raises(LabError, match="'epochs'"):
        _ = notebook.params
    notebook.run(f"{CELL}\nepochs = 3\nmore = {{'ema': 0.9}}")
    assert notebook.params == LabConfig(epochs=3, ema=0.9)


def test_name_taken_out_of_the_cell_counts_no_more_when_it_is_run_again() -> None:
    notebook = Notebook().run(f"{CELL}\nepochs = 3\nlr = 0.1")
    assert notebook.params == LabConfig(epochs=3, lr=0.1)
    assert notebook.run(f"{CELL}\nepochs = 4").params == LabConfig(epochs=4)


def test_reading_the_parameters_changes_nothing_in_the_notebook() -> None:
    notebook = Notebook().run(OF_CHAPTER)
    before = {**notebook.namespace}
    assert notebook.params == notebook.params
    assert notebook.namespace == before


def test_value_that_cannot_be_is_one_sentence() -> None:
    with pytest.raises(LabError, match="parameter lr is 'fast'"):
        _ = Notebook().run(f"{CELL}\nlr = 'fast'").params


def test_misspelt_name_in_more_names_the_nearest() -> None:
    with pytest.raises(LabError, match="did you mean 'linformer_k'"):
        _ = Notebook().run(f"{CELL}\nmore = {{'linfomer_k': 4}}").params


def test_name_in_the_cell_and_in_more_is_refused() -> None:
    with pytest.raises(LabError, match="lr stands twice in the parameters cell, also under more"):
        _ = Notebook().run(f"{CELL}\nlr: float = 0.002\nmore: dict = {{'lr': 0.1}}").params


@pytest.mark.parametrize("more", ["5", "'lr=0.1'", "[('lr', 0.1)]"])
def test_more_that_is_no_mapping_is_refused(more: str) -> None:
    with pytest.raises(LabError, match=r"more in the parameters cell is .*, not a mapping"):
        _ = Notebook().run(f"{CELL}\nmore = {more}").params


# ---------------------------------------------------------------- papermill's cell after it


def test_injected_value_wins_over_the_cell() -> None:
    assert Notebook().run(OF_CHAPTER).inject(lr=1e-3).params == LabConfig(lr=1e-3)


def test_injected_default_wins_over_a_changed_cell() -> None:
    cell = f"{CELL}\nlr = 0.1\nmore = {{}}"
    assert Notebook().run(cell).inject(lr=LabConfig().lr).params == LabConfig()


def test_profile_wins_over_the_cell_and_a_single_value_over_the_profile() -> None:
    """papermill -f profile.yaml -p lr 1e-3: one cell for both."""
    cell = f"{CELL}\nlr = 0.5\nepochs = 9\nbatch_size = 16\nmore = {{'ema': 0.9}}"
    notebook = Notebook().run(cell).inject(seed=4, more={"lr": 0.3, "epochs": 5, "flip": True}, lr=1e-3)
    assert notebook.params == LabConfig(seed=4, lr=1e-3, epochs=5, flip=True, batch_size=16)


def test_injected_value_may_be_one_that_the_cell_does_not_name() -> None:
    assert Notebook().run(OF_CHAPTER).inject(ema=0.9, patience=3).params == LabConfig(ema=0.9, patience=3)


@pytest.mark.parametrize("values", [{"lrr": 1e-3}, {"more": {"lrr": 1e-3}}])
def test_misspelt_injected_name_names_the_nearest(values: dict[str, Any]) -> None:
    with pytest.raises(LabError, match="unknown parameter 'lrr': did you mean 'lr'"):
        _ = Notebook().run(OF_CHAPTER).inject(**values).params


def test_cell_that_is_run_again_by_hand_takes_back_what_was_injected() -> None:
    notebook = Notebook().run(OF_CHAPTER).inject(lr=1e-3, ema=0.9, more={"flip": True})
    assert notebook.params == LabConfig(lr=1e-3, ema=0.9, flip=True)
    assert notebook.run(OF_CHAPTER).params == LabConfig()


def test_cell_that_only_begins_like_papermills_injects_nothing() -> None:
    notebook = Notebook().run(OF_CHAPTER, "# Parameters that I like\nema = 0.9")
    assert notebook.params == LabConfig()


# ---------------------------------------------------------------- the reader's own profile


def test_own_profile_is_read_by_all_chapters(mine: Path) -> None:
    mine.write_text("preset: tiny\nmore:\n  ema: 0.9\n  epochs: 3\n")
    for name in ("keep_ratio", "study_seeds", "epochs"):
        assert Notebook().run(f"{CELL}\n{name} = {getattr(DEFAULT, name)}\nmore: dict = {{}}").params == LabConfig(
            preset="tiny", ema=0.9, epochs=3
        )


def test_what_the_cell_changes_wins_over_the_own_profile(mine: Path) -> None:
    mine.write_text("more: {ema: 0.9, epochs: 3, lr: 0.1}\n")
    notebook = Notebook().run(f"{CELL}\nepochs: int = 7\nlr: float = 0.002\nmore: dict = {{'ema': 0.5}}")
    assert notebook.params == LabConfig(epochs=7, lr=0.1, ema=0.5)
    assert notebook.inject(lr=1e-3).params == LabConfig(epochs=7, lr=1e-3, ema=0.5)


def test_values_that_count_instead_of_those_that_the_cell_shows_are_told(
    mine: Path, capsys: pytest.CaptureFixture
) -> None:
    mine.write_text("more: {ema: 0.9, epochs: 3, lr: 0.002, batch_size: 8}\n")
    cell = f"{CELL}\nepochs: int = 10\nlr: float = 0.002\nbatch_size: int = 16\nmore: dict = {{}}"
    notebook = Notebook().run(cell)
    assert notebook.params.epochs == 3
    assert capsys.readouterr().out == f"From {mine.name}, instead of the defaults in the parameters cell: epochs = 3.\n"
    assert notebook.inject(epochs=10).params.epochs == 10
    assert "epochs" not in capsys.readouterr().out


def test_misspelt_name_in_the_own_profile_names_the_nearest(mine: Path) -> None:
    mine.write_text("epoch: 3\n")
    with pytest.raises(LabError, match="did you mean 'epochs'"):
        _ = Notebook().run(OF_CHAPTER).params


def test_own_profile_lies_beside_the_others_and_is_not_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VITLAB_PARAMS")
    assert own_profile() == ROOT / "params" / "mine.yaml"
    assert "/params/mine.yaml" in (ROOT / ".gitignore").read_text().splitlines()


def test_own_profile_that_is_named_has_to_be_there(mine: Path) -> None:
    mine.unlink()
    with pytest.raises(LabError, match=r"no params file .*own\.yaml"):
        _ = Notebook().run(OF_CHAPTER).params


def test_home_of_nobody_is_one_sentence() -> None:
    for read in (profile_path, absolute):
        with pytest.raises(LabError, match=r"^~nobody-here/p\.yaml: .*write the path in full$"):
            read("~nobody-here/p.yaml")


def test_own_profile_is_none_of_a_command_lines(mine: Path) -> None:
    mine.write_text("seed: 3\n")
    assert load_params(ROOT / "params" / "quick.yaml") == LabConfig()
    assert read_profile(mine) == {"seed": 3}


# ---------------------------------------------------------------- a real kernel


@pytest.mark.slow
def test_kernel_keeps_the_cells_by_which_parameters_are_known(mine: Path) -> None:
    """A typo, its cure, and names that a session leaves behind, in a kernel as JupyterLab has it."""
    mine.write_text("more: {ema: 0.9}\n")
    look = (
        "from vitlab.parameters import from_notebook\n"
        "params = from_notebook(globals())\n"
        "print(params.lr, params.epochs, params.ema, params.patience)"
    )
    cells = [
        "patience = 3",
        f"{CELL}\nlr: float = 0.1\nepoch: int = 3",
        look,
        f"{CELL}\nlr: float = 0.1\nepochs: int = 3",
        look,
        "for epoch in range(2):\n    lrr = 1",
        "%time hold = 0.5",
        look,
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    nbclient.NotebookClient(notebook, kernel_name="python3", allow_errors=True).execute()
    outputs = [cell.outputs for cell in notebook.cells]
    [fault] = outputs[2]
    assert (fault.ename, "did you mean 'epochs'" in fault.evalue) == ("LabError", True)
    assert [outputs[place][-1].text.strip() for place in (4, 7)] == ["0.1 3 0.9 0"] * 2
