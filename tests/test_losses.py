"""Each remedy does what its name says to the loss that is minimised, and DynamicViT's terms are the paper's."""

import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlab.config import Recipe, Remedy, RunConfig
from vitlab.data.batches import epoch_order
from vitlab.errors import LabError
from vitlab.models.dynamic_vit import distill_loss, ratio_loss
from vitlab.models.heads import CosineHead, with_cosine_head
from vitlab.models.registry import build_model
from vitlab.training.losses import Objective, class_weights, logit_shift, margins, post_hoc, sampling_weights

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
        return tuple(None if part is None else tuple(part.tolist()) for part in (*parts, margins(remedy, COUNTS)))

    remedies = get_args(Remedy)
    assert len({triple(remedy) for remedy in remedies}) == len(remedies)
    assert triple("none") == (None, None, None, None)


def test_every_remedy_leaves_balanced_data_alone() -> None:
    balanced = torch.tensor([20, 20, 20])
    for remedy in ("class_weights", "effective_number", "drw", "ldam_drw"):
        assert class_weights(remedy, balanced).tolist() == pytest.approx([1, 1, 1])
    assert margins("ldam_drw", balanced).tolist() == [15, 15, 15]  # equal ones prefer no class
    torch.testing.assert_close(post_hoc(LOGITS, balanced).softmax(1), LOGITS.softmax(1))
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


def test_post_hoc_adjustment_by_hand() -> None:
    logits = torch.tensor([[1.0, 0.5, 0.0]])
    adjusted = post_hoc(logits, COUNTS)
    assert adjusted[0].tolist() == pytest.approx([1 - math.log(0.6), 0.5 - math.log(0.3), -math.log(0.1)])
    assert (int(logits.argmax()), int(adjusted.argmax())) == (0, 2)


def test_post_hoc_and_training_with_adjusted_logits_seek_the_same_answers() -> None:
    """What minimises the adjusted loss is what post hoc makes of the plain loss's best (Menon et al., eq. 9 and 10)."""
    truth = torch.tensor([[0.7, 0.2, 0.1]])  # p(y | x) of the imbalanced data
    plain = truth.log()
    inside = post_hoc(plain, COUNTS)  # trained with the shift, the model itself is the adjusted one
    torch.testing.assert_close((inside + logit_shift("logit_adjustment", COUNTS)).softmax(1), truth)


# ---------------------------------------------------------------- LDAM and deferred re-weighting


def test_margins_fall_with_the_fourth_root_of_the_class_size_by_hand() -> None:
    counts = torch.tensor([160_000, 10_000, 625])  # fourth roots 20, 10, 5
    assert margins("ldam_drw", counts).tolist() == pytest.approx([30 * 0.125, 30 * 0.25, 30 * 0.5])
    assert all(margins(remedy, counts) is None for remedy in get_args(Remedy) if remedy != "ldam_drw")


