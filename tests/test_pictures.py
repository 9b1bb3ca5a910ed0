"""A picture of one's own becomes what the model was trained on, and says what that took."""

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import save_png
from PIL import ExifTags, Image

from vitlab.config import RunConfig
from vitlab.data import folders
from vitlab.data.pictures import as_pixels
from vitlab.data.splits import Source
from vitlab.errors import LabError
from vitlab.runs import Run

RED = Image.new("RGB", (8, 8), (250, 0, 0))
SQUARE = np.arange(64, dtype=np.uint8).reshape(8, 8)
DEEP = SQUARE.astype(np.uint16) * 1000


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
        (
            Image.new("RGBA", (12, 9)),
            1,
            8,
            "The picture was put on white, cropped and resized from 12×9 to 8×8 and made grey.",
        ),
        (Image.new("L", (28, 28)), 1, 16, "The picture was resized from 28×28 to 16×16."),
        (Image.new("LA", (8, 8)), 1, 8, "The picture was put on white."),
        (Image.new("LA", (8, 8), (0, 255)), 1, 8, ""),
        (Image.fromarray(DEEP), 1, 8, "The picture was scaled from 0 – 65535 to black – white."),
        (Image.fromarray(SQUARE.astype(np.float32) - 9), 3, 8, "The picture was scaled from -9 – 54 to black – white."),
        (np.zeros((3, 8, 8), np.uint8), 3, 8, ""),
        (Image.new("CMYK", (8, 8)), 3, 8, "The picture was made RGB from CMYK."),
        (Image.new("HSV", (8, 8)), 3, 8, "The picture was made RGB from HSV."),
    ],
)
def test_what_was_converted_is_said(picture: object, channels: int, size: int, remark: str) -> None:
    pixels, said = as_pixels(picture, channels, size)
    assert pixels.shape == (channels, size, size)
    assert said == remark


def test_which_of_a_files_pictures_was_taken_and_how_it_was_turned_is_said(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (8, 8)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("L", (8, 8)).save(tmp_path / "two.gif", save_all=True, append_images=[Image.new("L", (8, 8), 255)])
    assert as_pixels(tmp_path / "turned.jpg", 3, 8)[1] == "The picture was turned as its EXIF says."
    pixels, remark = as_pixels(tmp_path / "two.gif", 1, 8)
    assert remark == "The picture was taken as the first of 2 and made grey."
    assert not pixels.any()


def test_files_are_read_as_class_folders_are(tmp_path: Path) -> None:
    """To the pixel, whatever their size and mode."""
    from vitlab.data.sources import load_source

    rng, pixels = np.random.default_rng(0), []
    for name, shape in (("a", (40, 30, 3)), ("a", (8, 8)), ("b", (20, 20, 4)), ("b", (8, 8, 3)), ("b", (400, 300, 3))):
        (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
        path = tmp_path / "images" / name / f"{len(pixels)}.{'jpg' if 400 in shape else 'png'}"
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
        pixels.append(as_pixels(path, 3, 8)[0])
    source = load_source(RunConfig(dataset="folder", data_dir=str(tmp_path / "images"), image_size=8, patch_size=4))
    assert torch.equal(source.train.pool, torch.stack(pixels))


def test_sixteen_bit_colours_and_what_is_transparent_in_them_are_shown_as_in_a_folder(tmp_path: Path) -> None:
    pixels = np.full((8, 8, 4), 65535, np.int64)
    pixels[:4, :, 3] = 0
    save_png(tmp_path / "wide.png", pixels)
    shown, remark = as_pixels(tmp_path / "wide.png", 3, 8)
    assert remark == "The picture was read by the upper 8 of its 16 bits a colour and put on black."
    assert shown.float().mean((0, 2)).tolist() == [0] * 4 + [255] * 4
    save_png(tmp_path / "dark.png", pixels // 256)
    with pytest.raises(LabError, match=r"dark\.png has 16 bits a colour and .*: save it with 8 bits a colour"):
        as_pixels(tmp_path / "dark.png", 3, 8)


def test_picture_beyond_pillows_limit_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # refuses from twice as many on
    Image.new("RGB", (40, 40)).save(tmp_path / "large.png")
    assert as_pixels(tmp_path / "large.png", 3, 8)[0].shape == (3, 8, 8)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    """plugin(True) installs a stand-in for pillow-heif, whose files are PNG after the word heic; False removes any."""
    Image.init()
    for name in ("OPEN", "EXTENSION"):
        monkeypatch.setattr(Image, name, dict(getattr(Image, name)))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    caches = folders.register_plugins, folders._extensions, folders._signed

    def opened(file: io.BufferedReader, name: str) -> Image.Image:
        return Image.OPEN["PNG"][0](io.BytesIO(file.read()[4:]), name)

    def register() -> None:
        Image.register_open("HEIF", opened, lambda start: start.startswith(b"heic"))
        Image.register_extension("HEIF", ".heic")

    def install(there: bool) -> None:
        module = SimpleNamespace(register_heif_opener=register) if there else None  # None: it cannot be imported
        monkeypatch.setitem(sys.modules, "pillow_heif", module)
        for cached in caches:
            cached.cache_clear()

    yield install
    for cached in caches:
        cached.cache_clear()


def test_formats_of_plugins_are_read_or_the_plugin_is_named(plugin: Callable[[bool], None], tmp_path: Path) -> None:
    Image.fromarray(SQUARE).save(tmp_path / "square.png")
    (tmp_path / "square.heic").write_bytes(b"heic" + (tmp_path / "square.png").read_bytes())
    plugin(False)
    with pytest.raises(LabError, match=r"square\.heic is not a readable image .*: pip install pillow-heif, or convert"):
        as_pixels(tmp_path / "square.heic", 1, 8)
    plugin(True)
    pixels, remark = as_pixels(tmp_path / "square.heic", 1, 8)
    assert (pixels.tolist(), remark) == ([SQUARE.tolist()], "")
    (tmp_path / "square.heic").write_bytes(b"torn")
    with pytest.raises(LabError, match="name a JPEG, PNG or the like"):
        as_pixels(tmp_path / "square.heic", 1, 8)


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
