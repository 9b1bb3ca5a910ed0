"""The formula counts what the model multiplies, and savings show where they should and nowhere else."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from vitlab.analysis import complexity, timing
from vitlab.analysis.complexity import COURSE, counted_macs, crossover, exponent, macs, ptflops_macs
from vitlab.config import RunConfig
from vitlab.errors import LabError
from vitlab.models.dynamic_vit import DynamicViT
from vitlab.models.registry import MODELS, Row, build_model

VARIANTS = [
    {"model": "vit"},
    {"model": "vit", "positions": "sincos"},
    {"model": "dynamic_vit"},
    {"model": "linear_vit"},
    {"model": "linear_vit", "feature_map": "relu"},
    *({"model": "linformer_vit", "linformer_sharing": s} for s in ("headwise", "key_value", "layerwise")),
    *({"model": "inline_vit", "inline_map": phi} for phi in ("identity", "elu", "relu")),
    *({"model": model} for model in ("injective_vit", "local_vit", "local_linear_vit")),
]
SHAPE = {"dim": 32, "depth": 4, "heads": 4, "mlp_ratio": 2.0}


def formula(config: RunConfig, channels: int = 3) -> int:
    return sum(macs(config, channels, 10).values())


def hidden(config: RunConfig) -> int:
    """What the formula says of attention's own products."""
    return macs(config, 3, 10)["attention"]


def attention_macs(model: str, tokens: int, dim: int, heads: int, linformer_k: int) -> int:
    """Of one attention between its projections: what differs between the models."""
    config = RunConfig(model=model, dim=dim, heads=heads, linformer_k=linformer_k)
    return sum(MODELS[model].build.attention.macs(tokens, config).values())


@pytest.mark.slow
@pytest.mark.parametrize("image_size", [16, 32])
@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("tokenizer", ["patch", "conv", "light"])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(variant.values()))
def test_formula_is_what_torch_counts(variant: dict, tokenizer: str, pool: str, image_size: int) -> None:
    config = RunConfig(**variant, tokenizer=tokenizer, pool=pool, image_size=image_size, **SHAPE)
    counted = counted_macs(build_model(config, 10, 3), torch.randn(2, 3, image_size, image_size))
    assert formula(config) == counted


@pytest.mark.parametrize(
    "changes",
    [
        {"patch_size": 8},
        {"patch_size": 1, "tokenizer": "conv"},
        {"patch_size": 2, "tokenizer": "light"},
        {"depth": 6},
        {"dim": 48},
    ],
)
@pytest.mark.parametrize("keep_ratio", [0.3, 0.85])
def test_formula_follows_other_shapes_of_dynamic_vit(changes: dict, keep_ratio: float) -> None:
    config = RunConfig(**(SHAPE | {"model": "dynamic_vit", "keep_ratio": keep_ratio} | changes))
    assert formula(config, 1) == counted_macs(build_model(config, 10, 1), torch.randn(3, 1, 16, 16))


def test_the_courses_vit_base_has_1_25_gmacs() -> None:
    # 64 patches of 48 numbers; 65 tokens through 6 blocks: 12 D² a token, 2 D a pair of tokens; the head
    expected = 64 * 48 * 512 + 6 * (65 * 12 * 512**2 + 2 * 65**2 * 512) + 512 * 10
    assert formula(RunConfig(preset="base", image_size=32, patch_size=4)) == expected
    assert round(expected / 1e9, 2) == 1.25


def test_the_courses_figures_fit_none_of_its_models_parameters_and_its_flops_are_macs_at_best() -> None:
    for preset, model, parameters, flops in COURSE.values():
        config = RunConfig(preset=preset, model=model, image_size=32, patch_size=4)
        real = sum(p.numel() for p in build_model(config, 10, 3).parameters())
        assert real > 1.7 * parameters
        assert abs(formula(config) - flops) < abs(2 * formula(config) - flops)


