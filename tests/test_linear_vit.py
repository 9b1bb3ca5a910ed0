"""Linear attention is what it claims: the kernel's quadratic form in another order, or softmax over projected keys."""

import pytest
import torch
import torch.nn.functional as F
from conftest import lively
from torch import Tensor, nn

from vitlab.config import RunConfig
from vitlab.linear_vit import LinearAttention, LinformerAttention
from vitlab.models import build_model
from vitlab.vit import Attention, split_heads

DIM, HEADS, TOKENS = 32, 4, 17


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(3, TOKENS, DIM, generator=torch.Generator().manual_seed(1))


def kernel_weights(layer: LinearAttention, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The (B, H, T, T) weights that the layer never forms, and the values."""
    q, k, v = split_heads(layer.qkv(tokens), 3, HEADS)
    similarity = (F.elu(q) + 1) @ (F.elu(k) + 1).transpose(-2, -1)
    return similarity / similarity.sum(-1, keepdim=True), v


@torch.inference_mode()
def test_kernelised_attention_equals_its_quadratic_form(tokens: Tensor) -> None:
    layer = lively(LinearAttention(DIM, HEADS, TOKENS))
    weights, v = kernel_weights(layer, tokens)
    quadratic = layer.proj((weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(tokens), quadratic, atol=1e-5, rtol=1e-5)
    assert weights.min() > 0
    assert weights.std() > 1e-3  # not uniform


@torch.inference_mode()
@pytest.mark.parametrize("cls", [Attention, LinearAttention])
def test_weights_sum_to_one_so_equal_values_come_out_unchanged(cls: type[nn.Module], tokens: Tensor) -> None:
    layer = lively(cls(DIM, HEADS, TOKENS))
    layer.qkv.weight[2 * DIM :] = 0  # every value becomes the bias
    value = layer.proj(layer.qkv.bias[2 * DIM :])
    torch.testing.assert_close(layer(tokens), value.expand(3, TOKENS, DIM), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_linformer_with_identity_projections_is_softmax_attention(tokens: Tensor) -> None:
    softmax = lively(Attention(DIM, HEADS, TOKENS))
    linformer = LinformerAttention(DIM, HEADS, TOKENS, linformer_k=TOKENS)
    linformer.load_state_dict(softmax.state_dict(), strict=False)
    for projection in (linformer.project_k, linformer.project_v):
        nn.init.eye_(projection.weight)
    torch.testing.assert_close(linformer(tokens), softmax(tokens), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_linformer_projects_along_the_tokens_as_the_paper_writes_it(tokens: Tensor) -> None:
    layer = lively(LinformerAttention(DIM, HEADS, TOKENS, linformer_k=5))
    q, k, v = split_heads(layer.qkv(tokens), 3, HEADS)
    weights = (q @ (layer.project_k.weight @ k).transpose(-2, -1) / (DIM // HEADS) ** 0.5).softmax(-1)
    assert weights.shape[-1] == 5
    expected = layer.proj((weights @ (layer.project_v.weight @ v)).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(tokens), expected, atol=1e-5, rtol=1e-5)


def parameters(model: str) -> int:
    return sum(p.numel() for p in build_model(RunConfig(model=model), 10, 3).parameters())


def test_kernelised_vit_has_the_parameters_of_the_vit_and_linformer_its_projections_more() -> None:
    config = RunConfig()
    assert parameters("linear_vit") == parameters("vit")
    projections = 2 * (config.num_tokens + 1) * config.linformer_k * config.depth
    assert parameters("linformer_vit") == parameters("vit") + projections


@pytest.mark.parametrize("model", ["linear_vit", "linformer_vit"])
def test_gradient_reaches_every_parameter(model: str) -> None:
    net = lively(build_model(RunConfig(model=model, dim=32, depth=2), 10, 3)).train()
    net(torch.randn(2, 3, 16, 16)).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_same_seed_starts_both_from_the_same_shared_weights() -> None:
    plain, linear = (build_model(RunConfig(model=m), 10, 3).state_dict() for m in ("vit", "linear_vit"))
    assert plain.keys() == linear.keys()
    assert all(torch.equal(plain[name], linear[name]) for name in plain)


@torch.no_grad()
def test_kernelised_attention_is_normalised_in_float32_under_autocast(tokens: Tensor) -> None:
    layer = lively(LinearAttention(DIM, HEADS, TOKENS))
    exact = layer(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer(tokens)
    torch.testing.assert_close(rounded.float(), exact, atol=0.05 * float(exact.abs().max()), rtol=0)
    assert rounded.isfinite().all()
