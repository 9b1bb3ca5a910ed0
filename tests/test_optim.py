"""The learning rate's schedule, which optimiser moves which weights and how far, and the average of the weights."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vitlab.config import Recipe, RunConfig
from vitlab.models.registry import build_model
from vitlab.runs import Run
from vitlab.training.optim import Muon, build_optimizers, follow, hidden_matrices, lr_factor, orthogonal, set_lr
from vitlab.training.progress import State
from vitlab.training.session import RunSession

Train = Callable[..., Run]

# ---------------------------------------------------------------- schedule


def test_learning_rate_rises_then_falls_as_half_a_cosine() -> None:
    recipe = Recipe(warmup=0.2)
    assert [lr_factor(done, recipe) for done in (0.0, 0.1, 0.2)] == pytest.approx([0.01, 0.5, 1])
    assert [lr_factor(done, recipe) for done in (0.6, 0.9)] == pytest.approx(
        [0.5, 0.5 * (1 + math.cos(7 / 8 * math.pi))]
    )
    assert lr_factor(0, Recipe(warmup=0)) == 1


def test_learning_rate_holds_its_peak_then_falls_along_a_line() -> None:
    recipe = Recipe(warmup=0.1, hold=0.5, schedule="linear")
    assert [lr_factor(done, recipe) for done in (0.1, 0.3, 0.5, 0.75, 0.99)] == pytest.approx([1, 1, 1, 0.5, 0.02])


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 0.99])
def test_learning_rate_never_leaves_its_range(schedule: str, warmup: float) -> None:
    recipe = Recipe(warmup=warmup, schedule=schedule, hold=0.3)
    assert all(0 < lr_factor(done / 100, recipe) <= 1 for done in range(100))


def test_learning_rate_of_each_optimiser_is_a_share_of_its_own_peak(tiny: RunConfig) -> None:
    optimizers = build_optimizers(build_model(tiny, 10, 1), tiny.replace(optimizer="muon", lr=0.003, muon_lr=0.04))
    for factor in (0.5, 0.1):  # of the peak, not of the rate before
        set_lr(optimizers, factor)
        rates = [{group["lr"] for group in optimizer.param_groups} for optimizer in optimizers]
        assert rates == [{0.04 * factor}, {0.003 * factor}]


# ---------------------------------------------------------------- which optimiser moves what


@pytest.mark.parametrize("model", ["vit", "dynamic_vit", "linformer_vit"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_weight_decay_shrinks_matrices_alone(optimizer: str, model: str, tiny: RunConfig) -> None:
    config = tiny.replace(optimizer=optimizer, model=model, tokenizer="conv", weight_decay=0.5, lr=0.1, muon_lr=0.1)
    config = config.replace(backbone_rate=1.0)
    net = build_model(config, 10, 1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)  # whatever moves now was moved by the decay
    for each in build_optimizers(net, config):
        each.step()
    shrunk = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    matrices = {name for name, p in before.items() if p.ndim > 1 and name not in ("cls_token", "pos_embed")}
    assert shrunk == matrices
    factor = 1 - 0.1 * 0.5 * (1.9 if optimizer == "sgd" else 1)  # SGD's decay passes through Nesterov's momentum
    for name in shrunk:
        torch.testing.assert_close(dict(net.named_parameters())[name], before[name] * factor)


def convolutional() -> nn.Module:
    """A module that is no ViT."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 16), nn.Linear(16, 10)
    )


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize("model", ["dynamic_vit", "a module that is no ViT", "a single layer"])
def test_every_parameter_has_one_optimiser(model: str, optimizer: str, tiny: RunConfig) -> None:
    others = {"a module that is no ViT": convolutional, "a single layer": lambda: nn.Linear(4, 3)}
    net = others[model]() if model in others else build_model(tiny.replace(model=model), 10, 1)
    optimizers = build_optimizers(net, tiny.replace(optimizer=optimizer))
    owned = [id(p) for each in optimizers for group in each.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(map(id, net.parameters()))


def test_muon_takes_the_hidden_layers(tiny: RunConfig) -> None:
    net = build_model(tiny.replace(tokenizer="conv"), 10, 1)
    muon, adamw = build_optimizers(net, tiny.replace(optimizer="muon", lr=0.003, muon_lr=0.04))
    assert isinstance(muon, Muon)
    taken = {id(p) for p in muon.param_groups[0]["params"]}
    first, *deeper = [name for name, p in net.named_parameters() if name.startswith("embed.") and p.ndim == 4]
    assert first == "embed.layers.0.weight"
    assert len(deeper) == 4
    blocks = {name for name, p in net.named_parameters() if name.startswith("blocks.") and p.ndim == 2}
    assert taken == {id(net.get_parameter(name)) for name in blocks | set(deeper)}
    assert (muon.param_groups[0]["lr"], adamw.param_groups[0]["lr"]) == (0.04, 0.003)


def test_muon_leaves_what_meets_pixels_and_classes_in_a_module_that_is_no_vit() -> None:
    assert not [name for name in hidden_matrices(build_model(RunConfig(model="inline_vit"), 10, 1)) if "local" in name]
    resnet = build_model(RunConfig(model="resnet20"), 10, 1)  # its first kernel meets one channel, as a depthwise one
    taken = hidden_matrices(resnet)
    assert len(taken) == 18
    assert not {"conv.weight", "head.weight"} & taken
    assert hidden_matrices(convolutional()) == {"2.weight", "4.weight"}  # neither the first kernel nor the last matrix


# ---------------------------------------------------------------- Muon's steps


@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (32, 1, 3, 3)], ids=["wide", "tall"])
def test_muon_takes_a_kernel_for_the_matrix_of_its_rows(shape: tuple[int, ...]) -> None:
    kernel = nn.Parameter(torch.randn(shape))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    kernel.grad = torch.randn_like(kernel)
    matrix.grad = kernel.grad.flatten(1)
    for p in (kernel, matrix):
        Muon([p], lr=0.1, weight_decay=0.1).step()
    torch.testing.assert_close(kernel.flatten(1), matrix)


