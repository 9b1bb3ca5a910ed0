"""Every source is read right, class folders of any kind too, and decoded once."""

import errno
import urllib.error
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from vitlab import machine
from vitlab.config import RunConfig
from vitlab.data import sources
from vitlab.data.sources import load_source
from vitlab.data.splits import Source, split
from vitlab.errors import LabError

# ---------------------------------------------------------------- digits


def test_digits_are_the_scans_themselves_at_their_own_size(digits: Source) -> None:
    from sklearn.datasets import load_digits

    scans = load_digits()
    for part in (digits.train, digits.test):
        expected = torch.from_numpy((scans.images / 16 * 255).round().astype(np.uint8))[part.index]
        assert torch.equal(part.images[:, 0], expected)
        assert torch.equal(part.labels, torch.from_numpy(scans.target)[part.index])
    assert len(digits.notes) == 1
    assert "13 people" in digits.notes[0]
    assert "16×16" in load_source(RunConfig(image_size=16)).notes[0]


def test_test_part_of_digits_is_balanced_and_the_same_for_every_seed(digits: Source) -> None:
    assert digits.test.class_counts(10).unique().numel() == 1
    other = load_source(RunConfig(image_size=8, seed=5))
    assert other.digest == digits.digest
    assert torch.equal(other.test.index, digits.test.index)


