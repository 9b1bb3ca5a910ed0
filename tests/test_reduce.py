"""Every way to fewer tokens does what its paper says, is the ViT where nothing is to go, and costs what is counted."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conftest import lively
from torch import Tensor

from vitlab.analysis import attention, complexity
from vitlab.config import RunConfig
from vitlab.errors import LabError
from vitlab.models.reduce import ReducedViT, rows, tokens_left
from vitlab.models.registry import MODELS, build_model, reductions, start_from

CONFIG = RunConfig(image_size=16, patch_size=4, dim=32, depth=6, heads=4, mlp_ratio=2.0)
NAMES = list(reductions().values())
ASIS = [name for name in NAMES if name != "dynamic_vit"]


def build(name: str, **changes) -> ReducedViT:
    return lively(build_model(CONFIG.replace(model=name, **changes), 10, 3))


def pictures(batch: int = 3, size: int = 16) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------- references, from the papers, a token at a time

State = tuple[list[Tensor], list[float], bool]  # tokens, how many patches each stands for, is the first a class token


def topk_by_hand(state: State, received: list[float], keys: list[Tensor], n: int) -> State:
    """The n patches that receive most attention (Haurum et al. 2023, Top-K)."""
    tokens, _, cls = state
    ranked = sorted(range(int(cls), len(tokens)), key=lambda i: -received[i])
    stay = [0] * cls + ranked[:n]
    return [tokens[i] for i in stay], [1.0] * len(stay), cls


def evit_by_hand(state: State, received: list[float], keys: list[Tensor], n: int) -> State:
    """n − 1 of them, and the mean of the others, weighted by attention (Liang et al. 2022, eq. 4, normalised)."""
    tokens, sizes, cls = state
    ranked = sorted(range(int(cls), len(tokens)), key=lambda i: -received[i])
    stay, rest = [0] * cls + ranked[: n - 1], ranked[n - 1 :]
    total = sum(received[i] for i in rest)
    fused = sum(received[i] / total * tokens[i] for i in rest)
    return [*(tokens[i] for i in stay), fused], [*(sizes[i] for i in stay), sum(sizes[i] for i in rest)], cls


def tome_by_hand(state: State, received: list[float], keys: list[Tensor], n: int) -> State:
    """Bolya et al. 2023, section 3: alternate tokens into A and B, draw an edge from each of A to its most similar of
    B, keep the r most similar edges, merge what is still connected, put the two sets together again.
    """
    tokens, sizes, cls = state
    r = len(tokens) - cls - n
    a, b = list(range(0, len(tokens), 2)), list(range(1, len(tokens), 2))
    edges = []
    for i in a:
        if cls and i == 0:
            continue  # "the class token is not merged"
        cosines = {j: float(F.cosine_similarity(keys[i], keys[j], dim=0)) for j in b}
        best = max(cosines, key=cosines.__getitem__)
        edges.append((cosines[best], i, best))
    merged = {i: j for _, i, j in sorted(edges, reverse=True)[:r]}
    new_tokens, new_sizes = [], []
    for i in (i for i in a + b if i not in merged):
        members = [i, *(k for k, j in merged.items() if j == i)]
        total = sum(sizes[k] for k in members)
        new_tokens.append(sum(sizes[k] * tokens[k] for k in members) / total)
        new_sizes.append(total)
    return new_tokens, new_sizes, cls


def by_hand(model: ReducedViT, image: Tensor, reduce: Callable[..., State], counts: list[int]) -> Tensor:
    """Logits of one image (C, S, S); the blocks from the equations of Vaswani et al. and Bolya et al., eq. 1."""
    embedded = model.embed_tokens(image[None])[0]
    cls, heads = model.cls_token is not None, model.blocks[0].attention.heads
    state: State = (list(embedded), [1.0] * len(embedded), cls)
    received: list[float] = []
    keys: list[Tensor] = []
    for i, block in enumerate(model.blocks):
        if i in model.stages:
            state = reduce(state, received, keys, counts[model.stages.index(i)])
        x, sizes = torch.stack(state[0]), torch.tensor(state[1])
        q, k, v = block.attention.qkv(block.norm1(x)).view(len(x), 3, heads, -1).permute(1, 2, 0, 3)
        weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) + sizes.log()).softmax(-1)  # (H, T, T)
        received = (weights[:, 0] if cls else weights.mean(1)).mean(0).tolist()
        keys = list(k.mean(0))
        x = x + block.attention.proj((weights @ v).transpose(0, 1).flatten(1))
        state = (list(x + block.mlp(block.norm2(x))), state[1], cls)
    x, sizes = model.norm(torch.stack(state[0])), torch.tensor(state[1])
    return model.head(x[0] if cls else (x * sizes[:, None]).sum(0) / sizes.sum())


REFERENCES = {"topk_vit": topk_by_hand, "evit": evit_by_hand, "tome_vit": tome_by_hand}


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize("size", [16, 20, 32])
@pytest.mark.parametrize("keep_ratio", [0.9, 0.7, 0.55])
@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("name", REFERENCES)
def test_a_reduction_is_what_its_paper_describes(name: str, pool: str, keep_ratio: float, size: int) -> None:
    model = build(name, pool=pool, keep_ratio=keep_ratio, image_size=size)
    images, counts = pictures(2, size), tokens_left((size // 4) ** 2, keep_ratio)
    expected = torch.stack([by_hand(model, image, REFERENCES[name], counts) for image in images])
    torch.testing.assert_close(model(images), expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_more_than_half_go_by_merging_again() -> None:
    model = build("tome_vit", keep_ratio=0.3, stages=[2])

    def twice(state: State, received: list[float], keys: list[Tensor], n: int) -> State:
        """16 to 8, whose keys are the means of the merged ones', then to 4."""
        size, total = (len(state[0]) - 1) // 2, state
        total = tome_by_hand(state, received, keys, size)
        merged_keys = tome_by_hand((keys, state[1], True), received, keys, size)
        return tome_by_hand(total, received, merged_keys[0], n)

    image = pictures(1)
    torch.testing.assert_close(model(image)[0], by_hand(model, image[0], twice, [4]), atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- what all of them have in common


@torch.inference_mode()
@pytest.mark.parametrize(
    "changes", [{"pool": "cls"}, {"pool": "mean"}, {"tokenizer": "conv"}, {"image_size": 20}], ids=str
)
@pytest.mark.parametrize("name", NAMES)
def test_where_nothing_goes_it_is_the_vit(name: str, changes: dict) -> None:
    plain, model = build("vit", **changes), build(name, keep_ratio=1.0, **changes)
    start_from(model, plain.state_dict())
    images = pictures(size=changes.get("image_size", 16))
    torch.testing.assert_close(model(images), plain(images), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stages", [[], [2, 4], [1, 2, 3, 4, 5]], ids=str)
@pytest.mark.parametrize("keep_ratio", [1.0, 0.7, 0.3])
@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("name", NAMES)
def test_formula_is_torchs_count_and_the_same_tokens_are_left(
    name: str, pool: str, keep_ratio: float, stages: list[int]
) -> None:
    config = CONFIG.replace(model=name, pool=pool, keep_ratio=keep_ratio, stages=stages)
    model, trace = build(name, pool=pool, keep_ratio=keep_ratio, stages=stages), {}
    with torch.inference_mode():
        model(pictures(), trace)
    assert sum(complexity.macs(config, 3, 10).values()) == complexity.counted_macs(model, pictures())
    left = tokens_left(16, keep_ratio, len(model.stages))
    by_block = [([16, *left])[sum(stage <= b for stage in model.stages)] for b in range(6)]
    assert [t.shape[1] - (pool == "cls") for t in trace["tokens"][:-1]] == by_block == model.patches_by_block(config)


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("name", ASIS)
def test_a_gradient_reaches_every_weight(name: str, pool: str) -> None:
    model = build(name, pool=pool, keep_ratio=0.5).train()
    F.cross_entropy(model(pictures(8)), torch.arange(8)).backward()
    silent = [
        n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    assert silent == []


def test_the_attention_that_chooses_is_taught_by_evits_fused_token() -> None:
    """Its weights are the attention itself, so what is fused has a gradient, where a choice has none."""
    model = build("evit", keep_ratio=0.5, stages=[1], depth=4)
    tokens = torch.randn(1, 17, 32)
    seen = {"attention": torch.rand(1, 4, 17, 17).requires_grad_()}
    fused, sizes = model.combine(tokens, None, model.choose(tokens, None, seen, 0, 8))
    fused[:, -1].sum().backward()
    assert seen["attention"].grad.any()
    assert sizes.tolist() == [[1.0] * 8 + [9.0]]


@torch.inference_mode()
@pytest.mark.parametrize("name", NAMES)
def test_one_image_is_answered_as_it_is_in_a_batch(name: str) -> None:
    model = build(name, keep_ratio=0.6)
    one, many = model(pictures()[:1]), model(pictures())
    torch.testing.assert_close(one, many[:1], atol=1e-4, rtol=1e-4)
    assert torch.equal(many, model(pictures()))  # nothing is drawn


@torch.inference_mode()
def test_random_tokens_differ_from_image_to_image_and_in_training_from_step_to_step() -> None:
    model = build("random_vit", keep_ratio=0.5)
    tokens = torch.zeros(50, 17, 32)
    chosen = model.choose(tokens, None, {}, 0, 8)
    assert (chosen[:, 0] == 0).all()  # the class token
    assert len({tuple(sorted(row)) for row in chosen.tolist()}) > 40
    often = torch.bincount(chosen[:, 1:].flatten(), minlength=17)[1:]
    assert 10 < often.min() <= often.max() < 40  # of 50, each place about half
    model.train()
    assert not torch.equal(model.choose(tokens, None, {}, 0, 8), model.choose(tokens, None, {}, 0, 8))


@torch.inference_mode()
@pytest.mark.parametrize(("name", "salience"), [("topk_vit", "values"), ("topk_vit", "norm"), ("evit", "norm")])
def test_salience_decides_what_is_kept(name: str, salience: str) -> None:
    model, images = build(name, salience=salience, pool="mean"), pictures()
    tokens, seen = torch.randn(2, 16, 32), {"attention": torch.rand(2, 4, 16, 16), "values": torch.randn(2, 4, 16, 8)}
    scores = model.scores(tokens, seen)
    expected = (
        tokens.norm(dim=-1) if salience == "norm" else (seen["attention"].mean(2) * seen["values"].norm(dim=-1)).mean(1)
    )
    torch.testing.assert_close(scores, expected)
    assert not torch.equal(model(images), build(name, salience="attention", pool="mean")(images))


def test_rows_are_those_of_the_index() -> None:
    values, index = torch.randn(3, 5, 2), torch.tensor([[4, 0], [1, 1], [2, 3]])
    for batch in (slice(3), slice(1)):
        wanted = torch.stack([v[i] for v, i in zip(values[batch], index[batch], strict=True)])
        assert torch.equal(rows(values[batch], index[batch]), wanted)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depth": 3}, "depth 4 or more, got 3"),
        ({"stages": [3, 2]}, "rising block numbers from 1 to 5"),
        ({"stages": [2, 2]}, "rising block numbers"),
        ({"stages": [6]}, "from 1 to 5, got"),
        ({"stages": [0]}, "stages"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_impossible_stages_are_refused_in_a_sentence(name: str, changes: dict, words: str) -> None:
    with pytest.raises(LabError, match=words):
        CONFIG.replace(model=name, **changes)


def test_a_shallow_vit_can_be_reduced_at_stages_that_are_named() -> None:
    model = build("tome_vit", depth=2, stages=[1], keep_ratio=0.5)
    assert model.tokens_per_stage() == [8]


# ---------------------------------------------------------------- what can be drawn


@torch.inference_mode()
@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("name", NAMES)
def test_every_patch_can_be_followed_to_its_token(name: str, pool: str) -> None:
    model, trace = build(name, pool=pool, keep_ratio=0.6), {"reduced": []}
    model(pictures(), trace)
    made = attention.composition(trace["reduced"], trace["attention"])
    left = model.patches_by_block(CONFIG.replace(model=name, pool=pool, keep_ratio=0.6))
    for block, n in zip(made, left, strict=True):
        torch.testing.assert_close(block.sum(-1), torch.ones(block.shape[:2]))
        where = attention.groups(block, grid=4)
        kept = [set(row.tolist()) - {-1} for row in where]
        assert all(len(tokens) == n for tokens in kept)
        torch.testing.assert_close(attention.held(where).sum(1), torch.full((3,), float(n)))
    merging = name in ("evit", "tome_vit")
    assert bool((attention.groups(made[-1], 4) < 0).any()) is not merging  # a merging way loses no patch


@torch.inference_mode()
@pytest.mark.parametrize("name", NAMES)
def test_attention_and_rollout_are_of_the_whole_image(name: str) -> None:
    model, trace = build(name, pool="cls", keep_ratio=0.6), {"reduced": []}
    model(pictures(), trace)
    flow = attention.rollout(trace["attention"], 4, trace["reduced"])
    assert flow.shape == (3, 4, 4)
    assert (flow >= 0).all()
    assert (flow.flatten(1).sum(1) <= 1 + 1e-5).all()  # the rest stays with the class token
    made = attention.composition(trace["reduced"], trace["attention"])[-1]
    maps = attention.attention_of_heads(trace["attention"][-1] @ made[:, None], 4)
    assert maps.shape == (3, 4, 4, 4)
    spread = maps.flatten(2).sum(-1)
    torch.testing.assert_close(spread, trace["attention"][-1][:, :, 0, 1:].sum(-1))  # nothing is lost on the way


def test_rollout_of_merged_tokens_by_hand() -> None:
    """Two patches merge into one after a layer in which nobody looks at another: the answer takes half of each."""
    alone, one = torch.eye(4)[None, None], torch.tensor([[[0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]])
    last = torch.tensor([[[[1.0, 0, 0], [1, 0, 0], [1, 0, 0]]]])
    flow = attention.rollout([alone, last], 2, [one])
    mixed = (last[0, 0] + torch.eye(3)) / 2
    torch.testing.assert_close(flow[0].flatten(), (mixed @ one[0]).mean(0))


def test_distance_to_what_is_kept_and_likeness_of_neighbours() -> None:
    where = torch.tensor([[0, -1, -1, -1], [0, 1, 2, 3]])
    assert attention.distance_to_kept(where[1:], 2) == 0
    assert attention.distance_to_kept(where[:1], 2) == pytest.approx((0 + 1 + 1 + 2**0.5) / 4)
    columns = torch.tensor([1.0, -1.0]).repeat(2)[None, :, None]  # equal below each other, opposite beside
    near, any_two = attention.neighbour_similarity(columns, 2)
    assert near == pytest.approx(0)
    assert any_two == pytest.approx((2 - 4) / 6)
    near, any_two = attention.neighbour_similarity(columns + 2, 2, centred=False)
    assert near == any_two == pytest.approx(1)


def test_registry_names_every_reduction_once() -> None:
    assert set(reductions()) == {"Random tokens", "Top-K", "EViT", "ToMe", "DynamicViT"}
    assert all(MODELS[name].chapter == "03" for name in NAMES)
