"""DynamicViT learns which tokens to drop, and what it learns with masks is what it computes when they are gone."""

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import lively
from torch import Tensor

from vitlab.analysis import attention
from vitlab.config import RunConfig
from vitlab.data.batches import to_float
from vitlab.data.sources import load_source
from vitlab.data.splits import Source, split
from vitlab.models import dynamic_vit
from vitlab.models.dynamic_vit import DynamicViT
from vitlab.models.registry import build_model, start_from
from vitlab.models.vit import Attention, Block
from vitlab.runs import Run
from vitlab.training.fit import fit, fit_run
from vitlab.training.losses import Objective
from vitlab.training.optim import build_optimizers, hidden_matrices, lr_factor, set_lr
from vitlab.training.session import RunSession

CONFIG = RunConfig(model="dynamic_vit", image_size=16, patch_size=4, dim=32, depth=4, heads=4, mlp_ratio=2.0)


def build(**changes) -> DynamicViT:
    return lively(build_model(CONFIG.replace(**changes), 10, 3))


def kept(model: DynamicViT, images: Tensor) -> tuple[list[list[list[int]]], list[Tensor]]:
    """After each stage, of each image, the patches that are left; as lists in the image's order, and as 0 and 1."""
    trace: dict = {"reduced": []}
    with torch.inference_mode():
        model(images, trace)
    made = attention.composition(trace["reduced"], trace["attention"])
    there = [attention.groups(made[stage], model.grid) >= 0 for stage in model.stages]
    return [[row.nonzero()[:, 0].tolist() for row in left] for left in there], there


def pictures(batch: int = 4, size: int = 16) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def silent(parameters) -> list[str]:
    return [name for name, p in parameters if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_one_step_with_a_teacher_gives_every_predictor_parameter_a_gradient(pool: str) -> None:
    config = CONFIG.replace(pool=pool)
    model = lively(build_model(config, 10, 3)).train()  # trained: blocks begin as identities, which hide the patches
    teacher = lively(build_model(config.replace(model="vit"), 10, 3))
    objective = Objective(model, config, torch.full((10,), 5), teacher)
    torch.manual_seed(0)
    loss, parts = objective(pictures(16), torch.eye(10)[torch.arange(16) % 10])
    loss.backward()
    assert set(parts) == {"loss", "accuracy", "cls", "ratio", "kl", "distill"}
    assert silent(model.named_parameters()) == []


def test_the_classification_alone_reaches_the_predictors_through_the_masked_attention() -> None:
    config = CONFIG.replace(ratio_weight=0, distill_weight=0)
    model = build(ratio_weight=0, distill_weight=0).train()
    objective = Objective(model, config, torch.full((10,), 5))
    objective(pictures(16), torch.eye(10)[torch.arange(16) % 10])[0].backward()
    assert silent(model.predictors.named_parameters()) == []


@pytest.fixture(scope="session")
def sixteen() -> Source:
    """The digits at 16×16: 64 patches of 2×2."""
    return load_source(RunConfig(image_size=16))


@pytest.fixture(scope="session")
def on_digits(tmp_path_factory: pytest.TempPathFactory, sixteen: Source) -> Callable[..., tuple[Run, DynamicViT]]:
    """on_digits(ρ, epochs): the run and the model of a DynamicViT fine-tuned on all digits from a ViT of one epoch."""

    def run(keep_ratio: float, epochs: int) -> tuple[Run, DynamicViT]:
        plain = RunConfig(image_size=16, patch_size=2, dim=16, heads=2, epochs=1, ratio_weight=10, lr=4e-3)
        dynamic = plain.replace(model="dynamic_vit", keep_ratio=keep_ratio, epochs=epochs)
        dynamic = dynamic.replace(backbone_rate=1.0, frozen=0.0)  # a ViT of one epoch has to learn on
        where, teacher = tmp_path_factory.getbasetemp(), None
        for config in (plain, dynamic):
            place = Run.of(where, config, sixteen.digest)
            teacher = fit_run(place, config, split(sixteen, config), teacher)
        return teacher, teacher.model()

    return run


@pytest.mark.slow
def test_training_on_digits_brings_the_kept_share_of_each_stage_to_its_target(on_digits, sixteen: Source) -> None:
    _, model = on_digits(0.7, epochs=5)
    trace: dict = {}
    torch.manual_seed(0)
    with torch.no_grad():
        model.cpu().train()(to_float(sixteen.test.images), trace)
    assert [float(keep.mean()) for keep in trace["keep"]] == pytest.approx([0.7, 0.49, 0.343], abs=0.02)


@pytest.mark.slow
def test_training_on_digits_at_a_hard_ratio_stays_finite(on_digits) -> None:
    run, _ = on_digits(0.3, epochs=2)
    assert np.isfinite(run.history.to_numpy()).all()
    assert run.history["cls"].iloc[-1] < run.history["cls"].iloc[0]


@pytest.mark.parametrize(
    "changes", [{"pool": "cls"}, {"pool": "mean"}, {"tokenizer": "conv"}, {"positions": "sincos"}], ids=str
)
def test_keeping_everything_is_the_plain_vit(changes: dict) -> None:
    plain = lively(build_model(CONFIG.replace(model="vit", **changes), 10, 3))
    plain.train()(pictures())  # the tokenizer's norms have seen images: what they remember is taken over too
    plain.eval()
    dynamic = build(keep_ratio=1.0, **changes)
    start_from(dynamic, plain.state_dict())
    ours: dict = {}
    theirs: dict = {}
    with torch.inference_mode():
        torch.testing.assert_close(dynamic(pictures(), ours), plain(pictures(), theirs), atol=1e-5, rtol=1e-5)
    for name in ("tokens", "attention"):  # both leave the same trace, as the docstring says
        assert len(ours[name]) == len(theirs[name])
        for a, b in zip(ours[name], theirs[name], strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- masked equals gathered

# as many tokens kept in each image, but others; then not even as many
POLICIES = [
    [[1, 1, 0, 1, 0, 0], [1, 1, 0, 1, 0, 0]],
    [[1, 0, 1, 0, 1, 0], [1, 1, 0, 0, 0, 1]],
    [[1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0]],
]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["attention", "block"])
def test_masked_layer_equals_the_layer_on_the_kept_tokens(kind: str, policy: list[list[int]]) -> None:
    attention = Attention(dim=16, heads=4, num_tokens=6)
    layer = lively(attention if kind == "attention" else Block(attention, 16, 2.0, 0.0, 0.0))
    tokens, keep = torch.randn(2, 6, 16), torch.tensor(policy, dtype=torch.float)
    with torch.inference_mode():
        masked = layer(tokens, keep)
        for i in range(2):
            kept = keep[i].bool()
            gathered = layer(tokens[i : i + 1, kept])[0]
            torch.testing.assert_close(masked[i, kept], gathered, atol=1e-4, rtol=1e-4)


def test_mask_of_ones_is_no_mask() -> None:
    layer = lively(Attention(dim=16, heads=4, num_tokens=6))
    tokens = torch.randn(2, 6, 16)
    torch.testing.assert_close(layer(tokens, torch.ones(2, 6)), layer(tokens), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 10, 1000])
