"""What models cost is measured once for a shape, a machine and this code."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from vitlab import files
from vitlab.analysis import complexity, timing
from vitlab.config import RunConfig
from vitlab.errors import LabError
from vitlab.lab import costs
from vitlab.lab.costs import Costs


@pytest.fixture
def kept(tmp_path: Path) -> Costs:
    """Nothing has been measured yet."""
    return Costs(tmp_path / "runs" / "complexity", num_classes=10, channels=1)


def test_measurement_is_taken_once(kept: Costs) -> None:
    taken: list[int] = []

    def measure() -> dict[str, Any]:
        taken.append(1)
        return {"ms": [1.5, 2.5]}

    again = Costs(kept.folder, 10, 1)
    assert kept.measured("speed", {"n": 1}, measure) == {"ms": [1.5, 2.5]}
    assert again.measured("speed", {"n": 1}, measure) == {"ms": [1.5, 2.5]}
    assert again.measured("speed", {"n": 1}, None) == {"ms": [1.5, 2.5]}
    assert len(taken) == 1
    kept.measured("speed", {"n": 2}, measure)
    kept.measured("memory", {"n": 1}, measure)
    assert len(taken) == 3


def test_another_machine_measures_for_itself(kept: Costs, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    here = costs.pace()
    for machine in (here, here | {"device": "another"}, here | {"threads": -1}, here):
        monkeypatch.setattr(costs, "pace", lambda _, machine=machine: machine)
        kept.measured("speed", 1, lambda: taken.append(1))
    assert len(taken) == 3
    assert "commit" not in here  # another one is no other machine


def test_measurement_is_taken_anew_when_the_code_has_changed_but_still_read(
    kept: Costs, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.measured("speed", 1, lambda: "old")
    monkeypatch.setattr(costs, "code_digest", lambda *_: "another")
    assert kept.measured("speed", 1, None) == "old"
    assert kept.measured("speed", 1, lambda: "new") == "new"
    assert kept.measured("speed", 1, None) == "new"


def test_code_that_decides_a_measurement_is_that_of_the_models_and_of_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "vitlab"
    for folder in ("models", "analysis", "lab"):
        (package / folder).mkdir(parents=True)
    monkeypatch.setattr(files, "ROOT", tmp_path)
    digests = []
    for name in ("models/vit.py", "models/a_new_one.py", "machine.py", "analysis/complexity.py", "lab/plan.py"):
        (package / name).write_text("number = 1")
        digests.append(files.code_digest.__wrapped__(*costs.CODE))
    assert len({*digests}) == 4
    assert digests[-1] == digests[-2]


def test_code_is_the_same_whatever_its_comments_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vitlab").mkdir()
    monkeypatch.setattr(files, "ROOT", tmp_path)
    alike = ['"""Of a."""\n\ndef f(x):\n    """To b."""\n    return x + 1  # c\n', "def f( x ):\n    return (x+1)\n"]
    other = ["def f(x):\n    return x + 2\n", 'def f(x):\n    return "To b."\n']
    digests = []
    for source in alike + other:
        (tmp_path / "vitlab" / "some.py").write_text(source, encoding="utf-8")
        digests.append(files.code_digest.__wrapped__("*.py"))
    assert digests[0] == digests[1]
    assert len({*digests}) == 3


def test_missing_measurement_names_chapter_05(kept: Costs) -> None:
    with pytest.raises(LabError, match=r"has not been measured in .*runs: .*notebooks/05_complexity\.ipynb"):
        kept.measured("speed", 1, None)


def test_failed_measurement_is_not_kept(kept: Costs) -> None:
    with pytest.raises(ZeroDivisionError):
        kept.measured("speed", 1, lambda: 1 / 0)
    assert kept.measured("speed", 1, lambda: 2) == 2


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What `complexity.measure` was asked for, one call after another; each model's cost is a number of its own."""
    calls: list[tuple] = []

    def measure(configs: list[RunConfig], *sizes: int) -> list[dict]:
        calls.append((configs, *sizes))
        return [{"macs": 10 * len(calls) + i, "latency_rounds_ms": [1.0 + i, 2.0 + 2 * i]} for i in range(len(configs))]

    monkeypatch.setattr(complexity, "measure", measure)
    return calls


