"""The ViT is the published one: the same function as timm's, exact sizes, tokens in order, positions that matter."""

from functools import partial

import pytest
import torch
from conftest import lively
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitlab.config import PRESETS, RunConfig
from vitlab.models import vit
from vitlab.models.registry import build_model
from vitlab.models.vit import Attention, ConvEmbed, DropPath, PatchEmbed, ViT, sincos_positions

SHAPES = [
    {"image_size": 8, "patch_size": 2, "channels": 1, "dim": 32, "depth": 2, "heads": 4, "mlp_ratio": 2.0},
    {"image_size": 32, "patch_size": 4, "channels": 3, "dim": 48, "depth": 3, "heads": 3, "mlp_ratio": 4.0},
    {"image_size": 16, "patch_size": 8, "channels": 3, "dim": 40, "depth": 4, "heads": 8, "mlp_ratio": 3.0},
]


def small(**options) -> ViT:
    shape = {"image_size": 16, "channels": 3, "num_classes": 10, "dim": 32, "depth": 2, "heads": 4, "mlp_ratio": 2.0}
    return lively(ViT(**(shape | {"patch_size": 4} | options)))


def as_timm(name: str) -> str:
    return name.replace("embed.proj", "patch_embed.proj").replace(".attention.", ".attn.")


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape['image_size']}x{shape['patch_size']}")
def test_same_function_as_timms(shape: dict, pool: str) -> None:
    ours = lively(ViT(**shape, num_classes=7, pool=pool))
    theirs = VisionTransformer(
        img_size=shape["image_size"], patch_size=shape["patch_size"], in_chans=shape["channels"], num_classes=7,
        embed_dim=shape["dim"], depth=shape["depth"], num_heads=shape["heads"], mlp_ratio=shape["mlp_ratio"],
        class_token=pool == "cls", global_pool="token" if pool == "cls" else "avg", fc_norm=False,
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
    ).eval()  # fmt: skip
    theirs.load_state_dict({as_timm(name): value for name, value in ours.state_dict().items()})
    images = torch.randn(4, shape["channels"], shape["image_size"], shape["image_size"])
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-5)


def parameters_by_hand(dim: int, depth: int, mlp_ratio: float, tokens: int) -> int:
    """CIFAR-10 with patch 4 and a class token; norms have two numbers a channel, every linear layer a bias."""
    hidden = int(dim * mlp_ratio)
    embed = 3 * 4 * 4 * dim + dim
    positions = dim + (tokens + 1) * dim  # class token, then a position for it and for each patch
    attention = dim * 3 * dim + 3 * dim + dim * dim + dim
    mlp = dim * hidden + hidden + hidden * dim + dim
    block = 2 * 2 * dim + attention + mlp
    return embed + positions + depth * block + 2 * dim + dim * 10 + 10


@pytest.mark.parametrize(
    ("preset", "expected"), [("nano", 142_026), ("tiny", 811_146), ("small", 10_695_562), ("base", 18_979_338)]
)
def test_number_of_parameters_is_exact(preset: str, expected: int) -> None:
    shape = PRESETS[preset]
    assert parameters_by_hand(shape["dim"], shape["depth"], shape["mlp_ratio"], 64) == expected
    assert parameters(preset) == expected


def parameters(preset: str, **changes) -> int:
    config = RunConfig(preset=preset, image_size=32, patch_size=4, linformer_k=16, **changes)
    return sum(p.numel() for p in build_model(config, 10, 3).parameters())


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_number_of_parameters_of_every_variant_is_exact(preset: str) -> None:
    plain, d, depth = parameters(preset), PRESETS[preset]["dim"], PRESETS[preset]["depth"]
    first, second = d // 4, d // 2  # channels of the convolutions before the last; a norm after each
    conv = (9 * 3 + 2) * first + (9 * first + 2 + 9 * second + 2) * second + (9 * second + 2 + 9 * d + 1) * d
    predictor = 2 * d + (d + 1) * d + (d + 1) * d // 2 + (d // 2 + 1) * d // 4 + (d // 4 + 1) * 2
    projection = 65 * 16
    differences = {
        "conv": ({"tokenizer": "conv"}, conv - (3 * 4 * 4 + 1) * d),
        "mean": ({"pool": "mean"}, -2 * d),  # no class token, no position for it
        "sincos": ({"positions": "sincos"}, -65 * d),
        "dynamic": ({"model": "dynamic_vit"}, 3 * predictor),
        "elu": ({"model": "linear_vit"}, 0),
        "relu": ({"model": "linear_vit", "feature_map": "relu"}, 0),
        "headwise": ({"model": "linformer_vit"}, 2 * projection * depth),
        "key_value": ({"model": "linformer_vit", "linformer_sharing": "key_value"}, projection * depth),
        "layerwise": ({"model": "linformer_vit", "linformer_sharing": "layerwise"}, projection),
    }
    for name, (changes, difference) in differences.items():
        assert parameters(preset, **changes) - plain == difference, name


