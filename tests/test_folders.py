"""Folders as people have them: everything is read, or counted, or refused in one sentence that names it."""

import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_png
from PIL import Image

from vitlab.config import RunConfig
from vitlab.data import decode, folders
from vitlab.data.folders import look_into
from vitlab.data.sources import load_source
from vitlab.data.splits import Source, Split, hold_out, split, uneven
from vitlab.errors import LabError

SIZE = 8


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITLAB_CACHE", str(tmp_path_factory.mktemp("cache")))


def picture(*seed: int, size: int = SIZE) -> Image.Image:
    """An RGB picture, another one for each seed, of middling brightness."""
    return Image.fromarray(np.random.default_rng(seed).integers(60, 200, (size, size, 3), np.uint8))


def classes(root: Path, names: tuple[str, ...] = ("cat", "dog"), n: int = 6, first: int = 0) -> Path:
    """Class folders of n pictures; those of another `first` are others."""
    for k, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(n):
            picture(k, first + i).save(root / name / f"{i}.png")
    return root


def load(root: Path) -> Source:
    return load_source(RunConfig(dataset="folder", data_dir=str(root), image_size=SIZE))


def notes(root: Path) -> str:
    return " ".join(load(root).notes)


def fault(root: Path) -> str:
    """The one sentence with which a folder is refused."""
    with pytest.raises(LabError) as caught:
        load(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def total(source: Source) -> int:
    return len(source.train) + len(source.test) + len(source.val or ())


# ---------------------------------------------------------------- what is passed over


def test_images_in_folders_inside_class_folders_are_read_and_told_of(tmp_path: Path) -> None:
    root = classes(tmp_path / "data")
    classes(root / "cat" / "batch2", ("more", "yet more"), n=3, first=50)
    source = load(root)
    assert source.classes == ("cat", "dog")
    assert total(source) == 18
    assert "6 of 18 images lie in folders inside their class folders." in source.notes


@pytest.mark.parametrize(
    ("link", "to"), [("cat/again", "cat"), ("cat/again", ""), ("cat/again", ".."), ("again", ""), ("again", "..")]
)
def test_link_to_a_folder_above_ends_and_brings_no_image_into_another_class(link: str, to: str, tmp_path: Path) -> None:
    root = classes(tmp_path / "data")
    (root / link).symlink_to(root / to)
    source = load(root)
    assert total(source) == 12
    assert source.classes == ("cat", "dog")
    assert f"1 links to a folder above ({link})" in " ".join(source.notes)


def test_link_to_a_folder_above_hides_no_part(tmp_path: Path) -> None:
    classes(tmp_path / "data" / "train")
    (tmp_path / "data" / "again").symlink_to(tmp_path)
    assert load(tmp_path / "data").classes == ("cat", "dog")


def test_folders_that_links_join_in_a_circle_are_read_once(tmp_path: Path) -> None:
    root, names = classes(tmp_path / "data"), [f"batch{i}" for i in range(4)]
    classes(root / "cat", tuple(names), n=1, first=50)
    for name in names:
        for other in names:
            (root / "cat" / name / f"to {other}").symlink_to(root / "cat" / other)
    source = load(root)
    assert total(source) == 12 + 4
    assert "folders that were read by way of a link (cat/batch" in " ".join(source.notes)


@pytest.mark.parametrize("link", ["cat/self", "self", "cat/deep/self"])
def test_link_to_itself_is_passed_over_unless_it_is_called_an_image(link: str, tmp_path: Path) -> None:
    root = classes(tmp_path / "data")
    (root / "cat" / "deep").mkdir()
    (root / link).symlink_to(root / link)
    assert total(load(root)) == 12
    assert f"({link})" in notes(root)
    (root / link).with_suffix(".png").symlink_to((root / link).with_suffix(".png"))
    if "/" in link:
        assert f"{link}.png (Too many levels of symbolic links): repair this image or remove it" in fault(root)
    else:
        assert f"1 images beside the class folders ({link}.png)" in notes(root)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("features.h5", "1 .h5 (cat/features.h5)"),
        ("film.mpg", "1 .mpg"),
        ("scan.pdf", "1 .pdf"),
        ("drawing.svg", "1 .svg"),
        ("camera.CR2", "1 .cr2"),
        ("phone.HEIC", "pip install pillow-heif"),
        ("labels.csv", "1 .csv"),
        ("README", "1 without extension"),
        ("._0.png", "1 hidden"),
        (".DS_Store", "1 hidden"),
        ("Thumbs.db", "1 hidden"),
    ],
)
def test_files_that_are_no_images_are_counted_and_named(name: str, told: str, tmp_path: Path) -> None:
    root = classes(tmp_path / "data")
    (root / "cat" / name).write_bytes(b"\x89HDF\r\n\x1a\n not a picture")
    source = load(root)
    assert total(source) == 12
    assert told in " ".join(source.notes)