@pytest.mark.parametrize("shape", [(3, 24, 8), (2, 8, 24), (1, 16, 16)])
def test_orthogonal_keeps_the_singular_vectors_and_evens_out_the_values(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape)
    result = orthogonal(matrices)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    values = u.mT @ result @ vh.mT  # diagonal if the vectors are the same
    assert (values - torch.diag_embed(values.diagonal(dim1=1, dim2=2))).abs().max() < 1e-4
    large = torch.linalg.svdvals(matrices) > 0.05 * torch.linalg.svdvals(matrices)[:, :1]
    assert values.diagonal(dim1=1, dim2=2)[large].min() > 0.5
    assert values.diagonal(dim1=1, dim2=2).max() < 1.3


def test_muon_takes_the_steps_of_torchs_muon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "bfloat16", Tensor.clone)  # theirs in float32 as well
    starts = [torch.randn(shape) for shape in ((24, 8), (8, 24), (24, 8), (16, 16))]
    ours, theirs = ([nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    optimizers = Muon(ours, lr=0.1, weight_decay=0.2), torch.optim.Muon(theirs, lr=0.1, weight_decay=0.2)
    for _ in range(3):
        for mine, their in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            their.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, their, start in zip(ours, theirs, starts, strict=True):
        torch.testing.assert_close(mine, their, atol=1e-5, rtol=1e-4)
        assert (mine - start).norm() > 0.1


# ---------------------------------------------------------------- average of the weights


def test_average_follows_the_weights_and_copies_statistics() -> None:
    average, model = nn.BatchNorm1d(3).requires_grad_(False), nn.BatchNorm1d(3)
    model.weight.data.fill_(2)  # the average has ones, and means of zero
    model.running_mean.fill_(5)
    model.num_batches_tracked.fill_(7)
    follow(average, model, decay=0.9)
    torch.testing.assert_close(average.weight.data, torch.full((3,), 0.9 * 1 + 0.1 * 2))
    assert average.running_mean.tolist() == [5, 5, 5]
    assert average.num_batches_tracked == 7
    assert model.weight.tolist() == [2, 2, 2]


def test_averaged_weights_are_those_that_are_kept(tiny: RunConfig, train: Train) -> None:
    config = tiny.replace(steps=1, warmup=0)
    start, plain, averaged = (build_model(config, 10, 1).state_dict(), train(config), train(config.replace(ema=0.999)))
    for name, weight in averaged.weights().items():  # decay min(0.999, 1/10) in the first step
        torch.testing.assert_close(weight, 0.1 * start[name] + 0.9 * plain.weights()[name])


def test_statistics_of_batch_norm_are_those_of_the_model_not_averaged_again(tiny: RunConfig, train: Train) -> None:
    seen: dict[str, Tensor] = {}

    class Watched(RunSession):
        def checkpoint(self, state: State) -> None:
            buffers = state.model.named_buffers()
            seen.update((name, value.cpu().clone()) for name, value in buffers if "running" in name)
            super().checkpoint(state)

    config = tiny.replace(ema=0.99, tokenizer="conv", epochs=1, val_fraction=0)
    kept = train(config, session=Watched).weights()
    assert seen
    assert all(torch.equal(kept[name], value) for name, value in seen.items())


def test_averaging_records_no_graph(tiny: RunConfig, train: Train) -> None:
    averages: list[nn.Module] = []

    class Watched(RunSession):
        def checkpoint(self, state: State) -> None:
            averages.append(state.average)
            super().checkpoint(state)

    train(tiny.replace(ema=0.9), session=Watched)
    assert all(p.grad_fn is None for p in averages[0].parameters())  # one would grow with every step