def shuffle_patches(images: torch.Tensor, size: int) -> torch.Tensor:
    """Cut square images into patches and put them back in another order."""
    side = images.shape[-1]
    patches = nn.functional.unfold(images, size, stride=size)
    order = torch.randperm(patches.shape[-1], generator=torch.Generator().manual_seed(1))
    return nn.functional.fold(patches[:, :, order], side, size, stride=size)


@pytest.mark.parametrize("positions", ["learned", "sincos"])
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_order_of_tokens_counts_through_positions_alone(pool: str, positions: str) -> None:
    model = small(pool=pool, positions=positions)
    images = torch.randn(2, 3, 16, 16)
    shuffled = shuffle_patches(images, 4)
    with torch.inference_mode():
        assert (model(images) - model(shuffled)).abs().max() > 1e-2
        model.pos_embed.zero_()
        torch.testing.assert_close(model(images), model(shuffled), atol=1e-5, rtol=1e-5)


def test_sine_cosine_positions_are_timms_up_to_the_order_of_channels() -> None:
    ours, theirs = sincos_positions(5, 24), build_sincos2d_pos_embed([5, 5], dim=24)
    assert ours.shape == theirs.shape
    order = [((ours - column[:, None]).abs().amax(0)).argmin().item() for column in theirs.T]
    torch.testing.assert_close(ours[:, order], theirs, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours @ ours.T, theirs @ theirs.T)


def test_fixed_positions_are_zero_for_the_class_token_and_neither_trained_nor_saved() -> None:
    model = small(positions="sincos")
    assert not model.pos_embed[:, 0].any()
    assert torch.equal(model.pos_embed[0, 1:], sincos_positions(4, 32))
    assert "pos_embed" not in {**dict(model.named_parameters()), **model.state_dict()}


