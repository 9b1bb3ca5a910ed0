"""Tables are computed from the stored predictions, and for reading carry their intervals."""

import math
from itertools import combinations

import numpy as np
import pandas as pd
import pypandoc
import pytest
from conftest import SMALL

from vitlab.analysis import complexity, metrics, sentences, sentences_comparison, sentences_vit, tables
from vitlab.analysis.study import Study
from vitlab.data.splits import Source
from vitlab.errors import LabError
from vitlab.lab import Lab
from vitlab.lab.costs import Costs
from vitlab.models.registry import build_model

RESULTS = pd.DataFrame(
    {
        "model": ["ViT, a_b", "Linear ViT"],
        "accuracy": [0.9123, 0.8],
        "accuracy_low": [0.85, 0.75],
        "accuracy_high": [0.93, 0.84],
        "macro_f1": [0.9, 0.8],
        "macro_f1_low": [0.84, 0.74],
        "macro_f1_high": [0.92, 0.83],
        "top_2": [0.99, 0.95],
        "calibration_error": [0.05, 0.01],
        "parameters": [136_906, 5],
        "macs": [2e6, 1e6],
        "latency_ms": [2.0, 1.0],
        "images_per_second": [1234.5, 99.0],
        "training_seconds": [60.0, 90.0],
    }
)
COST = {"parameters": 5, "macs": 6, "latency_ms": 7.0, "images_per_second": 8.0}

# ---------------------------------------------------------------- computed


def test_results_are_those_of_the_runs_the_best_first(done: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Costs, "of", lambda self, config, only_read: COST if only_read else pytest.fail("measured"))
    frame = tables.results(done)
    assert set(frame["model"]) == set(done.plan.names)
    assert frame["accuracy"].is_monotonic_decreasing
    for _, row in frame.iterrows():
        run = done.load(row["model"])
        assert row["accuracy"] == run.summary["test"]["accuracy"]
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
        assert row["macro_f1_low"] <= row["macro_f1"] <= row["macro_f1_high"]
        assert row["accuracy"] <= row["top_2"] <= 1
        assert (row["run"], row["macs"], row["test_images"]) == (run.path.name, 6, 60)


