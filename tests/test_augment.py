"""Augmentation draws for every sample anew, and the targets tell what the pixels show."""

from itertools import product

import pytest
import torch
from torch import Tensor

from vitlab.config import Recipe
from vitlab.data.augment import augment, shift_and_flip
from vitlab.data.batches import to_float

PLAIN = Recipe(crop=0, flip=False, cutout=0, mixup=0, cutmix=0)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8)


@pytest.fixture
def constant() -> tuple[Tensor, Tensor]:
    """Image i is filled with the value i and is of class i: every pixel tells which image it came from."""
    labels = torch.arange(50)
    return labels.to(torch.uint8)[:, None, None, None].expand(-1, 3, 16, 16).clone(), labels


def sources(images: Tensor) -> Tensor:
    """Float pixels back to the value of the constant image that they came from."""
    return (images + 1) * 127.5


def test_nothing_asked_nothing_changed(images: Tensor) -> None:
    labels = torch.arange(64) % 10
    out, targets = augment(images, labels, 10, PLAIN)
    assert torch.equal(out, to_float(images))
    assert torch.equal(targets.argmax(1), labels)
    assert targets.sum(1).eq(1).all()


def test_flip_alone_gives_each_image_or_its_mirror_about_half_each(images: Tensor) -> None:
    images = images.repeat(8, 1, 1, 1)
    out = shift_and_flip(images, 0, True)
    same = (out == images).flatten(1).all(1)
    mirrored = (out == images.flip(3)).flatten(1).all(1)
    assert torch.equal(same, ~mirrored)
    assert 0.4 < mirrored.double().mean() < 0.6


def test_crop_alone_shifts_with_a_reflected_border_by_every_offset(images: Tensor) -> None:
    crop = 2
    images = images[:1].expand(400, -1, -1, -1)
    padded = torch.nn.functional.pad(images[:1].float(), (crop,) * 4, mode="reflect")
    offsets = product(range(2 * crop + 1), repeat=2)
    windows = {(dy, dx): padded[0, :, dy : dy + 16, dx : dx + 16] for dy, dx in offsets}
    seen = set()
    for image in shift_and_flip(images, crop, False):
        [offset] = [key for key, window in windows.items() if torch.equal(image.float(), window)]
        seen.add(offset)
    assert seen == set(windows)


def test_crop_keeps_the_type_and_the_set_of_values(images: Tensor) -> None:
    out = shift_and_flip(images, 4, True)
    assert out.dtype == torch.uint8
    assert all(set(a.unique().tolist()) <= set(b.unique().tolist()) for a, b in zip(out, images, strict=True))


@pytest.mark.parametrize("name", ["crop", "flip", "cutout", "mixup", "cutmix"])
def test_each_sample_has_its_own_draw(name: str) -> None:
    change = {name: {"crop": 2, "flip": True, "cutout": 0.5}.get(name, 1.0)}
    image = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    images = torch.cat([image.expand(16, -1, -1, -1), 255 - image.expand(16, -1, -1, -1)])
    out, _ = augment(images, torch.arange(32) % 2, 2, PLAIN.replace(**change))
    assert len(out[:16].unique(dim=0)) > 1


def test_cutout_hides_one_square_of_the_asked_side_cut_at_the_edge() -> None:
    images = torch.full((500, 3, 16, 16), 255, dtype=torch.uint8)
    out, targets = augment(images, torch.zeros(500, dtype=torch.long), 2, PLAIN.replace(cutout=0.5))
    hidden = out == 0
    assert torch.equal(hidden.all(1), hidden.any(1))  # the same place in all channels
    rows, columns = hidden[:, 0].any(2).sum(1), hidden[:, 0].any(1).sum(1)
    assert torch.equal(hidden[:, 0].sum((1, 2)), rows * columns)  # a filled rectangle
    assert rows.max() == columns.max() == 8
    assert rows.min() >= 3  # the centre lies within the image: half of the square at least
    assert ((rows == 8) & (columns == 8)).any()
    assert targets[:, 0].eq(1).all()


def test_mixup_mixes_pixels_as_it_mixes_targets(constant: tuple[Tensor, Tensor]) -> None:
    images, labels = constant
    out, targets = augment(images, labels, 50, PLAIN.replace(mixup=1.0))
    values = sources(out)
    expected = (targets * torch.arange(50)).sum(1)
    torch.testing.assert_close(values, expected[:, None, None, None].expand_as(values), atol=1e-3, rtol=0)
    torch.testing.assert_close(targets.sum(1), torch.ones(50))
    assert ((targets > 0).sum(1) <= 2).all()
    assert len(targets.max(1).values.unique()) > 25  # a share per sample, not one for the batch


def test_cutmix_target_is_the_share_of_pixels(constant: tuple[Tensor, Tensor]) -> None:
    images, labels = constant
    out, targets = augment(images, labels, 50, PLAIN.replace(cutmix=1.0))
    values = sources(out).round().long()[:, 0]
    shares = torch.stack([values.flatten(1).eq(k).double().mean(1) for k in range(50)], 1)
    torch.testing.assert_close(targets.double(), shares, atol=1e-6, rtol=0)
    mixed = (targets > 0).sum(1) == 2
    assert mixed.sum() > 25
    for picture, target in zip(values[mixed], targets[mixed], strict=True):  # what was pasted is one rectangle
        parts = [picture == k for k in target.nonzero()[:, 0]]
        assert any(part.sum() == part.any(0).sum() * part.any(1).sum() for part in parts)


def test_mixup_and_cutmix_together_draw_one_of_them_for_each_sample(constant: tuple[Tensor, Tensor]) -> None:
    images, labels = constant
    images, labels = images.repeat(8, 1, 1, 1), labels.repeat(8)
    out, targets = augment(images, labels, 50, PLAIN.replace(mixup=1.0, cutmix=1.0))
    values = sources(out)[:, 0].flatten(1)
    torch.testing.assert_close(values.mean(1), (targets * torch.arange(50)).sum(1), atol=1e-3, rtol=0)
    cut = values.amax(1) - values.amin(1) > 0.5
    assert 0.3 < cut.double().mean() < 0.6  # a few boxes hold all or nothing


def test_mixup_of_small_alpha_has_no_nan(constant: tuple[Tensor, Tensor]) -> None:
    out, targets = augment(*constant, 50, PLAIN.replace(mixup=0.01))
    assert out.isfinite().all()
    assert targets.isfinite().all()


def test_images_are_scaled_down_to_the_size_that_is_asked_for() -> None:
    white = torch.full((2, 3, 32, 32), 255, dtype=torch.uint8)
    small, targets = augment(white, torch.tensor([0, 1]), 2, PLAIN.replace(crop=4), 16)
    assert small.shape == (2, 3, 16, 16)
    torch.testing.assert_close(small, torch.ones(2, 3, 16, 16))
    assert targets.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("name", ["cutmix", "mixup"])
def test_targets_follow_the_pixels_of_images_that_were_scaled_down(name: str, constant: tuple[Tensor, Tensor]) -> None:
    out, targets = augment(*constant, 50, PLAIN.replace(**{name: 1.0}), 8)
    assert out.shape[-1] == 8
    shown = sources(out).mean((1, 2, 3))
    torch.testing.assert_close(shown, (targets * torch.arange(50)).sum(1), atol=1e-3, rtol=0)
