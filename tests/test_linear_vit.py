"""Linear attention is what it claims: the kernel's quadratic form in another order, or softmax over projected keys."""

import pytest
import torch
import torch.nn.functional as F
from conftest import lively
from torch import Tensor, nn

from vitlab.config import RunConfig
from vitlab.models.linear_vit import LinearAttention, LinformerAttention
from vitlab.models.registry import build_model
from vitlab.models.vit import Attention, split_heads

DIM, HEADS, TOKENS = 32, 4, 17
SHARINGS = ["headwise", "key_value", "layerwise"]


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(3, TOKENS, DIM, generator=torch.Generator().manual_seed(1))


def kernel_weights(layer: LinearAttention, tokens: Tensor, feature_map: str) -> tuple[Tensor, Tensor]:
    """The (B, H, T, T) weights that the layer never forms, and the values."""
    q, k, v = split_heads(layer.qkv(tokens), 3, HEADS)
    phi_q, phi_k = (F.elu(x) + 1 if feature_map == "elu" else x.clamp(min=0) for x in (q, k))
    similarity = phi_q @ phi_k.transpose(-2, -1)
    # some queries share no ReLU feature with any key: no weights
    return (similarity / similarity.sum(-1, keepdim=True)).nan_to_num(0), v


@torch.inference_mode()
@pytest.mark.parametrize("feature_map", ["elu", "relu"])
def test_kernelised_attention_equals_its_quadratic_form(feature_map: str, tokens: Tensor) -> None:
    layer = lively(LinearAttention(DIM, HEADS, TOKENS, feature_map))
    weights, v = kernel_weights(layer, tokens, feature_map)
    quadratic = layer.proj((weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(tokens), quadratic, atol=1e-5, rtol=1e-5)
    assert weights.min() > 0 if feature_map == "elu" else weights.min() == 0  # ReLU can look away
    assert weights.std() > 1e-3  # not uniform


@pytest.mark.parametrize("of", ["query", "key"])
def test_query_that_shares_no_feature_with_any_key_gets_zero_and_finite_gradients(of: str, tokens: Tensor) -> None:
    layer = lively(LinearAttention(DIM, HEADS, TOKENS, "relu"))
    part = slice(0, DIM) if of == "query" else slice(DIM, 2 * DIM)
    layer.qkv.weight.data[part] = 0
    layer.qkv.bias.data[part] = -1
    out = layer(tokens)
    torch.testing.assert_close(out, layer.proj.bias.expand_as(out))
    out.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@torch.inference_mode()
@pytest.mark.parametrize("cls", [Attention, LinearAttention])
def test_weights_sum_to_one_so_equal_values_come_out_unchanged(cls: type[nn.Module], tokens: Tensor) -> None:
    layer = lively(cls(DIM, HEADS, TOKENS))
    layer.qkv.weight[2 * DIM :] = 0  # every value becomes the bias
    value = layer.proj(layer.qkv.bias[2 * DIM :])
    torch.testing.assert_close(layer(tokens), value.expand(3, TOKENS, DIM), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("sharing", SHARINGS)
def test_linformer_with_identity_projections_is_softmax_attention(sharing: str, tokens: Tensor) -> None:
    softmax = lively(Attention(DIM, HEADS, TOKENS))
    linformer = LinformerAttention(DIM, HEADS, TOKENS, linformer_k=TOKENS, linformer_sharing=sharing)
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


@pytest.mark.parametrize(("sharing", "matrices"), zip(SHARINGS, (2 * 4, 4, 1), strict=True))
def test_shared_projections_stay_one_when_trained_and_when_loaded(sharing: str, matrices: int) -> None:
    config = RunConfig(model="linformer_vit", linformer_sharing=sharing)
    model, other = build_model(config, 10, 1), build_model(config.replace(seed=1), 10, 1)
    torch.optim.SGD(model.parameters(), lr=0.1).step(lambda: model(torch.randn(2, 1, 16, 16)).sum().backward())
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    other.load_state_dict(weights)
    projections = {name: value for name, value in other.state_dict().items() if ".project_" in name}
    assert len({value.data_ptr() for value in projections.values()}) == matrices
    assert all(torch.equal(value, weights[name]) for name, value in projections.items())


@pytest.mark.parametrize(
    "changes",
    [{"model": "linear_vit", "feature_map": phi} for phi in ("elu", "relu")]
    + [{"model": "linformer_vit", "linformer_sharing": sharing} for sharing in SHARINGS],
)
def test_gradient_reaches_every_parameter(changes: dict) -> None:
    net = lively(build_model(RunConfig(dim=32, depth=2, **changes), 10, 3)).train()
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


@pytest.mark.parametrize("front", [0, 1])
def test_linformer_projects_images_of_another_size_to_keys_of_the_same_size(front: int) -> None:
    layer = LinformerAttention(dim=16, heads=2, num_tokens=front + 16, linformer_k=4)
    nn.init.constant_(layer.project_k.weight, 1 / 16)  # the places' mean, a 16th of the class token
    keys = torch.randn(2, 2, front + 64, 8)
    projected = layer._project(layer.project_k, keys)
    expected = keys[:, :, front:].mean(2) + keys[:, :, :front].sum(2) / 16
    torch.testing.assert_close(projected, expected[:, :, None].expand(-1, -1, 4, -1))
    model = build_model(RunConfig(model="linformer_vit"), 10, 1).eval()
    assert model(torch.randn(2, 1, 32, 32)).isfinite().all()
