"""Splits are disjoint, counts are exact, and what each image is goes with it."""

from itertools import pairwise

import pytest
import torch

from vitlab.config import RunConfig
from vitlab.data.splits import Source, Split, imbalanced_counts, split


def blank(per_class: list[int]) -> Split:
    """One-pixel images, so many of each class, in mixed order."""
    labels = torch.repeat_interleave(torch.arange(len(per_class)), torch.tensor(per_class))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    return Split.whole(torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8), labels)


@pytest.fixture(scope="module")
def cifar() -> Source:
    """As many labels as CIFAR-10 has, without its pictures."""
    return Source(blank([5000] * 10), blank([1000] * 10), tuple("abcdefghij"), digest="", notes=())


def test_digits_are_all_there_and_nothing_is_in_two_parts(digits: Source) -> None:
    assert len(digits.train) + len(digits.test) == 1797
    parts = split(digits, RunConfig(image_size=8))
    index = torch.cat([parts.train.index, parts.val.index, parts.test.index])
    assert torch.equal(index.sort().values, torch.arange(1797))


@pytest.mark.parametrize("seed", range(3))
def test_validation_holds_the_same_number_of_every_class(digits: Source, seed: int) -> None:
    counts = split(digits, RunConfig(image_size=8, seed=seed)).val.class_counts(10)
    assert counts.min() == counts.max() == round(0.1 * len(digits.train) / 10)


def test_validation_leaves_every_class_something_to_learn_from() -> None:
    source = Source(blank([500, 4]), blank([10, 10]), ("many", "four"), digest="", notes=())
    parts = split(source, RunConfig(val_fraction=0.5))
    assert parts.val.class_counts(2).tolist() == [2, 2]
    assert parts.train.class_counts(2).tolist() == [498, 2]


def test_validation_takes_a_share_of_the_rarest_class_from_each() -> None:
    course = Source(blank([5000 - 500 * k for k in range(10)]), blank([10] * 10), tuple("abcdefghij"), "", ())
    parts = split(course, RunConfig())
    assert parts.val.class_counts(10).tolist() == [50] * 10
    assert parts.class_counts.tolist() == [4950 - 500 * k for k in range(10)]
    assert len(split(course, RunConfig(val_fraction=0)).train) == 27_500


def test_rarest_class_of_a_few_images_still_validates_with_one() -> None:
    parts = split(Source(blank([40, 3]), blank([2, 2]), ("many", "three"), "", ()), RunConfig())
    assert parts.val.class_counts(2).tolist() == [1, 1]
    assert parts.class_counts.tolist() == [39, 2]


@pytest.mark.parametrize(
    ("counts", "imbalanced"), [([5000] * 10, False), ([142, 146, 138], False), ([20, 10], True), ([500, 50], True)]
)
def test_source_comes_imbalanced_where_a_class_is_twice_another(counts: list[int], imbalanced: bool) -> None:
    source = Source(blank(counts), blank([5] * len(counts)), tuple("abcdefghij"[: len(counts)]), "", ())
    assert source.imbalanced is imbalanced


def test_split_keeps_each_image_with_its_label_and_index(digits: Source) -> None:
    place = {int(index): i for i, index in enumerate(digits.train.index)}
    parts = split(digits, RunConfig(image_size=8, imbalance="linear"))
    for part in (parts.train, parts.val):
        chosen = [place[int(index)] for index in part.index]
        assert torch.equal(part.images, digits.train.images[chosen])
        assert torch.equal(part.labels, digits.train.labels[chosen])


# ---------------------------------------------------------------- imbalance


@pytest.mark.parametrize(
    ("fraction", "profile", "expected"),
    [
        (0.1, "none", [4500] * 10),
        (0.1, "linear", [4500, 4050, 3600, 3150, 2700, 2250, 1800, 1350, 900, 450]),
        (0.0, "linear", [5000, 4500, 4000, 3500, 3000, 2500, 2000, 1500, 1000, 500]),  # the course's 27,500 images
        (0.0, "exponential", [5000, 3871, 2997, 2321, 1797, 1391, 1077, 834, 646, 500]),
    ],
)
def test_counts_of_each_class_are_exact(cifar: Source, fraction: float, profile: str, expected: list[int]) -> None:
    parts = split(cifar, RunConfig(val_fraction=fraction, imbalance=profile, imbalance_ratio=10))
    assert parts.class_counts.tolist() == expected
    assert parts.val.class_counts(10).tolist() == [5000 * fraction] * 10
    assert parts.test.class_counts(10).tolist() == [1000] * 10
    if (fraction, profile) == (0.0, "linear"):
        assert len(parts.train) == 27_500


