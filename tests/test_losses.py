"""Each remedy does what its name says to the loss that is minimised, and DynamicViT's terms are the paper's."""

import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlab.config import Recipe, Remedy, RunConfig
from vitlab.data.batches import epoch_order
from vitlab.models.dynamic_vit import distill_loss, ratio_loss
from vitlab.models.registry import build_model
from vitlab.training.losses import Objective, class_weights, logit_shift, sampling_weights

COUNTS = torch.tensor([60, 30, 10])
RECIPE = Recipe(label_smoothing=0)
DYNAMIC = RunConfig(label_smoothing=0, model="dynamic_vit", dim=16, depth=4, heads=2)


class Constant(nn.Module):
    """A model whose logits are its parameters."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits


def step(remedy: str, logits: Tensor, labels: Tensor, **changes) -> tuple[float, Tensor]:
    """Loss and its gradient by the logits."""
    model = Constant(logits.clone())
    objective = Objective(model, RECIPE.replace(remedy=remedy, **changes), COUNTS)
    loss, parts = objective(torch.empty(0), F.one_hot(labels, 3).float())
    loss.backward()
    assert parts.keys() == {"loss", "accuracy", "cls"}
    assert torch.equal(loss, parts["loss"])
    assert torch.equal(loss, parts["cls"])
    return float(loss.detach()), model.logits.grad


LOGITS = torch.tensor([[0.5, -1.0, 2.0], [0.0, 0.3, -0.2], [1.0, 1.5, -1.0], [0.2, 0.1, 0.0]])
LABELS = torch.tensor([0, 1, 2, 2])


def test_inverse_class_weights_by_hand() -> None:
    # 1/60, 1/30, 1/10 scaled so that 60 a + 30 b + 10 c = 100
    assert class_weights("class_weights", COUNTS).tolist() == pytest.approx([5 / 9, 10 / 9, 10 / 3])
    # the same ratios, of mean 1 over classes that are drawn alike
    assert class_weights("both", COUNTS).tolist() == pytest.approx([1 / 3, 2 / 3, 2])


def test_effective_number_weights_by_hand() -> None:
    beta = 1 - 3 / 100  # N is the mean class size
    raw = [(1 - beta) / (1 - beta**n) for n in (60, 30, 10)]
    scale = 100 / (60 * raw[0] + 30 * raw[1] + 10 * raw[2])
    assert class_weights("effective_number", COUNTS).tolist() == pytest.approx([scale * w for w in raw])


def test_effective_number_is_flatter_than_inverse_frequency() -> None:
    counts = torch.tensor([5000, 50])
    inverse, effective = (class_weights(remedy, counts) for remedy in ("class_weights", "effective_number"))
    assert 1 < effective[1] / effective[0] < inverse[1] / inverse[0]


@pytest.mark.parametrize("remedy", ["class_weights", "both", "effective_number"])
def test_weights_have_mean_one_over_the_images_drawn(remedy: str) -> None:
    labels = torch.repeat_interleave(torch.arange(3), COUNTS)
    drawn = sampling_weights(remedy, labels, COUNTS)
    chances = torch.ones(len(labels)).double() if drawn is None else drawn
    mean = (class_weights(remedy, COUNTS)[labels] * chances).sum() / chances.sum()
    assert float(mean) == pytest.approx(1)


@pytest.mark.parametrize("remedy", ["sampler", "both"])
def test_sampler_gives_every_class_the_same_total(remedy: str) -> None:
    labels = torch.repeat_interleave(torch.arange(3), COUNTS)
    weights = sampling_weights(remedy, labels, COUNTS)
    assert [float(weights[labels == k].sum()) for k in range(3)] == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("remedy", get_args(Remedy))
def test_classes_are_drawn_in_the_shares_that_the_remedy_intends(remedy: str) -> None:
    counts = torch.tensor([8000, 1500, 400, 100])
    labels = torch.repeat_interleave(torch.arange(4), counts)
    weights = sampling_weights(remedy, labels, counts)
    drawn = torch.cat([labels[epoch_order(labels, weights, 0, epoch)] for epoch in range(40)]).bincount()
    intended = torch.full((4,), 0.25) if remedy in ("sampler", "both") else counts / counts.sum()
    assert (drawn / drawn.sum()).tolist() == pytest.approx(intended.tolist(), rel=0.01)


def test_logit_shift_is_the_log_of_the_share() -> None:
    assert logit_shift("logit_adjustment", COUNTS).tolist() == pytest.approx([math.log(s) for s in (0.6, 0.3, 0.1)])


def test_no_two_remedies_are_the_same_on_imbalanced_counts() -> None:
    labels = torch.repeat_interleave(torch.arange(3), COUNTS)

    def triple(remedy: str) -> tuple:
        parts = (class_weights(remedy, COUNTS), sampling_weights(remedy, labels, COUNTS), logit_shift(remedy, COUNTS))
        return tuple(None if part is None else tuple(part.tolist()) for part in parts)

    remedies = get_args(Remedy)
    assert len({triple(remedy) for remedy in remedies}) == len(remedies)
    assert triple("none") == (None, None, None)


def test_every_remedy_leaves_balanced_data_alone() -> None:
    balanced = torch.tensor([20, 20, 20])
    for remedy in ("class_weights", "effective_number"):
        assert class_weights(remedy, balanced).tolist() == pytest.approx([1, 1, 1])
    probabilities = (LOGITS + logit_shift("logit_adjustment", balanced)).softmax(1)
    torch.testing.assert_close(probabilities, LOGITS.softmax(1))


@pytest.mark.parametrize("remedy", ["none", "sampler"])
def test_plain_loss_is_the_mean_cross_entropy(remedy: str) -> None:
    loss, gradient = step(remedy, LOGITS, LABELS)
    assert loss == pytest.approx(float(F.cross_entropy(LOGITS, LABELS)))
    torch.testing.assert_close(gradient, (LOGITS.softmax(1) - F.one_hot(LABELS, 3)) / 4)


@pytest.mark.parametrize("remedy", ["class_weights", "both", "effective_number"])
def test_weights_reach_the_loss_and_its_gradient(remedy: str) -> None:
    weights = class_weights(remedy, COUNTS)[LABELS]
    loss, gradient = step(remedy, LOGITS, LABELS)
    each = -LOGITS.log_softmax(1)[range(4), LABELS]
    assert loss == pytest.approx(float((weights * each).mean()))
    torch.testing.assert_close(gradient, weights[:, None] * (LOGITS.softmax(1) - F.one_hot(LABELS, 3)) / 4)


def test_smoothing_leaves_an_image_the_weight_of_its_own_class() -> None:
    smooth = 0.7 * F.one_hot(LABELS, 3) + 0.1
    weights = class_weights("class_weights", COUNTS)[LABELS]
    loss, gradient = step("class_weights", LOGITS, LABELS, label_smoothing=0.3)
    assert loss == pytest.approx(float((weights * -(smooth * LOGITS.log_softmax(1)).sum(1)).mean()))
    torch.testing.assert_close(gradient, weights[:, None] * (LOGITS.softmax(1) - smooth) / 4)


def test_an_image_mixed_of_two_classes_has_the_weights_of_both() -> None:
    model = Constant(LOGITS[:1].clone())
    objective = Objective(model, RECIPE.replace(remedy="class_weights"), COUNTS)
    loss, _ = objective(torch.empty(0), torch.tensor([[0.25, 0.0, 0.75]]))
    surprise = -LOGITS[0].log_softmax(0)
    assert float(loss.detach()) == pytest.approx(float(0.25 * 5 / 9 * surprise[0] + 0.75 * 10 / 3 * surprise[2]))


def test_logit_adjustment_reaches_the_loss_and_its_gradient() -> None:
    shifted = LOGITS + torch.tensor([0.6, 0.3, 0.1]).log()
    loss, gradient = step("logit_adjustment", LOGITS, LABELS)
    assert loss == pytest.approx(float(F.cross_entropy(shifted, LABELS)))
    torch.testing.assert_close(gradient, (shifted.softmax(1) - F.one_hot(LABELS, 3)) / 4)


def test_label_smoothing_by_hand() -> None:
    loss, _ = step("none", LOGITS, LABELS, label_smoothing=0.3)
    smooth = 0.7 * F.one_hot(LABELS, 3) + 0.1
    assert loss == pytest.approx(float(-(smooth * LOGITS.log_softmax(1)).sum(1).mean()))


def test_accuracy_counts_the_images_whose_likeliest_class_is_their_commonest_one() -> None:
    objective = Objective(Constant(LOGITS), RECIPE, COUNTS)  # the likeliest classes are 2, 1, 1, 0
    targets = torch.tensor([[0.0, 0.4, 0.6], [0.0, 1.0, 0.0], [0.9, 0.1, 0.0], [0.0, 0.0, 1.0]])
    assert float(objective(torch.empty(0), targets)[1]["accuracy"]) == 0.5


def test_logit_adjustment_has_no_say_in_the_accuracy() -> None:
    _, parts = Objective(Constant(torch.tensor([[0.0, 0.1, 0.2]])), RECIPE.replace(remedy="logit_adjustment"), COUNTS)(
        torch.empty(0), torch.eye(3)[2:]
    )
    assert float(parts["accuracy"]) == 1  # shifted, the commonest class would be the likeliest


def test_parts_of_the_loss_carry_no_gradient() -> None:
    loss, parts, *_ = dynamic_step(build_model(DYNAMIC.replace(model="vit", seed=1), 3, 1))
    assert not any(part.requires_grad for part in parts.values())
    assert torch.equal(parts["loss"], loss)


def test_ratio_loss_by_hand() -> None:
    first = torch.tensor([[1.0, 1, 1, 0], [1, 1, 0, 0]])  # shares 3/4 and 1/2
    second = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]])  # 1/4 and 0
    expected = ((0.75 - 0.7) ** 2 + (0.5 - 0.7) ** 2 + (0.25 - 0.49) ** 2 + 0.49**2) / 4
    assert float(ratio_loss([first, second], [0.7, 0.49])) == pytest.approx(expected)


def test_distill_loss_looks_at_the_kept_tokens_alone_by_hand() -> None:
    student, teacher = torch.zeros(1, 3, 2), torch.tensor([[[1.0, 3.0], [2.0, 0.0], [9.0, 9.0]]])
    keep = torch.tensor([[1.0, 1.0, 0.0]])
    assert float(distill_loss(student, teacher, keep)) == pytest.approx(((1 + 9) / 2 + 4 / 2) / 2)
    assert float(distill_loss(student, teacher, keep * 0)) == 0


def dynamic_step(teacher: nn.Module | None, config: RunConfig = DYNAMIC) -> tuple[Tensor, dict, Tensor, Tensor]:
    """Loss, its parts, images and logits of one step of DynamicViT."""
    model = build_model(config, 3, 1).train()
    torch.manual_seed(0)
    images = torch.randn(8, 1, 16, 16)
    answers: list[Tensor] = []
    model.register_forward_hook(lambda *call: answers.append(call[-1]))
    objective = Objective(model, config, COUNTS, teacher)
    torch.manual_seed(1)
    loss, parts = objective(images, F.one_hot(torch.arange(8) % 3, 3).float())
    loss.backward()
    return loss.detach(), parts, images, answers[0]


def test_dynamic_loss_is_the_weighted_sum_of_its_parts() -> None:
    config = DYNAMIC.replace(ratio_weight=3, distill_weight=0.25)
    loss, parts, *_ = dynamic_step(build_model(DYNAMIC.replace(model="vit", seed=1), 3, 1), config)
    expected = parts["cls"] + 3 * parts["ratio"] + 0.25 * (parts["kl"] + parts["distill"])
    assert float(loss) == pytest.approx(float(expected))
    assert all(float(parts[name]) > 0 for name in ("cls", "ratio", "kl", "distill"))


def test_kl_term_is_the_divergence_of_the_students_from_the_teachers_answers() -> None:
    teacher = build_model(DYNAMIC.replace(model="vit", seed=1), 3, 1)
    _, parts, images, logits = dynamic_step(teacher)
    p = teacher(images).softmax(1)
    expected = (p * (p.log() - logits.log_softmax(1))).sum(1).mean()
    assert float(parts["kl"]) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_distilled_are_the_patches_after_the_last_norm_that_are_left_at_the_end() -> None:
    teacher = build_model(DYNAMIC.replace(model="vit", seed=1), 3, 1)
    _, parts, images, _ = dynamic_step(teacher)
    theirs: dict = {}
    ours: dict = {}
    teacher(images, theirs)
    student = build_model(DYNAMIC, 3, 1).train()
    torch.manual_seed(1)  # the draw of that step again
    student(images, ours)
    student_tokens, teacher_tokens = ours["final"][:, 1:], theirs["tokens"][-1][:, 1:]  # without the class token
    torch.testing.assert_close(teacher_tokens.mean(-1), torch.zeros(8, 16), atol=1e-5, rtol=0)  # they are normed
    distance = ((student_tokens - teacher_tokens) ** 2).mean(-1)
    expected = distance[ours["keep"][-1].round().bool()].mean()
    assert float(parts["distill"]) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_without_a_teacher_there_is_no_distillation() -> None:
    loss, parts, *_ = dynamic_step(None)
    assert set(parts) == {"loss", "accuracy", "cls", "ratio"}
    assert float(loss) == pytest.approx(float(parts["cls"] + 2 * parts["ratio"]))


def test_teacher_gets_no_gradient() -> None:
    teacher = build_model(DYNAMIC.replace(model="vit", seed=1), 3, 1)
    dynamic_step(teacher)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_remedy_reaches_dynamic_vit_as_well() -> None:
    plain, weighted = (
        dynamic_step(None, DYNAMIC.replace(remedy=remedy))[1]["cls"] for remedy in ("none", "class_weights")
    )
    assert float(plain) != pytest.approx(float(weighted), abs=1e-3)
