"""An exported file answers as the model does, whoever runs it, and says what it takes."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import onnx
import pytest
import torch
from conftest import lively
from safetensors import safe_open

from vitlab import export as exporting
from vitlab.config import RunConfig
from vitlab.errors import LabError
from vitlab.export import FORMATS, about, compare, export
from vitlab.models.registry import MODELS, build_model
from vitlab.runs import Run


@pytest.fixture
def run_of(tmp_path: Path) -> Callable[..., Run]:
    """A complete run whose weights are random, and lively."""

    def make(config: RunConfig) -> Run:
        run, model = Run(tmp_path / config.model), lively(build_model(config, 10, 3))
        run.save("model.pt", model.state_dict())
        record = {"config": config.model_dump(), "classes": [f"class {k}" for k in range(10)], "channels": 3}
        run.write_json("config.json", record | {"image_size": config.image_size})
        run.write_json("summary.json", {})
        return run

    return make


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("ending", FORMATS)
def test_every_model_exports_and_answers_alike(
    model: str, ending: str, tiny: RunConfig, run_of: Callable[..., Run], tmp_path: Path
) -> None:
    run, path = run_of(tiny.replace(model=model)), tmp_path / f"model{ending}"
    assert export(run, path) <= 1e-4
    images = torch.rand(7, 3, 8, 8) * 2 - 1  # a batch that the exporter has not seen
    again = FORMATS[ending].read(path, run)
    with torch.inference_mode():
        torch.testing.assert_close(again(images), run.model(device="cpu")(images), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_dynamic_vit_really_drops_tokens(tiny: RunConfig, run_of: Callable[..., Run], tmp_path: Path) -> None:
    run = run_of(tiny.replace(model="dynamic_vit"))
    export(run, tmp_path / "model.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    left = [4, *run.model().tokens_per_stage()]  # of 4 patches the last stage may have no more to drop
    assert kinds.count("TopK") == sum(before > after for before, after in pairwise(left)) >= 2


@pytest.mark.slow
def test_file_says_what_it_takes_and_what_it_answers(
    tiny: RunConfig, run_of: Callable[..., Run], tmp_path: Path
) -> None:
    run = run_of(tiny)
    for ending in FORMATS:
        export(run, tmp_path / f"model{ending}")
    told = {prop.key: prop.value for prop in onnx.load(tmp_path / "model.onnx").metadata_props}
    extra = {"about.json": ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=extra)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        kept = file.metadata()
    assert json.loads(told["classes"]) == run.classes
    assert about(run).items() <= told.items()
    assert json.loads(extra["about.json"]) == about(run)
    assert about(run).items() <= kept.items()


def test_file_that_answers_otherwise_is_not_written(
    tiny: RunConfig, run_of: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = exporting.Format(
        exporting._write_weights, lambda path, run: lambda images: torch.ones(len(images), 10), "it"
    )
    monkeypatch.setitem(exporting.FORMATS, ".safetensors", wrong)
    with pytest.raises(LabError, match="answers otherwise"):
        export(run_of(tiny), tmp_path / "model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()


def test_largest_difference_over_all_batches_counts() -> None:
    assert compare(lambda x: x, lambda x: x + 0.5 * (len(x) > 1), torch.zeros(5, 3)) == 0.5


def test_wrong_names_are_one_sentence(tiny: RunConfig, run_of: Callable[..., Run], tmp_path: Path) -> None:
    run = run_of(tiny)
    with pytest.raises(LabError, match=r"choose \.onnx, \.pt2, \.safetensors"):
        export(run, tmp_path / "model.pth")
    (tmp_path / "model.onnx").touch()
    with pytest.raises(LabError, match="exists: choose another name"):
        export(run, tmp_path / "model.onnx")
    run.write_json("config.json", run.record | {"module": {"class": "Net"}})
    with pytest.raises(LabError, match="a class of your own"):
        export(Run(run.path), tmp_path / "model.pt2")
