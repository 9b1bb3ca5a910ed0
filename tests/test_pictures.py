"""A picture of one's own becomes what the model was trained on, and says what that took."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitlab.config import RunConfig
from vitlab.data.pictures import as_pixels
from vitlab.data.splits import Source
from vitlab.errors import LabError
from vitlab.runs import Run

RED = Image.new("RGB", (8, 8), (250, 0, 0))
SQUARE = np.arange(64, dtype=np.uint8).reshape(8, 8)


def test_what_fits_is_taken_as_it_is_in_any_form(tmp_path: Path) -> None:
    Image.fromarray(SQUARE).save(tmp_path / "square.png")
    forms = [SQUARE, torch.from_numpy(SQUARE), SQUARE[None], SQUARE[..., None], SQUARE / 255, Image.fromarray(SQUARE)]
    mask = SQUARE.mean() < SQUARE
    assert torch.equal(as_pixels(mask, channels=1, size=8)[0], torch.from_numpy(np.uint8(255) * mask)[None])
    content = io.BytesIO((tmp_path / "square.png").read_bytes())
    for form in [*forms, tmp_path / "square.png", str(tmp_path / "square.png"), content]:
        pixels, remark = as_pixels(form, channels=1, size=8)
        assert remark == ""
        assert pixels.dtype is torch.uint8
        assert torch.equal(pixels, torch.from_numpy(SQUARE)[None])


@pytest.mark.parametrize(
    ("picture", "channels", "size", "remark"),
    [
        (RED, 3, 8, ""),
        (RED, 1, 8, "The picture was made grey."),
        (RED, 3, 4, "The picture was resized from 8×8 to 4×4."),
        (Image.new("RGBA", (12, 9)), 1, 8, "The picture was cropped and resized from 12×9 to 8×8 and made grey."),
        (Image.new("L", (28, 28)), 1, 16, "The picture was resized from 28×28 to 16×16."),
        (Image.new("LA", (8, 8)), 1, 8, ""),
        (np.zeros((3, 8, 8), np.uint8), 3, 8, ""),
    ],
)
def test_what_was_converted_is_said(picture: object, channels: int, size: int, remark: str) -> None:
    pixels, said = as_pixels(picture, channels, size)
    assert pixels.shape == (channels, size, size)
    assert said == remark


def test_files_are_read_as_class_folders_are(tmp_path: Path) -> None:
    """To the pixel, whatever their size and mode; a large JPEG alone is decoded at another scale there."""
    from vitlab.data.sources import load_source

    rng, pixels = np.random.default_rng(0), []
    for name, shape in (("a", (40, 30, 3)), ("a", (8, 8)), ("b", (20, 20, 4)), ("b", (8, 8, 3))):
        (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
        path = tmp_path / "images" / name / f"{len(pixels)}.png"
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
        pixels.append(as_pixels(path, 3, 8)[0])
    source = load_source(RunConfig(dataset="folder", data_dir=str(tmp_path / "images"), image_size=8, patch_size=4))
    assert torch.equal(source.train.pool, torch.stack(pixels))


@pytest.mark.parametrize(
    ("picture", "sentence"),
    [
        ("nowhere.png", "there is no picture nowhere.png"),
        (__file__, "is not a readable image"),
        (np.zeros((5, 5, 5)), "shape (5, 5, 5) is no picture"),
        (np.zeros((0, 8)), "is no picture"),
        (np.full((8, 8), 2.5), "values from 0 to 1"),
        (np.full((8, 8), np.nan), "values from 0 to 1"),
        (np.full((8, 8), 300), "from 0 to 255"),
    ],
)
def test_what_is_no_picture_is_one_sentence(picture: object, sentence: str) -> None:
    with pytest.raises(LabError) as error:
        as_pixels(picture, 1, 8)
    assert sentence in str(error.value)


def test_prediction_is_the_models_answer(train: Callable[..., Run], tiny: RunConfig, few: Source) -> None:
    run = train(tiny)
    logits, _ = run.predictions
    told = run.predict(few.test.images_at([7])[0])
    assert told.remark == ""
    assert told.answer == run.classes[logits[7].argmax()]
    assert sorted(told.probabilities.index) == sorted(run.classes)
    assert told.probabilities.is_monotonic_decreasing
    assert told.probabilities.sum() == pytest.approx(1)
    wanted = torch.from_numpy(logits[7]).softmax(0)
    torch.testing.assert_close(torch.tensor(told.probabilities[run.classes].to_numpy()), wanted, atol=2e-3, rtol=0)
    assert "resized from 20×10" not in repr(told)
    assert "cropped and resized from 20×10 to 8×8" in repr(run.predict(Image.new("L", (20, 10))))
