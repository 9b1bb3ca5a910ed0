"""Tables are computed from the stored predictions, and for reading carry their intervals."""

import math
from itertools import combinations

import numpy as np
import pandas as pd
import pypandoc
import pytest

from vitlab.analysis import metrics, tables
from vitlab.lab import Lab
from vitlab.lab.costs import Costs

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


def test_every_pair_is_tested_once_and_corrected_for_all(done: Lab) -> None:
    pairs = tables.pairs(done)
    assert {frozenset(pair) for pair in zip(pairs["a"], pairs["b"], strict=True)} == {
        frozenset(pair) for pair in combinations(done.plan.names, 2)
    }
    alone = np.array([done.compare(a, b)["p"] for a, b in zip(pairs["a"], pairs["b"], strict=True)])
    assert pairs["p"].tolist() == pytest.approx(metrics.holm(alone).tolist())
    assert (pairs["p"] >= alone).all()


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
    assert (row["parameters"], row["training (min)"]) == ("5", "1.5")
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
    assert table.loc[0].tolist() == ["ViT", "Linear ViT", "-3.1", "-6.0 to +0.1", "-3.0", "-5.0 to +0.0", 9, 3, "0.061"]
    assert table.loc[1, "p"] == "< 0.001"