def test_kernels_of_attention_agree_and_bf16_on_a_cpu_takes_the_explicit_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = small(), torch.randn(2, 3, 16, 16)
    calls = []
    fused = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", lambda *a: calls.append(1) or fused(*a))
    with torch.inference_mode():
        quick, explicit = model(images), model(images, {})  # the trace asks for the weights
        assert len(calls) == 2  # one a block
        with torch.autocast("cpu", torch.bfloat16):
            low = model(images)
        assert len(calls) == 2
        monkeypatch.setattr(vit, "fused_attention_pays", lambda q: True)
        with torch.autocast("cpu", torch.bfloat16):
            low_fused = model(images)
        assert len(calls) == 4
    torch.testing.assert_close(quick, explicit, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(low, low_fused, atol=0.1, rtol=0.1)


def numbered_patches(grid: int, size: int) -> torch.Tensor:
    """An image of one channel whose patch i, counted row by row, is filled with i."""
    numbers = torch.arange(grid * grid, dtype=torch.float).view(grid, grid)
    return numbers.repeat_interleave(size, 0).repeat_interleave(size, 1)[None, None]


def test_token_i_is_patch_i_row_by_row() -> None:
    embed = PatchEmbed(channels=1, dim=3, patch_size=4)
    nn.init.constant_(embed.proj.weight, 1 / 16)  # the mean of the patch
    nn.init.zeros_(embed.proj.bias)
    tokens = embed(numbered_patches(grid=5, size=4))
    torch.testing.assert_close(tokens, torch.arange(25.0)[None, :, None].expand(1, 25, 3))


@pytest.mark.parametrize("patch_size", [1, 2, 4, 8])
def test_convolutional_tokenizer_makes_as_many_tokens_in_the_same_order(patch_size: int) -> None:
    torch.manual_seed(0)
    embed = ConvEmbed(channels=3, dim=16, patch_size=patch_size).eval()  # in training a norm would mix all places
    images = torch.randn(1, 3, 32, 32)
    grid = 32 // patch_size
    changed = images.clone()
    changed[:, :, :patch_size, -patch_size:] += 10  # top right
    with torch.inference_mode():
        tokens, moved = embed(images), (embed(changed) - embed(images)).abs().sum(-1)[0]
    assert tokens.shape == (1, grid**2, 16)
    reached = {divmod(i, grid) for i in moved.nonzero()[:, 0].tolist()}
    assert (0, grid - 1) in reached
    assert all(row <= 3 and column >= grid - 3 for row, column in reached)  # two convolutions a halving see further


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_rows_of_attention_sum_to_one_and_the_trace_is_complete(pool: str) -> None:
    model, images = small(pool=pool), torch.randn(2, 3, 16, 16)
    trace: dict = {}
    with torch.no_grad():
        logits = model(images, trace)
        torch.testing.assert_close(logits, model(images))  # looking changes nothing
    tokens = 16 + (pool == "cls")
    assert [w.shape for w in trace["attention"]] == [(2, 4, tokens, tokens)] * 2
    for weights in trace["attention"]:
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, tokens))
        assert weights.std() > 1e-3  # not uniform: the test would hold for anything then
    assert len(trace["tokens"]) == 3
    torch.testing.assert_close(model.head(model.pool_tokens(trace["tokens"][-1])), logits)


@torch.no_grad()
def test_attention_is_the_formula_of_the_paper() -> None:
    layer = lively(Attention(dim=8, heads=2, num_tokens=5))
    tokens = torch.randn(1, 5, 8)
    q, k, v = (layer.qkv(tokens)[0].chunk(3, -1)[i] for i in range(3))
    heads = []
    for h in (slice(0, 4), slice(4, 8)):
        scores = torch.tensor([[float(q[i, h] @ k[j, h]) / 2 for j in range(5)] for i in range(5)])  # √4 = 2
        heads.append(scores.softmax(-1) @ v[:, h])
    torch.testing.assert_close(layer(tokens)[0], layer.proj(torch.cat(heads, -1)))


