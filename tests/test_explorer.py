"""What a reader explores: every model with its own maps, every control with its answer."""

import datetime
import io
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import lively
from matplotlib.figure import Figure
from PIL import Image

from vitlab.config import RunConfig
from vitlab.data.splits import Source, split
from vitlab.models.reduce import tokens_left
from vitlab.models.registry import MODELS, build_model
from vitlab.report import explorer
from vitlab.runs import Run

REDUCING = [name for name, row in MODELS.items() if row.chapter == "03"]
IMAGE = torch.randint(0, 256, (1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("keep_ratio", [0.3, 0.75, 1.0])
@pytest.mark.parametrize("name", REDUCING)
def test_maps_of_fewer_tokens_show_as_many_as_are_left(name: str, keep_ratio: float, tiny: RunConfig) -> None:
    model = lively(build_model(tiny.replace(model=name, patch_size=2, keep_ratio=keep_ratio), 10, 1))
    probabilities, maps = explorer.what_is_seen(model, IMAGE, 1)
    left = tokens_left(16, keep_ratio)
    assert list(maps) == [f"stage {stage}: {n} of 16" for stage, n in enumerate(left, 1)]
    assert [len(set(where[where >= 0].tolist())) for where in maps.values()] == left
    assert probabilities.sum() == pytest.approx(1)


@pytest.mark.parametrize("name", [name for name, row in MODELS.items() if name not in REDUCING])
def test_maps_of_other_models_are_attention_where_there_is_any(name: str, tiny: RunConfig) -> None:
    model = lively(build_model(tiny.replace(model=name), 10, 1))
    _, maps = explorer.what_is_seen(model, IMAGE, 3)
    weighs = {"vit", "distilled_vit", "local_vit"}  # by a softmax
    assert list(maps) == (["rollout", "head 1", "head 2"] if name in weighs else [])


@pytest.fixture
def explored(
    train: Callable[..., Run], tiny: RunConfig, few: Source, monkeypatch: pytest.MonkeyPatch
) -> SimpleNamespace:
    """An explorer that is shown, and the figures that it has drawn so far."""
    start = train(tiny)
    run = train(tiny.replace(model="dynamic_vit", init_from=start.path.name, keep_ratio=0.35), start=start)
    shown: list[Figure] = []
    monkeypatch.setattr(explorer.Picture, "draw", lambda _, figure: shown.append(figure))
    monkeypatch.setattr(explorer, "display", lambda _: None)
    controls = explorer.Explorer(run, split(few, run.config))
    controls.show()
    return SimpleNamespace(controls=controls, shown=shown, run=run)


def title(figure: Figure) -> str:
    return figure.axes[0].get_title()


def test_it_begins_as_the_model_was_trained(explored: SimpleNamespace) -> None:
    assert explored.controls.ratio.value == 0.35
    assert len(explored.shown) == 1
    assert title(explored.shown[0]) == "test image 0: 0"


@pytest.mark.slow
def test_each_control_draws_once(explored: SimpleNamespace) -> None:
    controls, shown = explored.controls, explored.shown
    controls.of_class.value = "3"
    assert title(shown[-1]) == f"test image {int(np.flatnonzero(controls.labels == 3)[0])}: 3"
    controls.ratio.value = 1.0
    assert "stage 1: 4 of 4" in [axis.get_title() for axis in shown[-1].axes]
    controls.of_class.value = explorer.ANY
    assert len(shown) == 4
    wrong = np.flatnonzero(controls.wrong)
    controls.mistake.click()
    assert controls.image.value in wrong
    assert len(shown) == 5


def upload(controls: explorer.Explorer, name: str, content: bytes) -> None:
    about = {"name": name, "type": "", "size": len(content), "last_modified": datetime.datetime.now()}
    controls.upload.set_trait("value", (about | {"content": memoryview(content)},))


@pytest.mark.slow
def test_own_picture_is_converted_and_what_is_none_is_refused_in_a_sentence(explored: SimpleNamespace) -> None:
    controls, shown = explored.controls, explored.shown
    file = io.BytesIO()
    Image.new("RGB", (30, 20), (200, 30, 90)).save(file, format="PNG")
    upload(controls, "own.png", file.getvalue())
    assert title(shown[-1]) == "own picture"
    assert controls.remark.value == "The picture was cropped and resized from 30×20 to 8×8 and made grey."
    drawn = len(shown)
    upload(controls, "<b>.png", b"<html>")
    wrong = "&lt;b&gt;.png is not a readable image (cannot identify image file): name a JPEG, PNG or the like"
    assert controls.remark.value == wrong
    assert len(shown) == drawn
