"""Tables for reading carry their intervals; what they are computed from is tested with the lab."""

import numpy as np
import pandas as pd
import pypandoc

from vitlab import tables

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
SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "recall_common", "recall_rare")


def study(seeds: int) -> pd.DataFrame:
    rows = [
        {"remedy": remedy, "seed": seed, "calibration_error": 0.1}
        | dict.fromkeys(SCORES, value + seed / 10)
        | {f"{name}_{end}": value + shift for name in SCORES for end, shift in (("low", -0.2), ("high", 0.3))}
        for remedy, value in (("none", 0.4), ("class_weights", 0.5))
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows)


def test_every_score_stands_beside_its_interval() -> None:
    table = tables.scores_table(RESULTS)
    assert table.loc["ViT, a_b", ["accuracy (%)", "95% interval"]].tolist() == ["91.2", "85.0 – 93.0"]
    assert table.loc["ViT, a_b", ["macro F1", "its interval"]].tolist() == ["0.900", "0.840 – 0.920"]
    assert table.loc["ViT, a_b", ["parameters", "million MACs", "images/s"]].tolist() == ["136,906", "2.00", "1,234"]


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


def test_several_seeds_show_their_spread_and_a_single_one_its_interval() -> None:
    several = tables.study_table(study(3), few=3)
    assert list(several.index) == ["none", "class weights"]
    assert several.loc["none", "macro F1"] == f"0.500 ± {np.std([0.4, 0.5, 0.6], ddof=1):.3f}"
    one = tables.study_table(study(1), few=2)
    assert one.loc["class weights", "recall, 2 rarest"] == "0.500 (0.300 – 0.800)"
    assert one.loc["none", "calibration error"] == "0.100"