# ---------------------------------------------------------------- class folders


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Decoded folders go here instead of into the repository."""
    monkeypatch.setenv("VITLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(path: Path, colour: tuple[int, int, int] = (200, 100, 50), mode: str = "RGB", size: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), colour).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """folder(parts, classes, n): `root/<part>/<class>/<i>.png`, each class of its own grey."""

    def make(parts: tuple[str, ...] = ("train", "test"), classes: tuple[str, ...] = ("cat", "dog"), n: int = 4) -> Path:
        for part in parts:
            for k, name in enumerate(classes):
                for i in range(n):
                    write(tmp_path / "photos" / part / name / f"{i}.png", (20 * k, 20 * k + len(part), i))
        return tmp_path / "photos"

    return make


def load(root: Path, size: int = 8) -> Source:
    return load_source(RunConfig(dataset="folder", data_dir=str(root), image_size=size))


@pytest.mark.parametrize(
    ("mode", "extension"),
    [
        ("RGB", "png"), ("RGB", "jpg"), ("RGB", "bmp"), ("RGB", "gif"), ("RGB", "webp"), ("RGB", "tiff"),
        ("RGB", "JPEG"),
        ("L", "png"), ("L", "jpg"), ("RGBA", "png"), ("P", "png"), ("P", "gif"), ("1", "png"), ("1", "bmp"),
        ("LA", "png"), ("CMYK", "jpg"),
    ],
)  # fmt: skip
def test_any_format_and_mode_is_read_as_rgb(folder: Callable[..., Path], mode: str, extension: str) -> None:
    root = folder()
    write(root / "train" / "cat" / f"z.{extension}", mode=mode)
    source = load(root)
    got = source.train.images[4].float().mean((1, 2))  # after cat's four others
    white, grey = [255.0] * 3, [124.0] * 3  # what is left of (200, 100, 50) without colour
    expected = {"1": None, "L": grey, "LA": grey}.get(mode, [200.0, 100.0, 50.0])
    if expected is None:  # dithered: black and white in the share that makes the grey
        assert set(source.train.images[4].unique().tolist()) == {0, 255}
        assert got.mean() < white[0]
    else:
        assert got.tolist() == pytest.approx(expected, abs=12)  # JPEG and palettes round


def test_sixteen_bit_grey_keeps_its_shades(folder: Callable[..., Path]) -> None:
    root = folder()
    shades = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(shades).save(root / "train" / "cat" / "z.png")
    assert load(root).train.images[4, 0].flatten().tolist() == pytest.approx((shades / 257).flatten(), abs=1)


def test_labels_and_parts_follow_the_folders(folder: Callable[..., Path]) -> None:
    source = load(folder(classes=("dog", "ant", "cat"), n=3))
    assert source.classes == ("ant", "cat", "dog")
    for part in (source.train, source.test):
        assert part.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert part.images[:, 0, 0, 0].tolist() == [20] * 3 + [40] * 3 + [0] * 3
    assert source.notes == ()


def test_numeric_class_names_sort_as_numbers(folder: Callable[..., Path]) -> None:
    names = tuple(str(k) for k in range(11))
    source = load(folder(classes=names))
    assert source.classes == names
    assert source.train.images[source.train.labels == 10][0, 0, 0, 0] == 200


def test_folder_without_parts_is_split_by_us_with_equal_test_classes(folder: Callable[..., Path]) -> None:
    root = folder(parts=("",), n=20)
    source = load(root)
    assert source.train.class_counts(2).tolist() == [16, 16]
    assert source.test.class_counts(2).tolist() == [4, 4]
    shown = torch.cat([source.train.images, source.test.images])[:, :, 0, 0]
    assert len(shown.unique(dim=0)) == 40  # each picture once
    assert "8 images were held out for it, 4 of each class" in source.notes[0]
    assert "So few" in source.notes[1]


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """`CIFAR10_imbalanced/0..9`, 20 to 2 images a class, and `CIFAR10_balance/0..9` with two others of each."""
    for k in range(10):
        for i in range(20 - 2 * k):
            write(tmp_path / "CIFAR10_imbalanced" / str(k) / f"{i}.png", (20 * k, 0, i))
        for i in range(2):
            write(tmp_path / "CIFAR10_balance" / str(k) / f"{i}.png", (20 * k, 255, i))
    return tmp_path / "CIFAR10_imbalanced"


@pytest.mark.parametrize("sibling", ["CIFAR10_balance", "CIFAR10_balanced"])
def test_imbalanced_folder_is_tested_on_its_balanced_sibling(course: Path, sibling: str) -> None:
    (course.parent / "CIFAR10_balance").rename(course.parent / sibling)
    source = load(course)
    assert source.imbalanced
    assert source.train.class_counts(10).tolist() == [20 - 2 * k for k in range(10)]
    assert source.test.class_counts(10).tolist() == [2] * 10
    assert source.test.images[:, 1].unique().tolist() == [255]
    assert source.notes == (f"The test images are those of {sibling}, the folder beside it.",)
    parts = split(source, RunConfig())
    assert parts.val.class_counts(10).tolist() == [1] * 10
    assert parts.class_counts.tolist() == [19 - 2 * k for k in range(10)]


def test_imbalanced_folder_without_a_sibling_gives_up_some_images_for_testing(course: Path) -> None:
    (course.parent / "CIFAR10_balance").rename(course.parent / "elsewhere")
    source = load(course)
    assert source.test.class_counts(10).tolist() == [4, 4, 3, 3, 2, 2, 2, 1, 1, 1]  # a fifth of each
    assert "held out" in source.notes[0]


def test_training_images_that_the_balanced_sibling_holds_are_left_out(course: Path) -> None:
    shown = course.parent / "CIFAR10_balance" / "3" / "0.png"
    shown.write_bytes((course / "3" / "0.png").read_bytes())
    source = load(course)
    assert "1 of the 110 training images are test images as well and were left out." in source.notes
    assert source.train.class_counts(10).tolist()[3] == 13


def test_sibling_with_other_classes_is_refused(course: Path) -> None:
    (course.parent / "CIFAR10_balance" / "9").rename(course.parent / "CIFAR10_balance" / "10")
    assert "different classes" in fault(course)


def test_balanced_folder_alone_looks_for_no_sibling(course: Path) -> None:
    source = load(course.parent / "CIFAR10_balance")
    assert len(source.train) + len(source.test) == 20


def test_other_sizes_are_resized_and_the_note_counts_them(folder: Callable[..., Path]) -> None:
    root = folder()
    write(root / "train" / "cat" / "big.png", (250, 0, 0), size=31)
    write(root / "train" / "cat" / "small.png", (0, 250, 0), size=3)
    source = load(root)
    assert source.notes == ("2 of 10 images were cropped and resized to 8×8.",)
    assert source.train.images[4, :, 4, 4].tolist() == [250, 0, 0]
    assert source.train.images[5, :, 4, 4].tolist() == [0, 250, 0]


def test_oblong_image_is_cropped_not_squeezed(folder: Callable[..., Path]) -> None:
    root = folder()
    picture = np.zeros((8, 24, 3), np.uint8)
    picture[:, 8:16] = 255
    Image.fromarray(picture).save(root / "train" / "cat" / "z.png")
    assert load(root).train.images[4].min() == 255


def test_photograph_taken_on_its_side_is_turned_and_a_large_one_keeps_its_picture(folder: Callable[..., Path]) -> None:
    root = folder()
    picture = np.zeros((400, 400, 3), np.uint8)
    picture[:200] = 255  # white above black, as the sensor saw it; 6: the camera was turned to the right
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(picture).save(root / "train" / "cat" / "y.jpg")
    Image.fromarray(picture).save(root / "train" / "cat" / "z.jpg", exif=exif)
    upright, turned = load(root).train.images[4:6, 0].int()
    assert upright[:3].min() > 250
    assert upright[5:].max() < 5
    assert turned[:, 5:].min() > 250  # white is to the right now
    assert turned[:, :3].max() < 5


def test_other_files_and_hidden_or_empty_folders_are_passed_over(folder: Callable[..., Path]) -> None:
    root = folder()
    (root / "train" / "cat" / "notes.txt").write_text("not a picture")
    (root / "train" / ".ipynb_checkpoints").mkdir()
    (root / "train" / "empty").mkdir()
    (root / "train" / "list.csv").write_text("a,b")
    source = load(root)
    assert source.classes == ("cat", "dog")
    assert len(source.train) == 8


def test_folder_is_decoded_once(folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    root = folder()
    first = load(root)
    monkeypatch.setattr(sources, "decode", lambda *_: pytest.fail("decoded again"))
    second = load(root)
    assert (second.digest, second.classes, second.notes) == (first.digest, first.classes, first.notes)
    assert torch.equal(second.train.images, first.train.images)
    assert torch.equal(second.test.labels, first.test.labels)
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("change", ["change", "add", "remove"])
def test_changed_folder_is_decoded_again(folder: Callable[..., Path], change: str) -> None:
    root = folder()
    before = load(root)
    path = root / "train" / "cat" / "0.png"
    if change == "change":
        write(path, (1, 2, 3))
    elif change == "add":
        write(path.with_name("new.png"))
    else:
        path.unlink()
    after = load(root)
    assert after.digest != before.digest
    assert len(after.train) == {"change": 8, "add": 9, "remove": 7}[change]


def test_each_image_size_has_its_own_cache(folder: Callable[..., Path]) -> None:
    root = folder()
    assert load(root, 8).train.images.shape[-1] == 8
    assert load(root, 4).train.images.shape[-1] == 4


def test_same_pictures_in_another_place_have_the_same_digest(folder: Callable[..., Path], tmp_path: Path) -> None:
    root = folder()
    before = load(root).digest
    root.rename(tmp_path / "moved")
    assert load(tmp_path / "moved").digest == before


def fault(root: Path) -> str:
    with pytest.raises(LabError) as caught:
        load(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in fault(tmp_path / "nowhere")


def test_a_single_class_is_not_enough(folder: Callable[..., Path]) -> None:
    assert "only the class folder cat" in fault(folder(parts=("",), classes=("cat",)))


def test_folder_without_class_folders_says_so(tmp_path: Path) -> None:
    write(tmp_path / "loose" / "a.png")
    assert "no class folders" in fault(tmp_path / "loose")


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_broken_image_is_named(folder: Callable[..., Path], content: bytes) -> None:
    root = folder()
    (root / "test" / "dog" / "broken.png").write_bytes(content)
    assert str(root / "test" / "dog" / "broken.png") in fault(root)


def test_image_that_was_cut_short_is_named(folder: Callable[..., Path]) -> None:
    root = folder()
    path = root / "train" / "cat" / "cut.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:4000])
    assert str(path) in fault(root)


def test_train_and_test_with_different_classes_are_refused(folder: Callable[..., Path]) -> None:
    root = folder()
    write(root / "train" / "emu" / "a.png")
    assert "different classes" in fault(root)


def test_class_with_a_single_image_is_refused_or_kept_for_training(folder: Callable[..., Path]) -> None:
    root = folder(parts=("",), n=10)
    write(root / "emu" / "only.png")
    try:
        source = load(root)
    except LabError as error:
        assert "emu" in str(error)  # noqa: PT017 - either outcome is right, a class that nobody trains on is not
    else:
        assert source.train.class_counts(3).min() >= 1


# ---------------------------------------------------------------- CIFAR-10


class Archive:
    """Stands in for torchvision's CIFAR10: 20 pictures of 32×32 a part."""

    classes = ("plane", "car")

    def __init__(self, root: Path, train: bool, download: bool) -> None:
        self.data = np.random.default_rng(int(train)).integers(0, 256, (20, 32, 32, 3), np.uint8)
        self.targets = [0, 1] * 10