@pytest.mark.parametrize("extension", ["", ".jpg_large", ".bin1", ".png~"])
def test_image_with_no_or_an_unknown_extension_is_known_by_its_bytes(extension: str, tmp_path: Path) -> None:
    root = classes(tmp_path / "data")
    picture(0, 99).save(root / "cat" / "x", format="PNG")
    (root / "cat" / "x").rename(root / "cat" / f"x{extension}")
    assert total(load(root)) == 13


def test_loose_images_and_other_folders_are_counted(tmp_path: Path) -> None:
    root = classes(tmp_path / "data")
    picture(9, 9).save(root / "cover.png")
    (root / "notes.txt").write_text("x", encoding="utf-8")
    (root / "docs").mkdir()
    told = notes(root)
    assert "1 images beside the class folders (cover.png)" in told
    assert "1 files beside the class folders (notes.txt)" in told
    assert "1 folders without images (docs)" in told


def test_folder_that_may_not_be_read_is_named_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = classes(tmp_path / "data")
    (root / "private").mkdir()
    scan = os.scandir

    def refuse(path: Path) -> object:
        if str(path).endswith("private"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(folders.os, "scandir", refuse)
    assert "1 folders that may not be read (private)" in notes(root)


@pytest.mark.parametrize("name", ["lost+found", "__MACOSX", "@eaDir", ".thumbnails"])
def test_folders_of_systems_are_no_classes(name: str, tmp_path: Path) -> None:
    root = classes(tmp_path / "data")
    classes(root / name, ("a", "b"))
    source = load(root)
    assert source.classes == ("cat", "dog")
    assert f"1 hidden ({name})" in " ".join(source.notes)


def test_report_of_ours_inside_the_folder_is_no_class(tmp_path: Path) -> None:
    root = classes(tmp_path / "data")
    (root / "report").mkdir()
    (root / "report" / "parameters.yaml").write_text("seed: 0\n", encoding="utf-8")
    picture(7, 7).save(root / "report" / "comparison.png")
    source = load(root)
    assert source.classes == ("cat", "dog")
    assert "1 reports of this lab (report)" in " ".join(source.notes)


def test_class_of_a_format_that_is_not_read_is_refused(tmp_path: Path) -> None:
    root = classes(tmp_path / "data", ("cat", "dog", "owl"))
    for path in (root / "owl").iterdir():
        path.rename(path.with_suffix(".heic"))
    assert "owl holds 6 .heic files" in fault(root)
    assert "pip install pillow-heif" in fault(root)


def test_pipe_is_not_read(tmp_path: Path) -> None:
    root = classes(tmp_path / "data")
    os.mkfifo(root / "cat" / "pipe.png")
    assert "1 sockets, pipes and devices (cat/pipe.png)" in notes(root)


# ---------------------------------------------------------------- broken images


def test_all_broken_images_are_named_in_one_pass(tmp_path: Path) -> None:
    root = classes(tmp_path / "data")
    for label, name in (("cat", "1.png"), ("dog", "2.png")):
        (root / label / name).write_bytes(b"<html>404</html>")
    (root / "dog" / "gone.png").symlink_to("/nowhere.png")
    said = fault(root)
    assert said.startswith("cannot read 3 images: ")
    assert all(str(root / place) in said for place in ("cat/1.png", "dog/2.png", "dog/gone.png"))


def test_of_many_broken_images_twenty_are_named(tmp_path: Path) -> None:
    root = classes(tmp_path / "data", n=15)
    for path in root.glob("*/*.png"):
        path.write_bytes(b"")
    assert fault(root).count(".png") == decode.LISTED
    assert "and 10 more" in fault(root)


# ---------------------------------------------------------------- pixels


def of_one_kind(root: Path, make: Callable[[int, int], Image.Image], suffix: str = "png") -> Path:
    for k, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(4):
            make(k, i).save(root / name / f"{i}.{suffix}")
    return root


def grey(k: int, i: int) -> np.ndarray:
    """All shades from black to white."""
    return np.random.default_rng([k, i]).permutation(np.linspace(0, 255, 64).round()).reshape(8, 8)


@pytest.mark.parametrize(
    ("dtype", "scale", "suffix"),
    [
        (np.float32, 1 / 255, "tif"), (np.float32, 1, "tif"), (np.float32, 257, "tif"),
        (np.uint16, 1, "png"), (np.uint16, 257, "png"), (np.int32, 1, "tif"), (np.int32, 257, "tif"),
    ],
)  # fmt: skip
def test_pixels_of_a_customary_range_keep_their_shades(dtype: type, scale: float, suffix: str, tmp_path: Path) -> None:
    root = of_one_kind(tmp_path / "data", lambda k, i: Image.fromarray((grey(k, i) * scale).astype(dtype)), suffix)
    source = load(root)
    shown = torch.cat([source.train.images, source.test.images])[:, 0].flatten(1).sort(0).values
    expected = np.sort(np.stack([grey(k, i).ravel() for k in range(2) for i in range(4)]), axis=0)
    assert np.abs(shown.numpy() - expected).max() <= 1
    assert "were scaled from 0 – " in " ".join(source.notes)


@pytest.mark.parametrize(("low", "high"), [(0, 0.02), (-1, 1), (0, 12), (-1000, 3000), (28000, 31000)])
def test_other_ranges_are_spread_over_black_to_white_by_one_rule(low: float, high: float, tmp_path: Path) -> None:
    def make(k: int, i: int) -> Image.Image:  # each class and image has a part of the whole range
        start, end = low + (high - low) * (4 * k + i) / 8, low + (high - low) * (4 * k + i + 1) / 8
        return Image.fromarray(np.linspace(start, end, 64, dtype=np.float32).reshape(8, 8))

    source = load(of_one_kind(tmp_path / "data", make, "tif"))
    shown = torch.cat([source.train.images, source.test.images]).float()
    assert (shown.min(), shown.max()) == (0, 255)
    assert shown.mean((1, 2, 3)).sort().values.diff().min() > 20  # brighter from image to image, as they are


def test_pixels_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    root = of_one_kind(tmp_path / "data", lambda k, i: Image.fromarray(grey(k, i).astype(np.float32)), "tif")
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(root / "cat" / "bad.tif")
    assert "bad.tif (some of its pixels are no finite numbers)" in fault(root)


@pytest.mark.parametrize(("scale", "readable"), [(257, True), (1, False)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_sixteen_bit_colours_are_read_only_where_the_upper_byte_tells_them(
    mode: str, scale: int, readable: bool, tmp_path: Path
) -> None:
    root = classes(tmp_path / "data")
    for path in root.glob("*/*.png"):
        pixels = picture(*path.parent.name.encode(), *path.name.encode()).convert(mode)
        save_png(path, np.asarray(pixels).astype(np.uint16) * scale)
    if readable:
        assert load(root).train.images.float().mean() > 100
    else:
        assert "16 bits a colour" in fault(root)


@pytest.mark.parametrize(("ink", "ground"), [(0, 255), (255, 0)])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_drawn_in_the_alpha_channel_is_seen(ink: int, ground: int, mode: str, tmp_path: Path) -> None:
    def make(k: int, i: int) -> Image.Image:
        pixels = np.full((8, 8, 4), ink, np.uint8)
        pixels[..., 3] = 0
        pixels[k : k + 3, i : i + 3, 3] = 255
        return Image.fromarray(pixels).convert(mode)

    source = load(of_one_kind(tmp_path / "data", make))
    assert source.train.images.unique().tolist() == [0, 255]
    assert (source.train.images == ink).float().mean() == pytest.approx(9 / 64)
    assert f"stand on {'white' if ground else 'black'}" in " ".join(source.notes)


@pytest.mark.parametrize("ink", [0, 1])
@pytest.mark.parametrize(
    ("channels", "bits", "key"),
    [(2, 16, ()), (4, 16, ()), (3, 16, (0x8000,) * 3), (1, 16, (0x8000,)), (1, 4, (8,)), (1, 2, (2,))],
)
def test_what_is_drawn_in_other_than_eight_bits_is_seen(
    channels: int, bits: int, key: tuple[int, ...], ink: int, tmp_path: Path
) -> None:
    root, full = tmp_path / "data", 2**bits - 1
    for k, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(4):
            pixels = np.full((8, 8, channels), key or full * ink, np.int64)
            pixels[..., -1:] *= bool(key)  # alpha
            pixels[k : k + 3, i : i + 3] = full * ink
            pixels[k, i] = full * (1 - ink)  # the range is known by both ends
            if not key:
                pixels[k : k + 3, i : i + 3, -1] = full
            save_png(root / name / f"{i}.png", pixels, bits, key)
    source = load(root)
    assert source.train.images.unique().tolist() == [0, 255]
    assert (source.train.images == 255 * ink).float().mean() == pytest.approx(8 / 64)
    told = " ".join(source.notes)
    assert f"8 images are transparent in places and stand on {('white', 'black')[ink]}." in told
    assert ("of which the upper 8 are compared" in told) == (channels == 3)


def test_transparent_pixels_have_no_say_in_the_range(tmp_path: Path) -> None:
    root = classes(tmp_path / "data")
    for i, path in enumerate(root.glob("*/*.png")):
        pixels = np.random.default_rng(i).permutation(np.linspace(0, 4000, 64).round()).reshape(8, 8, 1)
        save_png(path, np.vstack([pixels, np.full((1, 8, 1), 65535)]), key=(65535,))
    assert "12 16-bit or 32-bit images were scaled from 0 – 4000 to black – white." in notes(root)


def test_opaque_images_are_not_told_of(tmp_path: Path) -> None:
    source = load(of_one_kind(tmp_path / "data", lambda k, i: picture(k, i).convert("RGBA")))
    assert "transparent" not in " ".join(source.notes)


def test_of_several_pictures_in_a_file_the_first_is_used_and_told_of(tmp_path: Path) -> None:
    root = classes(tmp_path / "data")
    more = [picture(5, i) for i in range(3)]
    more[0].save(root / "cat" / "moves.gif", save_all=True, append_images=more[1:])
    assert "Of 1 files that hold several pictures the first is used." in load(root).notes


def test_image_beyond_pillows_limit_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # refuses from twice as many on
    root = classes(tmp_path / "data")
    picture(3, 3, size=40).save(root / "cat" / "large.png")
    assert total(load(root)) == 13
    assert Image.MAX_IMAGE_PIXELS == 100


def test_image_larger_than_memory_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = classes(tmp_path / "data")
    Image.new("1", (5000, 5000)).save(root / "cat" / "vast.png")
    monkeypatch.setattr(decode, "free_memory", lambda on: 2**26)
    assert "vast.png (5,000×5,000 pixels need more memory than is free: make it smaller)" in fault(root)


# ---------------------------------------------------------------- copies


def pictures_of(source: Source) -> list[set[bytes]]:
    parts = [source.train, source.test, *([source.val] if source.val else [])]
    return [{image.numpy().tobytes() for image in part.images} for part in parts]


def test_split_keeps_copies_together_and_tells_of_them(tmp_path: Path) -> None:
    root = classes(tmp_path / "data", n=12)
    for path in list(root.glob("*/*.png")):
        shutil.copy(path, path.with_name(f"{path.stem} (1).png"))
    source = load(root)
    train, test = pictures_of(source)
    assert not train & test
    assert source.test.class_counts(2).unique().numel() == 1
    assert "24 of the 48 images are copies of others; wherever we split, copies stay together." in source.notes
    for seed in range(5):
        data = split(source, RunConfig(seed=seed))
        assert len(data.val)
        assert (
            not pictures_of(Source(data.train, data.val, (), "", ()))[0]
            & pictures_of(Source(data.val, data.val, (), "", ()))[0]
        )


@pytest.mark.parametrize(("part", "word"), [("test", "test"), ("valid", "validation")])
def test_training_images_in_another_part_are_left_out(part: str, word: str, tmp_path: Path) -> None:
    classes(tmp_path / "data" / "train", n=9)
    classes(tmp_path / "data" / part, n=4)
    source = load(tmp_path / "data")
    assert f"8 of the 18 training images are {word} images as well and were left out." in source.notes
    train, *others = pictures_of(source)
    assert not any(train & other for other in others)
    assert len(source.train) == (10 if part == "test" else 8)  # where there is no test part, two are held out


def test_validation_images_that_are_tested_are_left_out(tmp_path: Path) -> None:
    classes(tmp_path / "data" / "train", first=50)
    classes(tmp_path / "data" / "val", n=6)
    classes(tmp_path / "data" / "test", n=4)
    source = load(tmp_path / "data")
    assert source.notes == ("8 of the 12 validation images are test images as well and were left out.",)
    assert source.val.class_counts(2).tolist() == [2, 2]
    shutil.rmtree(tmp_path / "data" / "val")
    shutil.copytree(tmp_path / "data" / "test", tmp_path / "data" / "val")
    source = load(tmp_path / "data")
    assert source.val is None
    assert len(split(source, RunConfig(val_fraction=0.2)).val) == 2


def test_class_whose_training_images_are_all_tested_is_refused(tmp_path: Path) -> None:
    classes(tmp_path / "data" / "train", n=4)
    classes(tmp_path / "data" / "test", n=5)
    assert "no training image of class cat is left" in fault(tmp_path / "data")


@pytest.mark.parametrize("ratio", [1.0, 1.75, 2.0, 10.0])
def test_hold_out_keeps_the_ratio_of_the_classes(ratio: float) -> None:
    sizes = torch.tensor([round(60 * ratio), 60])
    labels = torch.arange(2).repeat_interleave(sizes)
    whole = Split.whole(torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8), labels)
    train, test = hold_out(whole)
    assert len(train) + len(test) == len(whole)
    counts = train.class_counts(2)
    assert counts[0] / counts[1] == pytest.approx(ratio, rel=0.02)
    assert uneven(counts) == uneven(sizes)
    assert len(test) / len(whole) == pytest.approx(0.2, rel=0.02)


def test_picture_in_two_classes_is_told_of_and_never_held_out(tmp_path: Path) -> None:
    root = classes(tmp_path / "data", n=10)
    shutil.copy(root / "cat" / "0.png", root / "dog" / "x.png")
    source = load(root)
    train, test = pictures_of(source)
    assert not train & test
    assert "1 pictures lie in more than one class" in " ".join(source.notes)


def test_class_of_one_picture_in_many_copies_is_refused(tmp_path: Path) -> None:
    root = classes(tmp_path / "data")
    for path in list((root / "cat").glob("[1-5].png")):
        shutil.copy(root / "cat" / "0.png", path)
    assert "class cat has no two pictures of its own" in fault(root)


# ---------------------------------------------------------------- layouts and names


@pytest.mark.parametrize("names", [("train", "test"), ("Train", "TEST"), ("training", "testing")])
def test_parts_are_known_by_their_names_case_aside(names: tuple[str, str], tmp_path: Path) -> None:
    classes(tmp_path / "data" / names[0], n=6)
    classes(tmp_path / "data" / names[1], n=3, first=100)
    source = load(tmp_path / "data")
    assert (len(source.train), len(source.test), source.val) == (12, 6, None)


@pytest.mark.parametrize("name", ["val", "valid", "Validation"])
def test_validation_part_that_comes_along_is_used(name: str, tmp_path: Path) -> None:
    for i, part in enumerate(("train", name, "test")):
        classes(tmp_path / "data" / part, n=(6, 2, 3)[i], first=100 * i)
    source = load(tmp_path / "data")
    data = split(source, RunConfig())
    assert (len(data.train), len(data.val), len(data.test)) == (12, 4, 6)
    assert torch.equal(data.val.images, source.val.images)
    assert len(split(source, RunConfig(val_fraction=0)).val) == 0


def test_validation_part_decides_the_digest(tmp_path: Path) -> None:
    for i, part in enumerate(("train", "val", "test")):
        classes(tmp_path / "data" / part, n=4, first=100 * i)
    before = load(tmp_path / "data").digest
    picture(0, 999).save(tmp_path / "data" / "val" / "cat" / "0.png")
    assert load(tmp_path / "data").digest != before


def test_training_and_validation_parts_alone_give_test_images_up(tmp_path: Path) -> None:
    classes(tmp_path / "data" / "train", n=10)
    classes(tmp_path / "data" / "val", n=3, first=100)
    source = load(tmp_path / "data")
    assert (len(source.train), len(source.val), len(source.test)) == (16, 6, 4)
    assert "held out" in " ".join(source.notes)


def test_training_part_alone_is_split(tmp_path: Path) -> None:
    classes(tmp_path / "data" / "train", n=10)
    assert total(load(tmp_path / "data")) == 20


def test_class_may_be_called_train(tmp_path: Path) -> None:
    """A vehicle."""
    assert load(classes(tmp_path / "data", ("train", "bus", "car"))).classes == ("bus", "car", "train")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda r: (classes(r / "train"), classes(r / "test", ("cat",))), ["dog is missing in", "test"]),
        (lambda r: (classes(r / "train", ("cat",)), classes(r / "test")), ["only the class folder cat"]),
        (lambda r: (classes(r / "train"), (r / "test").mkdir()), ["no class folders with images"]),
        (
            lambda r: (classes(r / "train"), (r / "test").mkdir(), picture(1).save(r / "test" / "x.png")),
            ["1 images in no class folder", "held out"],
        ),
        (lambda r: (classes(r / "test"), classes(r / "val")), ["test", "no folder train"]),
        (lambda r: (classes(r / "Train"), classes(r / "training")), ["Train and training"]),
        (lambda r: (classes(r), classes(r / "test")), ["test beside the class folders cat, dog"]),
        (lambda r: [classes(r / c, ("train", "test")) for c in ("cat", "dog")], ["turn it round"]),
        (lambda r: classes(r / "unpacked"), ["did you mean the folder", "unpacked"]),
        (lambda r: (r.mkdir(), picture(1).save(r / "cat.0.png")), ["1 images in no class folder"]),
        (lambda r: r.mkdir(), ["no class folders with images"]),
        (lambda r: r.write_bytes(b"PK"), ["is a file", "unpack it"]),
    ],
)  # fmt: skip
def test_other_layouts_are_refused_with_what_was_found(
    make: Callable[[Path], object], told: list[str], tmp_path: Path
) -> None:
    make(tmp_path / "data")
    said = fault(tmp_path / "data")
    assert all(words in said for words in told), said