def test_dropped_token_has_no_influence_whatever_it_holds(size: float) -> None:
    layer = lively(Attention(dim=16, heads=4, num_tokens=6))
    tokens, keep = torch.randn(1, 6, 16), torch.tensor([[1.0, 1, 1, 0, 1, 1]])
    changed = tokens.clone()
    changed[:, 3] = size * torch.randn(16)
    kept = keep[0].bool()
    with torch.inference_mode():
        expected, got = layer(tokens, keep)[:, kept], layer(changed, keep)[:, kept]
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        assert (layer(tokens)[:, kept] - layer(changed)[:, kept]).abs().max() > 1e-2


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("keep_ratio", [0.3, 0.7])
def test_masked_training_equals_pruned_inference(pool: str, keep_ratio: float) -> None:
    model = build(pool=pool, keep_ratio=keep_ratio, settle=1.0)
    with torch.inference_mode():
        gone, index = kept(model, pictures())
        pruned = model(pictures())
        model.train().at(0.0)
        masked_trace: dict = {}
        masked = model(pictures(), masked_trace)
    for decision, left in zip(masked_trace["keep"], gone, strict=True):
        assert decision.nonzero()[:, 1].view(4, -1).tolist() == left
    assert len({tuple(row) for row in index[-1].tolist()}) > 1  # the images keep different tokens
    torch.testing.assert_close(masked, pruned, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- decisions


def exact_tokens(num_patches: int, keep_ratio: str) -> list[int]:
    """Whole tokens in N·ρ, N·ρ², N·ρ³, one at least; in exact arithmetic."""
    return [max(1, int(num_patches * Fraction(keep_ratio) ** s)) for s in (1, 2, 3)]


@pytest.mark.parametrize("keep_ratio", ["1", "0.9", "0.7", "0.5", "0.3", "0.05"])
@pytest.mark.parametrize(("image_size", "patch_size"), [(8, 4), (16, 4), (16, 2), (20, 2), (32, 4)])
def test_tokens_of_each_stage_are_exact_and_really_gone(image_size: int, patch_size: int, keep_ratio: str) -> None:
    model = build(image_size=image_size, patch_size=patch_size, keep_ratio=float(keep_ratio))
    expected = exact_tokens((image_size // patch_size) ** 2, keep_ratio)
    seen: list[int] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1] - 1))
    with torch.inference_mode():
        model(pictures(2, image_size))
    assert model.tokens_per_stage() == expected
    assert seen == [model.num_patches, *expected]