def test_light_tokenizer_adds_a_third_of_what_the_convolutional_one_adds() -> None:
    tiny = RunConfig(preset="tiny", image_size=32)
    patch, conv, light = (formula(tiny.replace(tokenizer=name)) for name in ("patch", "conv", "light"))
    assert light - patch == pytest.approx((conv - patch) / 3, rel=0.03)
    assert light - patch == pytest.approx(10e6, rel=0.06)


def test_no_shape_of_that_cost_is_one_sentence() -> None:
    with pytest.raises(LabError, match=r"no ViT of smaller depth than 4 needs 0\.00 million MACs"):
        complexity.smaller_vit(RunConfig(**SHAPE), 1000, "depth", 3, 10)


def test_batch_does_not_change_the_count_of_an_image() -> None:
    model = build_model(RunConfig(**SHAPE), 10, 3)
    assert counted_macs(model, torch.randn(1, 3, 16, 16)) == counted_macs(model, torch.randn(5, 3, 16, 16))


def test_ptflops_misses_the_products_of_attention_and_adds_biases_norms_and_activations() -> None:
    config = RunConfig(**SHAPE)
    tokens, dim, wide, depth = 17, 32, 64, 4
    biases = 16 * dim + depth * tokens * (3 * dim + dim + wide + dim) + 10
    norms, activations = (2 * depth + 1) * tokens * dim, depth * tokens * wide
    missed = 2 * tokens**2 * dim * depth
    assert hidden(config) == missed
    hooked = ptflops_macs(build_model(config, 10, 3), (3, 16, 16))
    assert hooked == formula(config) - missed + biases + norms + activations


@pytest.mark.parametrize("tokenizer", ["patch", "conv"])
@pytest.mark.parametrize(
    "model", ["vit", "dynamic_vit", "evit", "tome_vit", "linear_vit", "linformer_vit", "inline_vit"]
)
def test_what_ptflops_reports_is_explained_for_every_model(model: str, tokenizer: str) -> None:
    config = RunConfig(preset="tiny", model=model, tokenizer=tokenizer)
    hooked = ptflops_macs(build_model(config, 10, 3), (3, 16, 16))
    assert 0 < hooked - (formula(config) - hidden(config)) < 0.02 * formula(config)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch counts the fused kernels of a GPU")
def test_torchs_counter_misses_the_fused_kernel_and_nothing_else() -> None:
    config = RunConfig(image_size=128, **SHAPE)
    model, images = build_model(config, 10, 3), torch.randn(1, 3, 128, 128)
    assert counted_macs(model, images) == formula(config)
    assert counted_macs(model, images, explicit=False) == formula(config) - hidden(config)


def test_counting_leaves_the_model_as_it_was() -> None:
    config = RunConfig(model="dynamic_vit", **SHAPE)
    model, images = build_model(config, 10, 3).eval(), torch.randn(2, 3, 16, 16)
    before = model(images)
    counted_macs(model, images)
    ptflops_macs(model, (3, 16, 16))
    assert torch.equal(model(images), before)


def test_linear_attention_is_cheaper_past_its_crossover_alone() -> None:
    dim, heads = 64, 4  # 2 N² D against 2 N D²/H + N D: equal at N = D/H + 1/2
    for tokens in (4, 16, 17, 64, 1024):
        softmax = attention_macs("vit", tokens, dim, heads, 8)
        kernel = attention_macs("linear_vit", tokens, dim, heads, 8)
        assert (kernel < softmax) == (tokens > dim / heads + 0.5)


def test_linformer_is_cheaper_beyond_twice_its_projection_alone() -> None:
    for tokens in (8, 16, 17, 64):
        softmax, linformer = (attention_macs(m, tokens, 64, 4, 8) for m in ("vit", "linformer_vit"))
        assert (linformer < softmax) == (tokens > 16)