class Head(nn.Module):
    """A model that is its head: images are features (B, 5)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.head = CosineHead(5, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images)


def test_ldam_is_the_formula_of_the_paper() -> None:
    """Equation 13 with the cosines of their code, written out image by image in double precision."""
    model = Head()
    features = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    objective = Objective(model, RECIPE.replace(remedy="ldam_drw"), COUNTS)
    objective.reach(0.0)
    loss, _ = objective(features, F.one_hot(LABELS, 3).float())
    x, w, n = features.double().tolist(), model.head.weight.detach().double().tolist(), COUNTS.tolist()
    expected = 0.0
    for vector, y in zip(x, LABELS.tolist(), strict=True):
        cosines = [
            sum(a * b for a, b in zip(vector, row, strict=True)) / math.hypot(*vector) / math.hypot(*row) for row in w
        ]
        delta = 0.5 * min(n) ** 0.25 / n[y] ** 0.25
        own = math.exp(30 * (cosines[y] - delta))
        others = sum(math.exp(30 * cosine) for k, cosine in enumerate(cosines) if k != y)
        expected -= math.log(own / (own + others)) / len(x)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)


def test_ldam_gradient_by_hand() -> None:
    lowered = LOGITS - margins("ldam_drw", COUNTS) * F.one_hot(LABELS, 3)
    objective = Objective(Head(), RECIPE.replace(remedy="ldam_drw"), COUNTS)
    logits = LOGITS.clone().requires_grad_()
    objective.classify(logits, F.one_hot(LABELS, 3).float()).backward()
    torch.testing.assert_close(logits.grad, (lowered.softmax(1) - F.one_hot(LABELS, 3)) / 4)


def test_image_mixed_of_two_classes_is_asked_for_a_part_of_each_margin() -> None:
    objective = Objective(Head(), RECIPE.replace(remedy="ldam_drw"), COUNTS)
    targets = torch.tensor([[0.25, 0.0, 0.75]])
    own = margins("ldam_drw", COUNTS)
    lowered = LOGITS[:1] - torch.tensor([[0.25 * own[0], 0.0, 0.75 * own[2]]])
    assert float(objective.classify(LOGITS[:1], targets)) == pytest.approx(float(F.cross_entropy(lowered, targets)))


def test_cosine_head_knows_directions_alone() -> None:
    model = Head()
    features = torch.randn(4, 5)
    logits = model(features)
    torch.testing.assert_close(model(7 * features), logits)
    assert float(logits.detach().abs().max()) <= 30
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(features), logits)


@pytest.mark.parametrize("name", ["vit", "dynamic_vit", "linear_vit", "linformer_vit"])
def test_every_model_gets_the_head_that_ldam_needs(name: str) -> None:
    config = DYNAMIC.replace(model=name, remedy="ldam_drw")
    model = build_model(config, 2, 1)  # as many classes as a token predictor has outputs
    assert [path for path, part in model.named_modules() if isinstance(part, CosineHead)] == ["head"]
    assert model(torch.randn(2, 1, 16, 16)).shape == (2, 2)
    assert not any(isinstance(p, CosineHead) for p in build_model(config.replace(remedy="drw"), 2, 1).modules())


def test_module_of_ones_own_is_told_how_to_get_it() -> None:
    own = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(LabError, match="with_cosine_head"):
        Objective(own, RECIPE.replace(remedy="ldam_drw"), COUNTS)
    Objective(with_cosine_head(own), RECIPE.replace(remedy="ldam_drw"), COUNTS)
    assert isinstance(own[3], CosineHead)
    with pytest.raises(LabError, match=r"Flatten has no nn.Linear"):
        with_cosine_head(nn.Flatten())


def test_deferred_weights_by_hand() -> None:
    raw = [1e-4 / (1 - 0.9999**n) for n in (60, 30, 10)]
    scale = 100 / (60 * raw[0] + 30 * raw[1] + 10 * raw[2])
    assert class_weights("drw", COUNTS).tolist() == pytest.approx([scale * w for w in raw], rel=1e-5)
    assert class_weights("drw", COUNTS).tolist() == pytest.approx([5 / 9, 10 / 9, 10 / 3], rel=0.01)  # nearly 1/n


@pytest.mark.parametrize("remedy", ["drw", "ldam_drw"])
def test_weights_wait_for_four_fifths_of_the_training(remedy: str) -> None:
    objective = Objective(Head(), RECIPE.replace(remedy=remedy), COUNTS)
    held = objective.weights  # a recorded step reads this very memory
    for done, expected in ((0.0, torch.ones(3)), (0.799, torch.ones(3)), (0.8, class_weights(remedy, COUNTS))):
        objective.reach(done)
        assert torch.equal(held, expected)
        assert objective.weights is held


def test_before_the_switch_deferred_training_is_plain_training() -> None:
    assert step("drw", LOGITS, LABELS)[0] == pytest.approx(step("none", LOGITS, LABELS)[0])
    torch.testing.assert_close(step("drw", LOGITS, LABELS)[1], step("none", LOGITS, LABELS)[1])


# ---------------------------------------------------------------- on average


def expected_gradient(remedy: str) -> Tensor:
    """(N, 3) mean over all batches of the gradient by each image's logits, late in training."""
    logits = POPULATION.clone().requires_grad_()
    objective = Objective(Head(), RECIPE.replace(remedy=remedy), COUNTS)
    objective.reach(1.0)
    drawn = sampling_weights(remedy, OF_ALL, COUNTS)
    chances = torch.ones(100) / 100 if drawn is None else (drawn / drawn.sum()).float()
    for i, chance in enumerate(chances):  # each image as a batch of its own
        (chance * objective.classify(logits[i : i + 1], F.one_hot(OF_ALL[i : i + 1], 3).float())).backward()
    return logits.grad