@pytest.fixture(scope="module")
def seeds(few: Source, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A lab of two seeds in which chapters 02 and 04 are done."""
    params = SMALL.replace(runs_dir=str(tmp_path_factory.mktemp("seeds")), seeds=2, epochs=1, equal_cost=[])
    lab = Lab(params, few)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VITLAB_RUNS", raising=False)
        assert {run.config.seed for run in lab.train_chapter("02").values()} == {0}
        lab.train_chapter("04")
    return lab


@pytest.mark.slow
def test_results_have_a_row_a_run_and_models_their_mean_and_spread(seeds: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Costs, "of", lambda *_, **__: COST)
    made = [*seeds.plan.chapters["02"], *seeds.plan.chapters["04"]]
    monkeypatch.setattr(Lab, "compared", property(lambda self: made))
    runs = tables.results(seeds)
    assert len(runs) == 2 * len(made)
    assert runs["run"].is_unique
    assert set(runs["seed"]) == {0, 1}
    models = tables.by_model(runs)
    assert set(models["model"]) == set(made)
    assert models["accuracy"].is_monotonic_decreasing
    row = models.set_index("model").loc["Linear ViT"]
    both = [run.summary["test"]["accuracy"] for run in seeds.load_seeds("Linear ViT")]
    assert (row["accuracy"], row["accuracy_spread"]) == pytest.approx((np.mean(both), np.std(both, ddof=1)))
    assert (row["seeds"], row["parameters"]) == (2, 5)
    first = runs[(runs["model"] == "Linear ViT") & (runs["seed"] == 0)].iloc[0]
    assert (row["run"], row["training_seconds"]) == (first["run"], first["training_seconds"])
    one = tables.by_model(runs[runs["seed"] == 0])
    assert one["accuracy_spread"].isna().all()
    assert "±" not in tables.scores_table(one).to_string()
    shown = tables.scores_table(models).loc["Linear ViT", "accuracy (%)"]
    assert shown == f"{100 * np.mean(both):.1f} ± {100 * np.std(both, ddof=1):.1f}"


@pytest.mark.slow
def test_chapters_show_the_mean_of_their_seeds(seeds: Lab) -> None:
    tests = [run.summary["test"] for run in seeds.load_seeds("ViT")]
    mean, spread = metrics.mean_and_spread([test["accuracy"] for test in tests])
    assert tables.chapter_scores(seeds, "ViT")["test accuracy"] == f"{mean:.1%} ± {100 * spread:.1f}"
    recalls = np.mean([test["per_class"]["recall"] for test in tests], 0)
    assert tables.recalls(seeds, "ViT") == pytest.approx(recalls)


@pytest.mark.slow
def test_training_is_told_with_the_mean_of_the_seeds_and_says_what_is_the_first_ones(seeds: Lab, done: Lab) -> None:
    both = [metrics.top_k(*run.predictions, 2) for run in seeds.load_seeds("ViT")]
    table = tables.training(seeds, {"ViT": seeds.load("ViT")})
    assert table.loc["ViT", "top-2"] == f"{np.mean(both):.1%} ± {100 * np.std(both, ddof=1):.1f}"
    assert "time and speed of training are those of seed 0." in sentences_vit.scores(seeds)
    one = done.load("ViT")
    assert tables.training(done, {"ViT": one}).loc["ViT", "top-2"] == f"{metrics.top_k(*one.predictions, 2):.1%}"
    assert sentences_vit.scores(done).endswith("among the two likeliest.")


@pytest.mark.slow
def test_models_are_compared_within_seeds(seeds: Lab) -> None:
    found = seeds.compare("ViT", "Linear ViT")
    first, second = ([run.summary["test"]["accuracy"] for run in seeds.load_seeds(m)] for m in ("ViT", "Linear ViT"))
    assert found["difference"] == pytest.approx(np.mean(second) - np.mean(first))
    names = [*seeds.plan.chapters["02"], *seeds.plan.chapters["04"]]  # like these two, they begin at the start
    scores = {name: [run.summary["test"]["accuracy"] for run in seeds.load_seeds(name)] for name in names}
    assert seeds.training_noise("ViT", "Linear ViT", "accuracy") == metrics.training_noise(scores)
    assert (found["seeds"], found["trained"]) == (2, True)
    frame = tables.recall_differences(seeds, "ViT", ["Linear ViT"])
    expected = tables.recalls(seeds, "Linear ViT") - tables.recalls(seeds, "ViT")
    assert frame["difference"].to_numpy() == pytest.approx(expected)
    assert frame["p"].between(0, 1).all()


@pytest.mark.slow
def test_models_of_one_seed_in_common_are_compared_by_what_single_runs_differ_by(seeds: Lab, few: Source) -> None:
    some = Lab(seeds.params.replace(repeated=["ViT", "DynamicViT"]), few)  # chapter 03 has not run: nobody asks for it
    first, second = (seeds.load(name).summary["test"]["accuracy"] for name in ("ViT", "Linear ViT"))
    found = some.compare("ViT", "Linear ViT")
    assert found["difference"] == pytest.approx(second - first)  # of the seed that both have
    repeated = (seeds.plan.backbone, "ViT")  # the first is DynamicViT's start, repeated too
    runs = {name: [run.summary["test"]["accuracy"] for run in seeds.load_seeds(name)] for name in repeated}
    assert some.training_noise("ViT", "Linear ViT", "accuracy") == metrics.training_noise(runs)
    assert (found["seeds"], found["trained"]) == (1, True)
    assert "; first seed of both)" in sentences.verdict("ViT", "Linear ViT", found)
    some = Lab(seeds.params.replace(repeated=["ViT"]), few)
    variance, freedom = some.training_noise("ViT", "Linear ViT", "recall")
    recalls = [run.summary["test"]["per_class"]["recall"] for run in seeds.load_seeds("ViT")]
    assert variance == pytest.approx(np.var(recalls, axis=0, ddof=1).mean())
    assert freedom == 1
    exact = tables.recall_differences(Lab(seeds.params.replace(seeds=1), few), "ViT", ["Linear ViT"])["p"]
    assert (tables.recall_differences(some, "ViT", ["Linear ViT"])["p"] >= exact).all()


@pytest.mark.slow
def test_run_of_a_further_seed_that_is_missing_is_named(seeds: Lab, few: Source) -> None:
    more = Lab(seeds.params.replace(seeds=3), few)
    with pytest.raises(LabError, match=r"'ViT, seed 2'.*02_vit\.ipynb"):
        more.load_seeds("ViT")


@pytest.mark.slow
def test_what_the_course_quotes_stands_beside_the_models_of_its_kind(
    done: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Costs, "of", lambda *_, **__: COST)
    results, study = tables.by_model(tables.results(done)), Study(done)
    results.loc[results["model"] == "Linformer ViT", ["accuracy", "accuracy_high"]] = 0.999
    found = tables.beside_the_course(done, results, study)
    assert found.index.tolist() == list(tables.QUOTED)
    assert found["model"].iloc[:3].tolist() == ["ViT, conv tokenizer", "DynamicViT", "Linformer ViT"]
    assert found.loc["linear ViT", "accuracy"] == 0.999
    none, best = study.runs["none", 0].summary, study.scores.set_index("remedy").loc[found["model"].iloc[-1]]
    assert found.loc["imbalanced", ["accuracy", "parameters"]].tolist() == [
        pytest.approx(none["test"]["accuracy"]),
        none["parameters"],
    ]
    assert found["accuracy"].iloc[-1] == best["accuracy"]
    assert (found["low"] <= found["accuracy"]).all()
    assert (found["accuracy"] <= found["high"]).all()
    base = build_model(complexity.course("ViT-Base"), 10, 3)
    caption = sentences_comparison.course(done, sum(weights.numel() for weights in base.parameters()))
    assert "said to have 8.5 million parameters (as it is configured there: 18.98 million)" in caption
    as_they_come = Lab(done.params.replace(study_imbalance="none"), done.source)
    only_models = tables.beside_the_course(as_they_come, results, study)
    assert only_models.index.tolist() == ["ViT", "DynamicViT", "linear ViT"]


def test_quoted_figure_is_passed_where_the_interval_leaves_it_below() -> None:
    ends = {"quoted": [0.8, 0.8, 0.8], "low": [0.81, 0.70, 0.79], "high": [0.85, 0.79, 0.81], "model": "drw"}
    found = pd.DataFrame(ends, index=["a", "b", "c"]).assign(accuracy=0.8, parameters=12_345)
    table = tables.course_table(found)
    assert table["passed"].tolist() == ["yes", "no", "even"]
    assert table.loc["a"].tolist() == ["80.0", "80.0", "81.0 – 85.0", "DRW", "12,345", "yes"]


def test_every_pair_is_tested_once_and_corrected_for_all(done: Lab) -> None:
    pairs = tables.pairs(done)
    assert {frozenset(pair) for pair in zip(pairs["a"], pairs["b"], strict=True)} == {
        frozenset(pair) for pair in combinations(done.plan.names, 2)
    }
    alone = np.array([done.compare(a, b)["p"] for a, b in zip(pairs["a"], pairs["b"], strict=True)])
    assert pairs["p"].tolist() == pytest.approx(metrics.holm(alone).tolist())
    assert (pairs["p"] >= alone).all()


def test_pairs_of_many_models_are_a_matrix_of_points(done: Lab) -> None:
    pairs = pd.DataFrame(
        [
            {"a": "x", "b": "y", "difference": 0.031, "p": 0.01},
            {"a": "x", "b": "z", "difference": -0.02, "p": 0.2},
            {"a": "y", "b": "z", "difference": -0.051, "p": 0.06},
        ]
    )
    matrix = tables.pairs_matrix(pairs, ["y", "x", "z"])
    assert list(matrix.index) == ["1. y", "2. x", "3. z"]
    assert matrix.to_numpy().tolist() == [["", "+3.1*", "+5.1"], ["−3.1*", "", "+2.0"], ["−5.1", "−2.0", ""]]
    file = tables.flat(tables.pairs(done))
    first = done.compare(*file.loc[0, ["a", "b"]])
    assert tuple(file.loc[0, ["interval_low", "interval_high"]]) == first["interval"]
    assert tuple(file.loc[0, ["f1_interval_low", "f1_interval_high"]]) == first["f1_interval"]


def test_recall_differences_add_up_to_the_differences_of_recall(done: Lab) -> None:
    frame = tables.recall_differences(done, "ViT")
    recall = {name: np.array(done.load(name).summary["test"]["per_class"]["recall"]) for name in done.plan.names}
    for name, rows in frame.groupby("model"):
        assert rows["difference"].to_numpy() == pytest.approx(recall[name] - recall["ViT"])
    assert "ViT" not in set(frame["model"])
    assert frame["p"].between(0, 1).all()
    some = tables.recall_differences(done, "ViT", ["Linear ViT"])
    assert some["difference"].tolist() == frame.loc[frame["model"] == "Linear ViT", "difference"].tolist()


# ---------------------------------------------------------------- for reading


def test_every_score_stands_beside_its_interval() -> None:
    table = tables.scores_table(RESULTS)
    assert table.loc["ViT, a_b", ["accuracy (%)", "95% interval"]].tolist() == ["91.2", "85.0 – 93.0"]
    assert table.loc["ViT, a_b", ["macro F1", "its interval"]].tolist() == ["0.900", "0.840 – 0.920"]
    assert table.loc["ViT, a_b", ["parameters", "million MACs", "images/s"]].tolist() == ["136,906", "2.00", "1,234"]


def test_cost_that_nobody_measured_is_a_dash() -> None:
    unknown = dict.fromkeys(("macs", "latency_ms", "images_per_second"), math.nan)
    own = pd.concat([RESULTS, RESULTS[1:].assign(model="own", **unknown)])
    row = tables.scores_table(own).loc["own"]
    assert row[["million MACs", "latency (ms)", "images/s"]].tolist() == ["–"] * 3
    assert (row["parameters"], row["training (s)"]) == ("5", "90")
    assert tables.scores_table(own.assign(training_seconds=[90.0, 90.0, 600.0]))["training (min)"].tolist()[0] == "1.5"
    assert "nan" not in tables.readme_table(own)


def test_scores_become_a_latex_table() -> None:
    tex = tables.scores_table(RESULTS).to_latex(escape=True)
    assert all(rule in tex for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"a\_b", r"accuracy (\%)"))
    html = pypandoc.convert_text(tex, "html", format="latex")
    assert html.count("<tr") == 3
    assert "85.0 – 93.0" in html


def test_pairs_are_shown_in_points_with_their_intervals() -> None:
    pair = {"a": "ViT", "b": "Linear ViT", "difference": -0.031, "interval": (-0.06, 0.001), "only_a": 9, "only_b": 3}
    frame = pd.DataFrame([pair | {"f1_difference": -0.03, "f1_interval": (-0.05, 0.0), "p": p} for p in (0.0612, 1e-9)])
    table = tables.pairs_table(frame)
    assert table.loc[0].tolist() == ["ViT", "Linear ViT", "−3.1", "−6.0 to +0.1", "−3.0", "−5.0 to +0.0", 9, 3, "0.061"]
    assert table.loc[1, "p"] == "< 0.001"
