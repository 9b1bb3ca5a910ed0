"""Every row of the registry builds its model; that one file and one row are enough is told in test_report."""

import pytest
import torch

from vitlab.models.registry import MODELS, build_model


@pytest.mark.parametrize("name", MODELS)
def test_every_row_builds_its_model_and_names_it_once(name: str, tiny) -> None:
    config = tiny.replace(model=name)
    logits = build_model(config, num_classes=7, channels=3).eval()(torch.randn(2, 3, 8, 8))
    assert logits.shape == (2, 7)
    assert [row.title for row in MODELS.values()].count(MODELS[name].title) == 1
