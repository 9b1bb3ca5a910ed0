"""Every row of the registry builds its model; that one file and one row are enough is told in test_report."""

import pytest
import torch

from vitlab.errors import LabError
from vitlab.models.reduce import ReducedViT
from vitlab.models.registry import MODELS, Row, build_model, start_from


@pytest.mark.parametrize("name", MODELS)
def test_every_row_builds_its_model_and_names_it_once(name: str, tiny) -> None:
    config = tiny.replace(model=name)
    logits = build_model(config, num_classes=7, channels=3).eval()(torch.randn(2, 3, 8, 8))
    assert logits.shape == (2, 7)
    assert [row.title for row in MODELS.values()].count(MODELS[name].title) == 1


def test_option_that_is_no_parameter_is_named(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "own_vit", Row(ReducedViT, "Own", ("keep_ratio", "stages", "strength"), "03"))
    with pytest.raises(LabError, match="row of Own in MODELS has an option 'strength', which is no parameter"):
        build_model(tiny.replace(model="own_vit"), 7, 3)


def test_what_learns_to_choose_says_how_fast_the_rest_learns(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gate(ReducedViT):
        def __init__(self, **options) -> None:
            super().__init__(**options)
            self.predictors = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in self.stages)

    monkeypatch.setitem(MODELS, "gate", Row(Gate, "Gate", ("keep_ratio", "stages"), "03"))
    weights, gate = build_model(tiny, 7, 3).state_dict(), build_model(tiny.replace(model="gate"), 7, 3)
    with pytest.raises(LabError, match=r"Gate has predictors, which a ViT lacks, and no method pace\(name\)"):
        start_from(gate, weights)
    Gate.pace = lambda self, name: (1.0, 0.0)
    start_from(gate, weights)