def test_names_that_are_composed_otherwise_are_the_same_class(tmp_path: Path) -> None:
    classes(tmp_path / "data" / "train", (unicodedata.normalize("NFC", "café"), "dog"))
    classes(tmp_path / "data" / "test", (unicodedata.normalize("NFD", "café"), "dog"), n=2, first=50)
    assert load(tmp_path / "data").classes == ("café", "dog")


def test_two_folders_that_are_written_alike_are_refused(tmp_path: Path) -> None:
    root = classes(tmp_path / "data", (unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")))
    if len(list(root.iterdir())) == 2:  # macOS makes one of them
        assert "written alike" in fault(root)


def test_names_in_other_bytes_are_shown(tmp_path: Path) -> None:
    root = classes(tmp_path / "data", ("cat", os.fsdecode(b"caf\xe9")))
    assert load(root).classes == (r"caf\xe9", "cat")


@pytest.mark.parametrize("order", [("1", "01", "001"), ("001", "01", "1"), ("01", "1", "001")])
def test_order_of_classes_does_not_depend_on_that_of_the_folders_making(order: tuple[str, ...], tmp_path: Path) -> None:
    classes(tmp_path / "data", order)
    assert load(tmp_path / "data").classes == ("001", "01", "1")


def test_link_keeps_the_name_that_the_user_gave(tmp_path: Path) -> None:
    """By it the balanced sibling is found."""
    classes(tmp_path / "store" / "v7", n=8)
    classes(tmp_path / "mine" / "pets_balanced", n=3, first=100)
    (tmp_path / "mine" / "pets_imbalanced").symlink_to(tmp_path / "store" / "v7")
    source = load(tmp_path / "mine" / "pets_imbalanced")
    assert len(source.test) == 6
    assert "pets_balanced" in source.notes[0]


# ---------------------------------------------------------------- CIFAR-10's own folder, and cifar10 for another's


def test_class_folders_are_not_taken_for_the_place_of_cifar(tmp_path: Path) -> None:
    root = classes(tmp_path / "data")
    with pytest.raises(LabError, match=r"holds the class folders cat and dog .*dataset=folder"):
        load_source(RunConfig(dataset="cifar10", data_dir=str(root), image_size=32))
    assert sorted(path.name for path in root.iterdir()) == ["cat", "dog"]


# ---------------------------------------------------------------- all oddities together


def add(root: Path, where: str, content: bytes | Image.Image) -> None:
    path = root / where
    path.parent.mkdir(parents=True, exist_ok=True)
    content.save(path) if isinstance(content, Image.Image) else path.write_bytes(content)


def some_class(root: Path, rng: np.random.Generator) -> Path:
    found = sorted({path.parent for path in root.rglob("*.png")}) or [root]
    return found[rng.integers(len(found))]


ODDITIES: dict[str, Callable[[Path, np.random.Generator], object]] = {
    "nested": lambda r, g: add(some_class(r, g), "deep/er/n.png", picture(*g.integers(999, size=3))),
    "hidden": lambda r, g: add(some_class(r, g), "._0.png", b"\0\5\x16\7"),
    "stray": lambda r, g: add(some_class(r, g), ("a.h5", "b.pdf", "c.heic", "notes")[g.integers(4)], b"\x89HDF"),
    "bare": lambda r, g: picture(*g.integers(999, size=3)).save(some_class(r, g) / "bare", format="PNG"),
    "broken": lambda r, g: add(some_class(r, g), "broken.png", (b"", b"<html>", b"\x89PNG\r\n\x1a\n")[g.integers(3)]),
    "loose": lambda r, g: add(r, "loose.png", picture(*g.integers(999, size=3))),
    "empty": lambda r, g: (r / "empty").mkdir(exist_ok=True),
    "copies": lambda r, g: [shutil.copy(p, p.with_name(f"copy {p.name}")) for p in some_class(r, g).glob("?.png")],
    "float": lambda r, g: add(some_class(r, g), "f.tif", Image.fromarray(g.normal(size=(8, 8)).astype(np.float32))),
    "deep": lambda r, g: add(some_class(r, g), "d.png", Image.fromarray(g.integers(0, 4000, (8, 8), np.uint16))),
    "nan": lambda r, g: add(some_class(r, g), "n.tif", Image.fromarray(np.full((4, 4), np.nan, np.float32))),
    "alpha": lambda r, g: add(some_class(r, g), "a.png", Image.fromarray(g.integers(0, 255, (9, 5, 4), np.uint8))),
    "palette": lambda r, g: add(some_class(r, g), "p.gif", picture(*g.integers(999, size=3)).convert("P")),
    "thin": lambda r, g: add(some_class(r, g), "t.png", Image.new("L", (1, 300), 128)),
    "part": lambda r, g: classes(r / ("test", "val", "Valid", "train")[g.integers(4)], n=2, first=500),
    "class": lambda r, g: classes(r, (("$1$", "<b>", "猫", "a" * 90, os.fsdecode(b"\xff"))[g.integers(5)],), n=3),
    "single": lambda r, g: classes(r, ("single",), n=1, first=700),
    "system": lambda r, g: classes(r / "lost+found", n=1),
    "report": lambda r, g: add(r, "old report/parameters.yaml", b"seed: 0"),
    "loop": lambda r, g: (some_class(r, g) / "loop").symlink_to(r),
    "circle": lambda r, g: (some_class(r, g) / "circle").symlink_to("circle"),
    "dead link": lambda r, g: (some_class(r, g) / "dead.png").symlink_to("/nowhere"),
    "pipe": lambda r, g: os.mkfifo(some_class(r, g) / "pipe.png"),
}


# with any of these together a folder is read
HARMLESS = {
    *("nested", "hidden", "bare", "loose", "empty", "float", "alpha", "palette", "thin", "system", "report", "loop"),
    "circle",
}


def files_below(root: Path) -> set[str]:
    """All that is no folder, by path; links are not followed."""
    return {os.path.join(place, name) for place, folders, names in os.walk(root) for name in names}


def accounted_for(root: Path) -> set[str]:
    found = look_into(root)
    read = {path for part in found.rows.values() for rows in part.values() for path, *_ in rows}
    over = {path for paths in found.passed_over.values() for path in paths}
    assert not read & over
    return read | over | {path for folder in over for path in files_below(Path(folder))}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_no_folder_ends_in_a_traceback_or_a_silent_loss(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    root = tmp_path / "data"
    if rng.random() < 0.5:
        classes(root, n=4)
    else:
        for i, part in enumerate(("train", "test")):
            classes(root / part, n=4, first=50 * i)
    drawn = rng.choice(sorted(ODDITIES), size=rng.integers(1, 6), replace=False)
    for name in drawn:
        try:
            ODDITIES[name](root, rng)
        except FileExistsError:  # two oddities of one name
            continue
    try:
        source = load(root)
    except LabError as error:
        said = str(error)
        assert not HARMLESS.issuperset(drawn), said
        assert "\n" not in said, drawn
        assert ": " in said, f"{said!r} does not say what to do"
        return
    assert files_below(root) <= accounted_for(root), drawn
    assert total(source) == len(look_into(root)) or "and were left out" in " ".join(source.notes), drawn
    counts = [source.train.class_counts(len(source.classes)), source.test.class_counts(len(source.classes))]
    assert min(int(count.min()) for count in counts) > 0, drawn
    parts = pictures_of(source)
    told = " ".join(source.notes)
    untold = [kind for kind, paths in look_into(root).passed_over.items() if f"{len(paths):,} {kind}" not in told]
    assert not untold, drawn
    assert not parts[0] & parts[1], drawn
    data = split(source, RunConfig(seed=seed))
    assert len(data.train) + len(data.val) == len(source.train) + len(source.val or ()), drawn
    assert data.class_counts.min() > 0, drawn