def test_known_numbers_of_the_papers_ratio() -> None:
    assert build(image_size=32, keep_ratio=0.7).tokens_per_stage() == [44, 31, 21]


def test_stages_stand_before_blocks_at_a_quarter_a_half_and_three_quarters() -> None:
    assert build(depth=4).stages == [1, 2, 3]
    assert build(depth=6).stages == [1, 3, 4]
    assert build(depth=12).stages == [3, 6, 9]


def test_decisions_are_hard_and_only_remove() -> None:
    model = build().train()
    trace: dict = {}
    model(pictures(32), trace)
    first, second, third = (keep.detach() for keep in trace["keep"])
    for keep in (first, second, third):
        torch.testing.assert_close(keep, keep.round())
        assert set(keep.round().unique().tolist()) == {0.0, 1.0}
    assert (second <= first).all()
    assert (third <= second).all()
    assert third.sum() < second.sum() < first.sum()


def test_what_inference_keeps_at_a_stage_it_had_kept_before() -> None:
    for before, after in pairwise(kept(build(), pictures(8))[0]):
        assert all(set(b) <= set(a) for a, b in zip(before, after, strict=True))


def test_inference_keeps_the_tokens_that_the_predictor_scores_highest() -> None:
    model = build()
    seen = []
    model.blocks[0].register_forward_hook(lambda *args: seen.append(args[-1][:, 1:]))  # what the first predictor reads
    left = kept(model, pictures(4))[0][0]
    with torch.inference_mode():
        scores = model.predictors[0](seen[0], torch.ones(4, 16))[..., 0]
    for values, stay in zip(scores, left, strict=True):
        dropped = [i for i in range(16) if i not in stay]
        assert values[stay].min() >= values[dropped].max()


def test_inference_draws_nothing_and_training_does() -> None:
    model = build()
    assert torch.equal(model(pictures()), model(pictures()))
    model.train()
    traces: list[dict] = [{}, {}]
    for trace in traces:
        model(pictures(), trace)
    assert not torch.equal(traces[0]["keep"][0], traces[1]["keep"][0])


