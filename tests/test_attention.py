"""What a trained model looked at, also where its attention never forms a matrix."""

import math

import pytest
import torch
from conftest import lively

from vitlab.analysis import attention
from vitlab.config import RunConfig
from vitlab.models.registry import MODELS, build_model

ATTENTIONS = [name for name, row in MODELS.items() if row.is_vit and row.chapter in ("", "04")]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("model", ATTENTIONS)
def test_every_attention_shows_a_matrix_a_block(model: str, pool: str, images: torch.Tensor) -> None:
    config = RunConfig(model=model, pool=pool, depth=3)
    net = lively(build_model(config, 10, 3))
    before = net(torch.zeros(1, 3, 16, 16))
    seen = attention.matrices(net, images)
    tokens = 16 + (pool == "cls")
    assert [matrix.shape for matrix in seen] == [(2, config.heads, tokens, tokens)] * 3
    if model != "linformer_vit":  # whose F need not keep the sum
        for matrix in seen:
            torch.testing.assert_close(matrix.sum(-1), torch.ones(2, config.heads, tokens))
    assert torch.equal(net(torch.zeros(1, 3, 16, 16)), before)  # it only looked


def test_softmax_matrices_are_those_that_the_model_leaves_itself(images: torch.Tensor) -> None:
    net = lively(build_model(RunConfig(depth=3), 10, 3))
    left = attention.trace(net, images)["attention"]
    for ours, theirs in zip(attention.matrices(net, images), left, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_models_without_attention_show_none() -> None:
    assert attention.has_matrices(build_model(RunConfig(), 10, 3))
    assert not attention.has_matrices(build_model(RunConfig(model="resnet20"), 10, 3))
    assert not attention.has_matrices(torch.nn.Linear(2, 2))


def test_concentration_is_one_for_equal_weights_and_the_number_of_tokens_for_a_single_one() -> None:
    assert attention.concentration(torch.full((2, 3, 5, 5), 1 / 5)) == pytest.approx(1)
    assert attention.concentration(torch.eye(5).expand(2, 3, 5, 5)) == pytest.approx(5)


@pytest.mark.parametrize("model", ATTENTIONS)
def test_concentration_is_that_of_rows_that_sum_to_one(model: str, images: torch.Tensor) -> None:
    weights = attention.matrices(lively(build_model(RunConfig(model=model), 10, 3)), images)[-1]
    assert math.isnan(attention.concentration(weights)) == (model == "linformer_vit")