@pytest.mark.parametrize("profile", ["linear", "exponential"])
def test_seed_draws_which_classes_are_rare(profile: str, cifar: Source) -> None:
    config = RunConfig(imbalance=profile, imbalance_order="random")
    ordered = split(cifar, config.replace(imbalance_order="classes"))
    drawn = [split(cifar, config.replace(seed=seed)) for seed in range(4)]
    assert all(sorted(parts.class_counts.tolist(), reverse=True) == ordered.class_counts.tolist() for parts in drawn)
    assert len({tuple(parts.class_counts.tolist()) for parts in drawn}) == 4
    assert torch.equal(split(cifar, config).train.index, drawn[0].train.index)
    assert torch.equal(ordered.val.index, drawn[0].val.index)  # neither validation nor test knows of it
    assert split(cifar, config.replace(imbalance="none")).class_counts.tolist() == [4500] * 10


def test_exponential_counts_fall_by_a_constant_factor() -> None:
    counts = imbalanced_counts([100_000] * 10, "exponential", 100)
    assert (counts[0], counts[-1]) == (100_000, 1000)
    factors = [a / b for a, b in pairwise(counts)]
    assert factors == pytest.approx([100 ** (1 / 9)] * 9, rel=1e-3)


def test_imbalance_never_asks_for_more_than_the_scarcest_class_has() -> None:
    available = [178, 182, 177, 174]
    counts = imbalanced_counts(available, "linear", 2)
    assert counts[0] == 174
    assert counts[-1] == 87


def test_even_the_steepest_tail_keeps_an_image_of_each_class() -> None:
    assert min(imbalanced_counts([100] * 10, "exponential", 1e6)) == 1


def test_ratio_of_one_is_balance() -> None:
    assert imbalanced_counts([50, 60], "linear", 1) == imbalanced_counts([50, 60], "exponential", 1) == [50, 50]


def test_choice_of_images_follows_the_seed(digits: Source) -> None:
    def index(seed: int) -> tuple[list[int], list[int]]:
        parts = split(digits, RunConfig(image_size=8, seed=seed, imbalance="exponential"))
        return parts.train.index.tolist(), parts.val.index.tolist()

    assert index(0) == index(0)
    assert index(0)[0] != index(1)[0]
    assert index(0)[1] != index(1)[1]


def test_no_validation_split_is_empty_not_absent(digits: Source) -> None:
    parts = split(digits, RunConfig(image_size=8, val_fraction=0))
    assert len(parts.val) == 0
    assert len(parts.train) == len(digits.train)


# ---------------------------------------------------------------- parts of a whole


@pytest.fixture
def whole() -> Split:
    """Four images, of a class each, all of whose bytes differ."""
    return Split.whole(torch.arange(48, dtype=torch.uint8).view(4, 3, 2, 2), torch.arange(4))


@pytest.mark.parametrize("places", [[3, 0, 2], []])
def test_split_moves_its_own_images_in_their_order(places: list[int], whole: Split) -> None:
    part = whole.take(torch.tensor(places, dtype=torch.long))
    images, labels = part.to(torch.device("cpu"))
    assert torch.equal(images, part.images)
    assert labels.tolist() == places


@pytest.mark.parametrize("places", [[1], [2, 0], slice(None, None, 2)])
def test_images_at_some_places_are_those_of_the_split_not_of_the_whole(places: list[int] | slice, whole: Split) -> None:
    part = whole.take(torch.tensor([3, 0, 2]))
    assert torch.equal(part.images_at(places), part.images[places])


def test_digest_of_a_split_is_that_of_its_images_and_labels_in_their_order(whole: Split) -> None:
    part = whole.take(torch.tensor([3, 1]))
    copy = Split.whole(whole.pool[[3, 1]], whole.labels[[3, 1]])
    assert part.digest == copy.digest
    others = (
        whole,
        whole.take(torch.tensor([1, 3])),
        Split.whole(copy.pool, copy.labels + 1),
        whole.take(part.labels[:1]),
    )
    assert part.digest not in {other.digest for other in others}


def test_data_know_their_source_their_channels_and_the_size_of_each_class(whole: Split) -> None:
    source = Source(whole.take(torch.tensor([0, 0, 1])), whole, tuple("abcd"), "of-the-source", ())
    parts = split(source, RunConfig(val_fraction=0))
    assert parts.digest == "of-the-source"
    assert parts.channels == 3
    assert parts.class_counts.tolist() == [2, 1, 0, 0]