@pytest.mark.parametrize(
    "error",
    [urllib.error.URLError("no route"), RuntimeError("File not found or corrupted."), OSError(28, "No space left")],
)
def test_cifar_without_network_names_the_other_choices(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("torchvision.datasets.CIFAR10", offline)
    with pytest.raises(LabError) as caught:
        load_source(RunConfig(dataset="cifar10", data_dir=str(tmp_path), image_size=32))
    text = str(caught.value)
    assert all(words in text for words in (str(tmp_path), "cifar-10-batches-py", "dataset=folder", "dataset=digits"))
    assert "\n" not in text


def test_cifar_is_read_whole_and_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig(dataset="cifar10", data_dir=str(tmp_path), image_size=32)
    monkeypatch.setattr("torchvision.datasets.CIFAR10", Archive)
    source = load_source(config)
    expected = Archive(tmp_path, train=True, download=True)
    assert torch.equal(source.train.images, torch.from_numpy(expected.data).permute(0, 3, 1, 2))
    assert source.train.labels.tolist() == expected.targets
    assert not torch.equal(source.train.images, source.test.images)
    assert (source.classes, source.notes) == (("plane", "car"), ())
    monkeypatch.setattr("torchvision.datasets.CIFAR10", lambda *_, **__: pytest.fail("read again"))
    assert load_source(config).digest == source.digest


def test_cifar_at_another_size_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.CIFAR10", Archive)
    source = load_source(RunConfig(dataset="cifar10", data_dir=str(tmp_path), image_size=16))
    assert source.train.images.shape == (20, 3, 16, 16)
    assert "32×32 to 16×16" in source.notes[0]


def test_existing_copy_of_cifar_may_lie_where_nobody_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setattr("torchvision.datasets.CIFAR10", Archive)
    load_source(RunConfig(dataset="cifar10", data_dir=str(shared), image_size=32))
    assert list(shared.iterdir()) == []  # our cache lies elsewhere: a cluster's data sets are read-only


def test_link_to_nowhere_is_named(folder: Callable[..., Path]) -> None:
    root = folder()
    broken = next(root.rglob("*.png")).with_name("moved.png")
    broken.symlink_to("/nowhere/moved.png")
    with pytest.raises(LabError, match=f"cannot read {broken} "):
        load_source(RunConfig(dataset="folder", data_dir=str(root), image_size=8))


def test_disk_too_small_for_a_folder_larger_than_memory_is_one_sentence(
    folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    def full(*arguments: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: SimpleNamespace(available=100, total=2**34))
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(LabError, match=r"No space left on device.*free some space"):
        load_source(RunConfig(dataset="folder", data_dir=str(folder()), image_size=8))


def test_folder_larger_than_memory_is_mapped_from_the_disk_with_the_same_content(
    folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    config = RunConfig(dataset="folder", data_dir=str(folder()), image_size=8)
    inside = load_source(config)
    for path in cache.glob("*.pt"):
        path.unlink()
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: SimpleNamespace(available=100, total=2**34))
    memmap, shapes = np.memmap, []
    monkeypatch.setattr(np, "memmap", lambda *a, shape: shapes.append(shape) or memmap(*a, shape=shape))
    load, loaded = torch.load, []
    monkeypatch.setattr(torch, "load", lambda *a, mmap, **k: loaded.append(mmap) or load(*a, mmap=mmap, **k))
    decoded, mapped = load_source(config), load_source(config)
    assert shapes == [(16, 3, 8, 8)]  # train and test, decoded once
    assert not mapped.train.fits(torch.device("cpu"))
    assert loaded == [True]
    for source in (decoded, mapped):
        assert source.digest == inside.digest
        assert torch.equal(source.train.images, inside.train.images)