def test_keep_ratio_can_be_changed_at_inference() -> None:
    model = build(keep_ratio=0.7)
    with torch.inference_mode():
        before = model(pictures())
        model.keep_ratio = 0.3
        assert not torch.equal(model(pictures()), before)
        assert {len(row) for row in kept(model, pictures())[0][-1]} == {1}
        model.keep_ratio = 0.7
        assert torch.equal(model(pictures()), before)


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("image_size", [8, 16, 32])
def test_hard_pruning_trains_without_nan_even_where_an_image_loses_every_token(image_size: int, pool: str) -> None:
    config = CONFIG.replace(image_size=image_size, keep_ratio=0.3, pool=pool)
    model, answers = build_model(config, 10, 3).train(), []
    model.register_forward_hook(lambda *call: answers.append(call[-1]))
    objective = Objective(model, config, torch.full((10,), 5), build_model(config.replace(model="vit"), 10, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(0)
    for _ in range(8):
        optimizer.zero_grad()
        loss, _ = objective(pictures(32, image_size), torch.eye(10)[torch.arange(32) % 10])
        assert answers[-1].isfinite().all()
        assert loss.isfinite()
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
    assert model.eval()(pictures(4, image_size)).isfinite().all()


def test_image_that_loses_every_token_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    def drop_all(scores: Tensor, hard: bool) -> Tensor:
        return torch.stack([scores[..., 0] * 0, scores[..., 0] * 0 + 1], -1)

    monkeypatch.setattr(dynamic_vit.F, "gumbel_softmax", drop_all)
    for pool in ("cls", "mean"):
        model = build(pool=pool).train()
        logits = model(pictures())
        logits.sum().backward()
        assert logits.isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# ---------------------------------------------------------------- departures, each switched on by its parameter


def rates(model: DynamicViT, config: RunConfig, done: float) -> dict[str, float]:
    """Name of every weight -> the rate it learns at when the share `done` of training is behind it."""
    optimizers = build_optimizers(model, config)
    set_lr(optimizers, lr_factor(done, config), done)
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: g["lr"] for o in optimizers for g in o.param_groups for p in g["params"]}


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_what_comes_from_the_vit_stands_still_and_then_learns_at_its_share_of_the_rate(optimizer: str) -> None:
    config = CONFIG.replace(optimizer=optimizer, lr=1e-2, muon_lr=0.1, backbone_rate=0.25, frozen=0.5, hold=0.9)
    model = build_model(config, 10, 3)
    early, late = (rates(model, config, done) for done in (0.4, 0.6))
    assert early.keys() == late.keys() == dict(model.named_parameters()).keys()
    for name, rate in late.items():
        new = name.startswith("predictors.")
        peak = config.muon_lr if optimizer == "muon" and name in hidden_matrices(model) else config.lr
        assert rate == pytest.approx(peak if new else 0.25 * peak)
        assert early[name] == (rate if new else 0.0)


def test_published_recipe_is_the_default() -> None:
    config = RunConfig(model="dynamic_vit")
    assert (config.backbone_rate, config.settle, config.stages) == (0.01, 0.0, [])
    assert config.frozen == pytest.approx(5 / 30, abs=0.01)
    assert (config.ratio_weight, config.distill_weight) == (2.0, 0.5)


def test_frozen_weights_do_not_move_while_predictors_learn(few: Source) -> None:
    config = CONFIG.replace(image_size=8, frozen=0.99, backbone_rate=1.0, epochs=1, batch_size=32, precision="fp32")
    model = build_model(config, 10, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model, _ = fit(model, split(few, config), config)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("predictors.") for name in moved)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_history_has_the_recipes_learning_rate_and_not_the_frozen_backbones(optimizer: str, few: Source) -> None:
    config = CONFIG.replace(image_size=8, frozen=0.99, epochs=2, batch_size=32, optimizer=optimizer, precision="fp32")
    plain = config.replace(model="vit")
    of_each = [fit(build_model(c, 10, 1), split(few, c), c)[1]["lr"].tolist() for c in (config, plain)]
    assert of_each[0] == of_each[1]


def test_late_in_training_nothing_is_drawn_and_predictors_still_learn() -> None:
    model = build(settle=0.25).train()
    answers = []
    for done in (0.5, 0.5, 0.75, 0.75):
        model.at(done)
        trace: dict = {}
        model(pictures(), trace)
        answers.append(trace["keep"])
    assert not torch.equal(answers[0][0], answers[1][0])
    assert all(torch.equal(a, b) for a, b in zip(answers[2], answers[3], strict=True))
    assert [int(keep[0].sum().round()) for keep in answers[3]] == model.tokens_per_stage()
    logits, terms = model.terms(pictures())
    (logits.square().mean() + terms["ratio"]).backward()
    assert silent(model.predictors.named_parameters()) == []


def test_a_training_turns_from_drawn_to_best_tokens_on_its_way(few, train) -> None:
    phases = []

    class Watched(RunSession):
        def for_batch(self, called, inputs, targets):
            phases.append(called.model.phase)
            return super().for_batch(called, inputs, targets)

    config = CONFIG.replace(image_size=8, depth=4, epochs=2, batch_size=32, settle=0.5, precision="fp32")
    train(config, session=Watched)
    half = len(phases) // 2
    assert set(phases[:half]) == {"sampled"}
    assert set(phases[half:]) == {"settled"}


def test_without_distillation_the_teacher_is_not_asked() -> None:
    model = build(distill_weight=0.0).train()
    _, terms = model.terms(pictures(), teacher=lambda *_: pytest.fail("asked"))
    assert set(terms) == {"ratio"}


def test_control_is_distilled_and_drops_nothing() -> None:
    plain = lively(build_model(CONFIG.replace(model="vit"), 10, 3))
    control = build_model(CONFIG.replace(model="distilled_vit"), 10, 3).eval()
    start_from(control, plain.state_dict())
    logits, terms = control.terms(pictures(), plain)
    torch.testing.assert_close(logits, plain(pictures()))
    assert {name: float(term.detach()) for name, term in terms.items()} == pytest.approx(
        {"kl": 0, "distill": 0}, abs=1e-6
    )
    for weights in (plain.blocks[0].mlp.fc1.weight, plain.head.weight):
        weights.data += torch.randn_like(weights)
    assert all(term > 0 for term in control.terms(pictures(), plain)[1].values())


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_control_is_distilled_from_images_of_another_size(pool: str) -> None:
    config = CONFIG.replace(pool=pool)
    plain, control = (build_model(config.replace(model=name), 10, 3).eval() for name in ("vit", "distilled_vit"))
    smaller = pictures()[..., : CONFIG.image_size // 2, : CONFIG.image_size // 2]
    start_from(control, plain.state_dict())
    assert float(control.terms(smaller, plain)[1]["distill"].detach()) == pytest.approx(0, abs=1e-6)