def test_equal_shapes_share_their_cost(kept: Costs, tiny: RunConfig, measured: list[tuple]) -> None:
    first = kept.of(tiny)
    assert measured == [([tiny], 1, 10, 7)]  # channels, classes, rounds
    for change in ({"init_from": "another", "epochs": 9}, {"lr": 1.0, "keep_ratio": 0.2}, {"dropout": 0.5}):
        assert kept.of(tiny.replace(**change)) == first
    pruned = tiny.replace(model="dynamic_vit")
    others = [pruned, tiny.replace(model="linear_vit"), pruned.replace(keep_ratio=0.2), tiny.replace(image_size=16)]
    assert len({kept.of(config)["macs"] for config in others} | {first["macs"]}) == 5
    assert kept.of(pruned.replace(distill_weight=0.0)) == kept.of(pruned)  # of training alone
    assert Costs(kept.folder, num_classes=7, channels=1).of(tiny) != first
    assert Costs(kept.folder, num_classes=10, channels=3).of(tiny) != first


def test_models_that_are_compared_are_measured_together(kept: Costs, tiny: RunConfig, measured: list[tuple]) -> None:
    tuned, linear = tiny.replace(lr=1.0), tiny.replace(model="linear_vit")
    group = Costs(kept.folder, 10, 1, together=(tiny, tuned, linear))
    rows = [group.of(config) for config in (linear, tiny, tuned)]
    assert measured == [([tiny, linear], 1, 10, 7)]  # one of each shape, when the first was asked for
    assert rows[1] == rows[2] != rows[0]
    assert group.path_of(tiny) == group.path_of(linear)
    middle, _ = group.ratio(linear, tiny, "latency")
    assert middle == 2.0
    group.of(tiny.replace(model="dynamic_vit"))  # no part of the comparison
    assert measured[1:] == [([tiny.replace(model="dynamic_vit")], 1, 10, 7)]