def test_each_image_is_seen_alone() -> None:
    model, images = small(), torch.randn(4, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(model(images)[2:3], model(images[2:3]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokenizer", ["patch", "conv"])
def test_gradient_reaches_every_parameter(tokenizer: str) -> None:
    model = small(tokenizer=tokenizer).train()
    model(torch.randn(2, 3, 16, 16)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_same_seed_same_weights_and_another_seed_others() -> None:
    first, again, other = (build_model(RunConfig(seed=s), 10, 1).head.weight for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = DropPath(0.25).train()
    out = layer(torch.ones(4000, 2, 3))
    per_sample = out.flatten(1)
    assert torch.equal(per_sample.amin(1), per_sample.amax(1))
    assert per_sample[:, 0].unique().tolist() == pytest.approx([0, 4 / 3])
    assert float((per_sample[:, 0] == 0).double().mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(layer.eval()(torch.ones(2, 2, 3)), torch.ones(2, 2, 3))


def test_stochastic_depth_grows_linearly_from_block_to_block() -> None:
    model = build_model(RunConfig(drop_path=0.3), 10, 1)
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx([0, 0.1, 0.2, 0.3])


def test_dropout_acts_in_training_alone() -> None:
    model = small(dropout=0.5)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_positions_of_another_size_are_resampled_around_the_class_token(pool: str) -> None:
    model = build_model(RunConfig(image_size=16, patch_size=4, pool=pool), 10, 1).eval()
    same = vit.resample(model.pos_embed, 4)
    assert same is model.pos_embed
    ramp = torch.arange(4.0).repeat(4, 1)[..., None].expand(4, 4, 64).flatten(0, 1)  # grows from column to column
    front = model.pos_embed[:, : model.pos_embed.shape[1] - 16].detach()
    finer = vit.resample(torch.cat([front, ramp[None]], dim=1), 8)
    assert torch.equal(finer[:, : front.shape[1]], front)
    grid = finer[0, front.shape[1] :].view(8, 8, 64)
    assert torch.allclose(grid, grid[:1].expand_as(grid), atol=1e-5)  # all rows alike still
    assert (grid[0, 1:, 0] > grid[0, :-1, 0]).all()
    square = torch.randn(1, 64, 4, 4, requires_grad=True)
    mine = vit.resample(square.flatten(2).transpose(1, 2), 6)
    torchs = nn.functional.interpolate(square, size=(6, 6), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(mine, torchs)
    torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), square)[0] for out in (mine, torchs)))
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(("init", "deviation"), [("xavier", (2 / (64 + 64)) ** 0.5), ("small", 0.02)])
def test_attention_begins_as_large_as_init_says(init: str, deviation: float) -> None:
    for block in build_model(RunConfig(init=init), 10, 1).blocks:
        assert float(block.attention.qkv.weight.detach().std()) == pytest.approx(deviation, rel=0.05)


def test_whitened_kernels_give_uncorrelated_outputs_of_variance_one() -> None:
    torch.manual_seed(0)
    smooth = nn.functional.avg_pool2d(torch.randn(200, 3, 12, 12), 3, stride=1)  # neighbours alike, as in an image
    embed = vit.ConvEmbed(3, 256, 4)  # 64 first kernels, 27 components
    before = embed.layers[0].weight.clone()
    embed.whiten(smooth)
    seen = nn.functional.conv2d(smooth, embed.layers[0].weight[:27]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(torch.cov(seen), torch.eye(27), atol=0.05, rtol=0)
    assert torch.equal(embed.layers[0].weight[27:], before[27:])
    few = vit.ConvEmbed(3, 64, 4)  # 16 first kernels take the strongest components
    few.whiten(smooth)
    torch.testing.assert_close(few.layers[0].weight, embed.layers[0].weight[:16])


@pytest.mark.parametrize("name", ["conv", "light"])
@pytest.mark.parametrize("patch_size", [1, 2, 4, 8])
def test_convolutional_tokenizers_make_a_token_a_patch_of_as_many_pixels(name: str, patch_size: int) -> None:
    embed = vit.TOKENIZERS[name](3, 32, patch_size).eval()  # in training a norm would mix all places
    images = torch.randn(1, 3, 64, 64, requires_grad=True)
    tokens = embed(images)
    grid = 64 // patch_size
    assert tokens.shape == (1, grid**2, 32)
    tokens[0, grid * (grid // 2) + grid // 2].square().sum().backward()
    seen = int((images.grad.abs().sum((0, 1, 2)) > 0).sum())
    whole = vit.TOKENIZERS["conv"].convolutions(3, 32, patch_size)
    size, stride = 1, 1
    for _, _, step in whole:
        size, stride = size + 2 * stride, stride * step
    assert seen == size


def test_attention_with_scores_of_its_own_is_computed_and_shown_by_them() -> None:
    class Distance(Attention):
        def scores(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            return -torch.cdist(q, k)

    torch.manual_seed(0)
    layer, tokens = Distance(16, 2, 5), torch.randn(3, 5, 16)
    *_, v = vit.split_heads(layer.qkv(tokens), 3, 2)
    wanted = layer.proj((layer.matrix(tokens) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(tokens), wanted)
    keep = torch.tensor([[1.0, 1.0, 0.0, 1.0, 1.0]]).expand(3, -1)
    kept = [0, 1, 3, 4]
    torch.testing.assert_close(layer(tokens, keep)[:, kept], layer(tokens[:, kept]))


def test_attention_leaves_its_weights_only_where_they_are_asked_for() -> None:
    layer, tokens = Attention(16, 2, 5), torch.randn(3, 5, 16)
    for trace in (None, {}):  # fused, or not
        layer(tokens, trace=trace, seen=(seen := {}))
        assert seen.keys() == {"keys", "values"}
    layer(tokens, seen=(seen := {"attention": None}))
    torch.testing.assert_close(seen["attention"], layer.matrix(tokens))
