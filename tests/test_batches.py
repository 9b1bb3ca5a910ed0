"""Which images a step sees, in which order and at which size, is a function of seed and step alone."""

from itertools import islice

import pytest
import torch
from torch import Tensor

from vitlab.config import Recipe, RunConfig
from vitlab.data.batches import epoch_order, mixed_seed, size_at, to_float, training_batches
from vitlab.data.splits import Split

CPU = torch.device("cpu")


def test_float_images_span_minus_one_to_one() -> None:
    assert to_float(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]


def test_seeds_are_mixed_well_and_fit_torchs_generator() -> None:
    seeds = {mixed_seed(run, step) for run in range(30) for step in range(30)}
    assert len(seeds) == 900
    assert mixed_seed(1, 2) != mixed_seed(2, 1)
    assert all(0 <= seed < 2**32 for seed in seeds)
    bits = torch.tensor([[seed >> bit & 1 for bit in range(32)] for seed in seeds]).double().mean(0)
    assert (bits - 0.5).abs().max() < 0.1  # each bit is as often on as off


# ---------------------------------------------------------------- order


def test_order_without_weights_is_a_permutation() -> None:
    labels = torch.arange(100)
    assert torch.equal(epoch_order(labels, None, 0, 0).sort().values, torch.arange(100))


@pytest.mark.parametrize("weighted", [False, True])
def test_order_depends_on_seed_and_epoch_alone(weighted: bool) -> None:
    labels = torch.arange(1000)
    weights = torch.rand(1000) if weighted else None
    first = epoch_order(labels, weights, 3, 5)
    torch.rand(7)  # the global generator has no say
    assert torch.equal(epoch_order(labels, weights, 3, 5), first)
    assert not torch.equal(epoch_order(labels, weights, 3, 6), first)
    assert not torch.equal(epoch_order(labels, weights, 4, 5), first)
    assert not torch.equal(epoch_order(labels, weights, 4, 5), epoch_order(labels, weights, 5, 4))


def test_weights_draw_with_replacement_by_their_share() -> None:
    labels = torch.repeat_interleave(torch.arange(2), torch.tensor([900, 100]))
    drawn = labels[epoch_order(labels, torch.where(labels == 0, 1 / 900, 1 / 100), 0, 0)]
    assert drawn.double().mean() == pytest.approx(0.5, abs=0.06)


# ---------------------------------------------------------------- size


def test_images_grow_patch_by_patch_until_the_share_that_was_asked_for() -> None:
    config = RunConfig(image_size=32, patch_size=4, start_size=16, grow=0.8)
    assert [size_at(done, config, 32) for done in (0, 0.19, 0.21, 0.41, 0.61, 0.79, 0.8, 0.99)] == [
        16, 16, 20, 24, 28, 28, 32, 32
    ]  # fmt: skip
    assert size_at(0, config.replace(start_size=0), 32) == 32


def test_images_of_a_module_without_patches_grow_pixel_by_pixel() -> None:
    recipe = Recipe(start_size=30, grow=0.9)
    assert [size_at(done, recipe, 33) for done in (0, 0.31, 0.61, 0.89, 0.9)] == [30, 31, 32, 32, 33]


# ---------------------------------------------------------------- batches


@pytest.fixture
def numbered() -> Split:
    """Fifty images of one pixel, whose value is their place; every tenth of the second class."""
    places = torch.arange(50)
    return Split.whole(places.to(torch.uint8)[:, None, None, None], (places % 10 == 0).long())


def first(batches: int, split: Split, recipe: Recipe, weights: Tensor | None = None, step: int = 0) -> list[list[int]]:
    """The places that the next batches show, each with its label."""
    feed = training_batches(split, recipe, CPU, weights, step)
    shown = []
    for images, labels in islice(feed, batches):
        shown.append(images.flatten().tolist())
        assert torch.equal(labels, split.labels[shown[-1]])
    feed.close()
    return shown


def test_an_epoch_shows_every_image_once_but_those_that_fill_no_batch(numbered: Split) -> None:
    steps = first(6, numbered, Recipe(batch_size=16))
    for epoch in (steps[:3], steps[3:]):
        seen = [place for batch in epoch for place in batch]
        assert [len(batch) for batch in epoch] == [16, 16, 16]
        assert len(set(seen)) == 48
    assert steps[:3] != steps[3:]


@pytest.mark.parametrize("step", [1, 3, 5, 7])
@pytest.mark.parametrize("weighted", [False, True])
def test_batches_from_a_step_on_are_those_that_would_have_come(weighted: bool, step: int, numbered: Split) -> None:
    weights = 1.0 + numbered.labels if weighted else None
    recipe = Recipe(batch_size=16, seed=4)
    assert first(9 - step, numbered, recipe, weights, step) == first(9, numbered, recipe, weights)[step:]


def test_fewer_images_than_a_batch_are_one_batch(numbered: Split) -> None:
    steps = first(3, numbered, Recipe(batch_size=4096))
    assert [sorted(batch) for batch in steps] == [list(range(50))] * 3


@pytest.mark.parametrize("num_workers", [0, 2])
def test_images_that_do_not_fit_come_from_a_loader_in_the_same_order(
    num_workers: int, numbered: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(batch_size=16, num_workers=num_workers)
    inside = first(5, numbered, recipe)
    monkeypatch.setattr(Split, "fits", lambda *_: False)
    monkeypatch.setattr(Split, "images", property(lambda _: pytest.fail("all images at once")))
    assert first(5, numbered, recipe) == inside