def test_models_measured_apart_are_compared_over_all_pairs_of_rounds(
    kept: Costs, tiny: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their rounds have nothing in common, not even their number."""
    rounds = {"vit": [1.0, 2.0, 4.0], "linear_vit": [8.0, 8.0]}
    monkeypatch.setattr(Costs, "of", lambda self, config, only_read: {"latency_rounds_ms": rounds[config.model]})
    machines = {"vit": {"device": "a"}, "linear_vit": {"device": "a"}}
    monkeypatch.setattr(Costs, "where", lambda self, config: machines[config.model])
    linear = tiny.replace(model="linear_vit")
    found = kept.ratio(linear, tiny, "latency", only_read=True)
    assert found == timing.ratio(rounds["linear_vit"], rounds["vit"], together=False)
    machines["vit"] = {"device": "b"}
    assert math.isnan(kept.ratio(linear, tiny, "latency", only_read=True)[0])  # of two machines none is known


def test_another_number_of_the_measurement_measures_anew(kept: Costs, tiny: RunConfig, measured: list[tuple]) -> None:
    kept.of(tiny)
    again = replace(kept, measurement=1)
    again.of(tiny)
    again.of(tiny)
    assert len(measured) == 2
    assert kept.of(tiny) != again.of(tiny)


def test_cost_that_may_only_be_read_is_not_measured(kept: Costs, tiny: RunConfig, measured: list[tuple]) -> None:
    with pytest.raises(LabError, match="has not been measured"):
        kept.of(tiny, only_read=True)
    assert not kept.path_of(tiny).exists()
    row = kept.of(tiny)
    assert kept.path_of(tiny).exists()
    assert kept.of(tiny, only_read=True) == row
    assert len(measured) == 1


def test_cost_is_read_from_another_machine_where_none_was_measured_here(
    kept: Costs, tiny: RunConfig, measured: list[tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = costs.pace(), costs.pace() | {"device": "another"}
    monkeypatch.setattr(costs, "pace", lambda _: there)
    row = kept.of(tiny)
    monkeypatch.setattr(costs, "pace", lambda _: here)
    assert kept.of(tiny, only_read=True) == row
    assert kept.where(tiny)["device"] == "another"
    for other in (replace(kept, measurement=1), replace(kept, rounds=9), replace(kept, num_classes=9)):
        with pytest.raises(LabError, match="has not been measured"):
            other.of(tiny, only_read=True)
    assert kept.of(tiny) != row  # asked for, it is measured here
    assert kept.of(tiny, only_read=True) != row
    assert kept.where(tiny) == here


def test_each_device_of_a_machine_measures_for_itself_and_is_named(
    kept: Costs, tiny: RunConfig, measured: list[tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, cpu = ({"device": name} for name in ("a GPU", "a CPU"))
    monkeypatch.setattr(costs, "pace", lambda on: cpu if on == "cpu" else gpu)
    usual, same, slow = (tiny.replace(device=name) for name in ("auto", "cuda", "cpu"))
    assert kept.of(usual) == kept.of(same) != kept.of(slow)
    assert len(measured) == 2
    assert kept.where(usual) == kept.where(same) == gpu
    assert kept.where(slow) == cpu


def test_latest_is_that_of_the_device_of_what_is_compared(
    kept: Costs, tiny: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "pace", lambda on: {"device": on})
    frames = {name: pd.DataFrame({"tokens": [i]}) for i, name in enumerate(("cpu", "auto"))}
    monkeypatch.setattr(complexity, "growth", lambda config, *_: frames[config.device])
    for name in frames:
        kept.growth(tiny.replace(device=name), [4])
    for name, frame in frames.items():
        pd.testing.assert_frame_equal(replace(kept, together=(tiny.replace(device=name),)).latest("growth"), frame)
    with pytest.raises(LabError, match="has not been measured"):
        replace(kept, together=(tiny.replace(device="xpu"),)).latest("growth")


def test_latest_is_that_of_the_layer_that_is_asked_for(
    kept: Costs, tiny: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(complexity, "growth", lambda config, *_: pd.DataFrame({"tokens": [config.dim]}))
    for dim in (16, 32):  # the wider one last, as chapter 05 has them
        kept.growth(tiny.replace(dim=dim), [4])
    found = replace(kept, together=(tiny,))
    assert [found.latest("growth", dim=dim)["tokens"].item() for dim in (16, 32)] == [16, 32]
    for other in ({"rounds": 9}, {"measurement": 1}):
        with pytest.raises(LabError, match="has not been measured"):
            replace(found, **other).latest("growth", dim=16)
    with pytest.raises(LabError, match="has not been measured"):
        found.latest("growth", dim=64)


def test_tables_of_costs_are_the_same_read_as_measured(
    kept: Costs, tiny: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept = pd.DataFrame({"keep_ratio": [1.0, 0.5], "macs": [40, 20]})
    grown = pd.DataFrame({"attention": ["softmax", "softmax"], "tokens": [4, 8], "seconds": [0.1, 0.4]})
    calls: list[str] = []
    monkeypatch.setattr(complexity, "by_keep_ratio", lambda *_: calls.append("swept") or swept)
    monkeypatch.setattr(complexity, "growth", lambda *_: calls.append("grown") or grown)
    pruned = tiny.replace(model="dynamic_vit")
    for _ in range(2):
        pd.testing.assert_frame_equal(kept.by_keep_ratio(pruned, (1.0, 0.5)), swept)
        pd.testing.assert_frame_equal(kept.growth(tiny, [4, 8]), grown)
    assert calls == ["swept", "grown"]
    kept.by_keep_ratio(pruned, (1.0, 0.4))
    kept.growth(tiny, [4, 16])
    kept.growth(tiny.replace(linformer_k=1), [4, 16])
    assert calls == ["swept", "grown", "swept", "grown", "grown"]


def test_formula_is_that_of_the_shape_at_hand(kept: Costs, tiny: RunConfig) -> None:
    assert kept.macs(tiny) == complexity.macs(tiny, channels=1, num_classes=10)
    assert Costs(kept.folder, num_classes=7, channels=3).macs(tiny) == complexity.macs(tiny, 3, 7)