@pytest.mark.parametrize(("model", "power"), [("vit", 2), ("linear_vit", 1), ("linformer_vit", 1), ("inline_vit", 1)])
def test_attention_grows_with_the_tokens_as_it_claims(model: str, power: int) -> None:
    assert attention_macs(model, 4096, 64, 4, 8) == 4**power * attention_macs(model, 1024, 64, 4, 8)


def test_pruning_saves_more_the_less_it_keeps_and_costs_its_predictors() -> None:
    full = formula(RunConfig(image_size=32))
    pruned = [formula(RunConfig(image_size=32, model="dynamic_vit", keep_ratio=r)) for r in (0.3, 0.5, 0.7, 0.9)]
    assert pruned == sorted(set(pruned))
    assert pruned[2] < full == formula(RunConfig(image_size=32, model="dynamic_vit", keep_ratio=1))  # nobody is asked
    by_chance = formula(RunConfig(image_size=32, model="random_vit", keep_ratio=0.7))
    predictors = macs(RunConfig(image_size=32, model="dynamic_vit", keep_ratio=0.7), 3, 10)["predictors"]
    assert pruned[2] - by_chance == predictors > 0


def test_dynamic_vit_at_0_7_saves_at_least_30_percent_of_192_wide_models() -> None:
    shape = {"dim": 192, "depth": 6, "heads": 3, "mlp_ratio": 4.0, "image_size": 32}
    assert formula(RunConfig(model="dynamic_vit", keep_ratio=0.7, **shape)) <= 0.7 * formula(RunConfig(**shape))


def test_exponent_is_the_slope_on_logarithmic_axes() -> None:
    tokens = pd.Series([16, 64, 256, 1024])
    assert exponent(tokens, 3.0 * tokens**2) == pytest.approx(2)
    assert exponent(tokens, 7.0 * tokens) == pytest.approx(1)


def times(tokens: list[int], softmax: list[float], kernel: list[float]) -> pd.DataFrame:
    parts = [
        pd.DataFrame({"attention": kind, "tokens": tokens, "seconds": seconds})
        for kind, seconds in (("softmax", softmax), ("kernelised", kernel))
    ]
    return pd.concat(parts, ignore_index=True)


def test_crossover_is_where_the_curves_meet() -> None:
    tokens = [16, 64, 256, 1024]
    frame = times(tokens, [1e-6 * n**2 for n in tokens], [1e-4 * n for n in tokens])  # equal at 100
    assert crossover(frame, "kernelised") == pytest.approx(100)


def test_crossover_is_the_last_one_and_has_its_limits() -> None:
    tokens = [16, 64, 256]
    assert crossover(times(tokens, [1, 1, 1], [2, 2, 2]), "kernelised") == math.inf
    assert crossover(times(tokens, [2, 2, 2], [1, 1, 1]), "kernelised") == 16
    noisy = crossover(times(tokens, [2, 1, 4], [1, 2, 1]), "kernelised")  # faster, slower, faster for good
    assert 64 < noisy < 256