OF_ALL = torch.repeat_interleave(torch.arange(3), COUNTS)
POPULATION = torch.randn(100, 3, generator=torch.Generator().manual_seed(5))
SURPRISE = POPULATION.softmax(1) - F.one_hot(OF_ALL, 3)
SHIFTED = (POPULATION + torch.tensor([0.6, 0.3, 0.1]).log()).softmax(1) - F.one_hot(OF_ALL, 3)
LOWERED = POPULATION - 15 * (torch.tensor([6.0, 3, 1]) ** -0.25)[OF_ALL, None] * F.one_hot(OF_ALL, 3)
BETA = [(1 - b) / (1 - b ** COUNTS.double()) for b in (0.97, 0.9999)]


@pytest.mark.parametrize(
    ("remedy", "factors", "residual"),  # of an image of each class, and what they multiply
    [
        ("none", [1 / 100] * 3, SURPRISE),
        ("sampler", [1 / 180, 1 / 90, 1 / 30], SURPRISE),  # 1/(C n)
        ("class_weights", [1 / 180, 1 / 90, 1 / 30], SURPRISE),
        ("both", [1 / 540, 1 / 135, 1 / 15], SURPRISE),  # 1/(C n) times 1/3, 2/3, 2
        ("effective_number", (BETA[0] / (BETA[0] * COUNTS).sum()).tolist(), SURPRISE),
        ("drw", (BETA[1] / (BETA[1] * COUNTS).sum()).tolist(), SURPRISE),
        ("ldam_drw", (BETA[1] / (BETA[1] * COUNTS).sum()).tolist(), LOWERED.softmax(1) - F.one_hot(OF_ALL, 3)),
        ("logit_adjustment", [1 / 100] * 3, SHIFTED),
    ],
)
def test_expected_gradient_by_hand(remedy: str, factors: list[float], residual: Tensor) -> None:
    expected = torch.tensor(factors)[OF_ALL, None] * residual
    torch.testing.assert_close(expected_gradient(remedy), expected, rtol=1e-4, atol=1e-8)


def test_sampler_and_class_weights_agree_in_expectation() -> None:
    torch.testing.assert_close(expected_gradient("sampler"), expected_gradient("class_weights"))


def test_real_draws_of_the_sampler_follow_the_gradient_of_class_weights() -> None:
    """Of one weight matrix, over epochs as training draws them: within the noise of so many draws."""
    features = torch.randn(100, 4, generator=torch.Generator().manual_seed(6))
    weight = torch.zeros(3, 4)

    def gradient(order: Tensor, weights: Tensor) -> Tensor:
        residual = (features @ weight.T).softmax(1) - F.one_hot(OF_ALL, 3)
        return (weights[OF_ALL, None] * residual)[order].T @ features[order] / len(order)

    drawn = sampling_weights("sampler", OF_ALL, COUNTS)
    order = torch.cat([epoch_order(OF_ALL, drawn, 0, epoch) for epoch in range(400)])
    sampled = gradient(order, torch.ones(3))
    exact = gradient(torch.arange(100), class_weights("class_weights", COUNTS))
    plain = gradient(torch.arange(100), torch.ones(3))
    assert (sampled - exact).norm() < 0.06 * exact.norm()
    assert (sampled - exact).norm() < 0.1 * (plain - exact).norm()


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
