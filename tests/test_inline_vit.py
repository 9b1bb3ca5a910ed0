"""InLine attention is what its paper says, in another order; each step of its ablation changes one thing."""

import pytest
import torch
import torch.nn.functional as F
from conftest import lively
from torch import Tensor, nn

from vitlab.config import RunConfig
from vitlab.models.inline_vit import InjectiveAttention, InLineAttention, LocalLinearAttention, LocalSoftmaxAttention
from vitlab.models.linear_vit import LinearAttention, LinformerAttention
from vitlab.models.registry import build_model
from vitlab.models.vit import Attention, split_heads

DIM, HEADS, TOKENS = 32, 4, 17  # a class token and 4×4 places
MAPS = {"identity": lambda x: x, "elu": lambda x: F.elu(x) + 1, "relu": F.relu}
LOCAL = [
    (InLineAttention, InjectiveAttention),
    (LocalSoftmaxAttention, Attention),
    (LocalLinearAttention, LinearAttention),
]


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(3, TOKENS, DIM, generator=torch.Generator().manual_seed(1))


def injective_weights(layer: nn.Module, tokens: Tensor, inline_map: str) -> tuple[Tensor, Tensor]:
    """Eq. 4 of the paper, term by term, with the authors' scale; and the values."""
    q, k, v = split_heads(layer.qkv(tokens), 3, HEADS)
    scores = torch.einsum("bhid,bhjd->bhij", MAPS[inline_map](q), MAPS[inline_map](k))
    scores = scores / (DIM // HEADS) ** 0.5 / TOKENS
    return scores - scores.sum(-1, keepdim=True) / TOKENS + 1 / TOKENS, v


@torch.inference_mode()
@pytest.mark.parametrize("inline_map", MAPS)
def test_injective_attention_equals_its_quadratic_form(inline_map: str, tokens: Tensor) -> None:
    layer = lively(InjectiveAttention(DIM, HEADS, TOKENS, inline_map))
    weights, v = injective_weights(layer, tokens, inline_map)
    quadratic = layer.proj((weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(tokens), quadratic, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, HEADS, TOKENS))
    assert weights.std() > 1e-3  # not uniform


@torch.inference_mode()
@pytest.mark.parametrize("front", [0, 1])
def test_inline_attention_equals_its_quadratic_form_with_each_places_neighbours(front: int, tokens: Tensor) -> None:
    tokens = tokens[:, 1 - front :]
    layer = lively(InLineAttention(DIM, HEADS, front + 16))
    q, k, v = split_heads(layer.qkv(tokens), 3, HEADS)
    scores = (q @ k.mT - (q @ k.mT).mean(-1, keepdim=True)) * (DIM // HEADS) ** -0.5
    expected = ((scores + 1) / (front + 16) @ v).transpose(1, 2).flatten(2)
    values, kernel = v.transpose(1, 2).flatten(2), layer.local.weight[:, 0]  # (B, T, D), (D, 3, 3)
    for row in range(4):
        for column in range(4):
            for i, j in ((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if 0 <= row + i < 4 and 0 <= column + j < 4):
                near = values[:, front + 4 * (row + i) + column + j]
                expected[:, front + 4 * row + column] += near * kernel[:, 1 + i, 1 + j]
    torch.testing.assert_close(layer(tokens), layer.proj(expected), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_queries_of_one_direction_keep_their_weights_apart(tokens: Tensor) -> None:
    """What division loses: of φ = ReLU the kernelised layer gives q and 3 q the same weights (section 4.1)."""
    tokens[:, 1] = 3 * tokens[:, 0]
    kernelised = lively(LinearAttention(DIM, HEADS, TOKENS, "relu"))
    injective = InjectiveAttention(DIM, HEADS, TOKENS, "relu")
    injective.load_state_dict(kernelised.state_dict())
    for layer in (kernelised, injective):
        layer.qkv.bias.zero_()
    first, third = kernelised.matrix(tokens)[:, :, :2].unbind(2)
    torch.testing.assert_close(first, third)
    first, third = injective.matrix(tokens)[:, :, :2].unbind(2)
    torch.testing.assert_close(3 * (first - 1 / TOKENS), third - 1 / TOKENS)
    assert (first - third).abs().max() > 1e-2


@torch.inference_mode()
@pytest.mark.parametrize(
    "make",
    [Attention, LinearAttention, InjectiveAttention, lambda *shape: LinformerAttention(*shape, linformer_k=5)],
    ids=["softmax", "kernelised", "injective", "Linformer"],
)
def test_matrix_is_what_the_layer_does_to_its_values(make: type[nn.Module], tokens: Tensor) -> None:
    layer = lively(make(DIM, HEADS, TOKENS))
    v = split_heads(layer.qkv(tokens), 3, HEADS)[2]
    written_out = layer.proj((layer.matrix(tokens) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(written_out, layer(tokens), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("local", "plain"), LOCAL, ids=lambda cls: cls.__name__)
def test_local_term_is_all_that_it_adds(local: type[nn.Module], plain: type[nn.Module], tokens: Tensor) -> None:
    without, layer = lively(plain(DIM, HEADS, TOKENS)), local(DIM, HEADS, TOKENS)
    layer.load_state_dict(without.state_dict(), strict=False)
    torch.testing.assert_close(layer(tokens), without(tokens))  # it begins at zero
    layer.local.weight[:, 0, 1, 1] = 1  # of the 3×3 kernel the middle: each place's own value
    values = layer.proj(F.linear(tokens, layer.qkv.weight[2 * DIM :], layer.qkv.bias[2 * DIM :])) - layer.proj.bias
    values[:, 0] = 0  # the class token has no place
    torch.testing.assert_close(layer(tokens) - without(tokens), values, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("cls", [InjectiveAttention, InLineAttention])
def test_means_and_sums_are_taken_in_float32_under_autocast(cls: type[nn.Module], tokens: Tensor) -> None:
    layer = lively(cls(DIM, HEADS, TOKENS))
    seen: list[torch.dtype] = []
    layer.merge = lambda out, v, merge=layer.merge: seen.append(out.dtype) or merge(out, v)
    exact = layer(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer(tokens)
    assert seen == [torch.float32, torch.float32]
    torch.testing.assert_close(rounded.float(), exact, atol=0.05 * float(exact.abs().max()), rtol=0)


@pytest.mark.parametrize("model", ["inline_vit", "injective_vit", "local_vit", "local_linear_vit"])
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_gradient_reaches_every_parameter_and_other_sizes_are_taken(model: str, pool: str) -> None:
    net = lively(build_model(RunConfig(dim=32, depth=2, model=model, pool=pool), 10, 3)).train()
    net(torch.randn(2, 3, 16, 16)).square().sum().backward()
    unread = {"blocks.1.attention.local.weight"} if pool == "cls" else set()  # the last block's patches are not read
    assert {name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()} <= unread
    assert net(torch.randn(2, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize("model", ["inline_vit", "injective_vit", "local_vit", "local_linear_vit"])
def test_same_seed_starts_all_from_the_same_shared_weights(model: str) -> None:
    plain, other = (build_model(RunConfig(model=m), 10, 3).state_dict() for m in ("vit", model))
    assert all(torch.equal(plain[name], other[name]) for name in plain)
    assert {name.rpartition(".local.")[2] for name in other.keys() - plain.keys()} <= {"weight"}