def test_peak_memory_sees_what_is_held_at_once() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    megabyte = 2**20

    def one_after_another() -> None:
        for _ in range(3):
            torch.ones(megabyte // 4, device=device)

    def together() -> list[torch.Tensor]:
        return [torch.ones(megabyte // 4, device=device) for _ in range(3)]

    assert complexity.peak_memory(one_after_another, torch.device(device)) == pytest.approx(megabyte, rel=0.05)
    assert complexity.peak_memory(together, torch.device(device)) == pytest.approx(3 * megabyte, rel=0.05)


def test_peak_memory_of_the_cpu_is_seen_where_there_is_a_gpu_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: pytest.fail("asked the GPU"))
    assert complexity.peak_memory(lambda: torch.ones(2**18), torch.device("cpu")) == pytest.approx(2**20, rel=0.05)


def test_file_holds_four_bytes_a_parameter() -> None:
    model = build_model(RunConfig(preset="tiny"), 10, 3)
    bytes_of_weights = 4 * sum(p.numel() for p in model.parameters())
    assert bytes_of_weights < complexity.file_bytes(model) < 1.1 * bytes_of_weights


def test_measure_is_one_consistent_row() -> None:
    config = RunConfig(**SHAPE)
    [row] = complexity.measure([config], num_classes=10, channels=3)
    assert row["parameters"] == sum(p.numel() for p in build_model(config, 10, 3).parameters())
    assert row["macs"] == row["macs_counted"] == formula(config)
    assert row["macs_ptflops"] < row["macs"]
    assert row["macs_hidden"] == hidden(config)
    for name, each in (("latency_ms", "latency_rounds_ms"), ("images_per_second", "images_per_second_rounds")):
        assert 0 < min(row[each]) <= row[name] <= max(row[each])
    assert row["batch"] >= 1
    assert row["peak_mib"] > 0
    assert row["file_mib"] * 2**20 > 4 * row["parameters"]


class Toy(nn.Module):
    """As little as a row of the registry may be: it maps images to logits, and has no formula."""

    def __init__(self, *, channels: int, num_classes: int, dim: int, patch_size: int, **_: object) -> None:
        super().__init__()
        self.tokens = nn.Conv2d(channels, dim, patch_size, patch_size)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.tokens(images).relu().mean((2, 3)))


def test_model_without_a_formula_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "toy", Row(Toy, "Toy"))
    config = RunConfig(model="toy", **SHAPE)
    expected = 16 * 4 * 4 * 3 * 32 + 32 * 10  # 16 patches of 48 numbers, the head
    assert sum(macs(config, 3, 10).values()) == expected
    [row] = complexity.measure([config], channels=3, num_classes=10)
    assert row["macs"] == row["macs_counted"] == expected
    assert row["macs_hidden"] == 0


@pytest.mark.slow
def test_models_of_a_table_are_measured_in_the_same_rounds() -> None:
    config = RunConfig(**SHAPE)
    rows = complexity.measure([config, config.replace(model="linear_vit")], channels=3, num_classes=10)
    lengths = {len(row[name]) for row in rows for name in ("latency_rounds_ms", "images_per_second_rounds")}
    assert min(lengths) >= timing.ROUNDS
    for name in ("latency_rounds_ms", "images_per_second_rounds"):
        assert len(rows[0][name]) == len(rows[1][name])


def test_medians_of_a_table_have_the_ratios_that_its_text_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds at three paces, each model at its own place among them, as where something else runs meanwhile."""
    times = pd.DataFrame({0: [1.0, 2.0, 4.0], 1: [2.1, 3.9, 8.1], 2: [2.9, 6.2, 11.9]})
    monkeypatch.setattr(complexity, "in_turns", lambda works, rounds: times)
    rows = complexity.measure([RunConfig(**SHAPE)] * 3, channels=3, num_classes=10)
    for row in rows[1:]:
        within, _ = timing.ratio(row["latency_rounds_ms"], rows[0]["latency_rounds_ms"])
        assert row["latency_ms"] / rows[0]["latency_ms"] == pytest.approx(within, rel=0.02)
        within, _ = timing.ratio(row["images_per_second_rounds"], rows[0]["images_per_second_rounds"])
        assert row["images_per_second"] / rows[0]["images_per_second"] == pytest.approx(within, rel=0.02)
    assert rows[0]["latency_ms"] == pytest.approx(2000, rel=0.05)  # of the usual pace


def in_no_time(works: dict, *_: object, **__: object) -> pd.DataFrame:
    """Two rounds in which every work is done once and takes as many seconds as there are works before it."""
    answers.extend(work() for work in works.values())
    return pd.DataFrame([[1.0 + i for i in range(len(works))]] * 2, columns=list(works))


answers: list = []


def test_dynamic_vit_by_keep_ratio_does_less_the_less_it_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, int]] = []
    forward = DynamicViT.forward
    monkeypatch.setattr(
        DynamicViT, "forward", lambda self, x, *a: (seen.append((self.keep_ratio, len(x))), forward(self, x, *a))[1]
    )
    monkeypatch.setattr(complexity, "full_batch", lambda on: 4)
    monkeypatch.setattr(complexity, "in_turns", in_no_time)
    frame = complexity.by_keep_ratio(RunConfig(model="dynamic_vit", **SHAPE | {"pool": "mean"}), (1.0, 0.5), 3, 10)
    assert frame["keep_ratio"].tolist() == [1.0, 0.5]
    assert frame["macs"][0] > frame["macs"][1]
    assert seen == [(1.0, 1), (0.5, 1), (1.0, 4), (0.5, 4)]  # it really ran at either ratio, single and in batches
    assert frame["images_per_second"].tolist() == [4.0, 2.0]
    assert [len(rounds) for rounds in frame["latency_rounds_ms"]] == [2, 2]


def test_growth_measures_every_kind_at_every_size_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(complexity, "in_turns", in_no_time)
    frame = complexity.growth(RunConfig(dim=16, heads=2, linformer_k=4), [16, 64, 256], rounds=2)
    names = {"softmax": "vit", "kernelised": "linear_vit", "Linformer": "linformer_vit", "InLine": "inline_vit"}
    assert len(frame) == 4 * 3 * 2
    assert set(frame["round"]) == {0, 1}
    medians = complexity.medians(frame)
    assert len(medians) == 4 * 3
    power = {kind: exponent(rows["tokens"], rows["bytes"]) for kind, rows in medians.groupby("attention")}
    assert power["softmax"] == pytest.approx(1, abs=0.2)  # the fused kernel never holds the square matrix
    assert power["kernelised"] == pytest.approx(1, abs=0.2)
    for _, row in medians.iterrows():
        own = attention_macs(names[row["attention"]], row["tokens"], 16, 2, 4)
        assert row["macs"] == 4 * row["tokens"] * 16**2 + own
    assert np.isfinite(frame[["macs", "seconds", "bytes"]].to_numpy(float)).all()
    assert (frame["seconds"] > 0).all()


def test_growth_looks_at_its_rounds_where_they_are_even(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SPREAD", math.inf)  # or a busy machine would never come to look
    frame = complexity.growth(RunConfig(dim=16, heads=2, linformer_k=4), [16, 1024], rounds=1)
    assert len(frame) == 4 * 2


def test_growth_is_measured_again_where_more_tokens_took_less_time(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[bool] = []

    def disturbed(works: dict, holds: Callable, rounds: int) -> pd.DataFrame:
        """Of the first round the shortest sequences took longest."""
        keys = list(works)
        bad = pd.DataFrame([[1.0 / tokens for _, tokens in works]], columns=keys)
        good = pd.DataFrame([[float(tokens) for _, tokens in works]] * 3, columns=keys)
        held.extend([holds(bad), holds(pd.concat([bad, good]))])
        return good

    monkeypatch.setattr(complexity, "in_turns", disturbed)
    complexity.growth(RunConfig(dim=16, heads=2, linformer_k=4), [16, 64])
    assert held == [False, True]


def test_what_rounds_say_has_a_median_and_quartiles_also_beyond_all_sizes() -> None:
    tokens = [16, 64, 256, 1024]
    crossings = [30.0, 100.0, 100.0, 300.0, 1e9]  # in the last round softmax stays faster
    rounds = [
        times(tokens, [1e-6 * n**2 for n in tokens], [1e-6 * at * n for n in tokens]).assign(round=i)
        for i, at in enumerate(crossings)
    ]
    middle, low, high = complexity.over_rounds(pd.concat(rounds), lambda one: crossover(one, "kernelised"))
    assert (middle, low, high) == pytest.approx((100, 100, 300))
    middle, low, high = complexity.over_rounds(pd.concat(rounds[3:]), lambda one: crossover(one, "kernelised"))
    assert (middle, high) == (pytest.approx(300), math.inf)
