"""ResNet-20 is the published one: its parameters, its multiply-adds, its shortcuts without weights."""

from pathlib import Path

import pytest
import torch
from torch import nn

from vitlab.analysis import complexity
from vitlab.config import RunConfig
from vitlab.models.registry import build_model
from vitlab.models.resnet import Residual, ResNet20
from vitlab.runs import Run

CIFAR = RunConfig(model="resnet20", image_size=32)


def test_it_has_the_published_parameters_in_twenty_layers() -> None:
    model = build_model(CIFAR, 10, 3)
    assert sum(p.numel() for p in model.parameters()) == 269_722  # the paper rounds to 0.27 million
    assert sum(isinstance(part, nn.Conv2d | nn.Linear) for part in model.modules()) == 20


def test_it_needs_the_published_multiply_adds() -> None:
    # 3×3 kernels at 32², 16² and 8² places: the first, then six for each width, of which the first widens
    stages = ((16, 16, 32), (16, 32, 16), (32, 64, 8))
    expected = 9 * 3 * 16 * 32**2 + sum(9 * (a * b + 5 * b * b) * size**2 for a, b, size in stages) + 64 * 10
    assert expected == 40_551_040
    assert sum(complexity.macs(CIFAR, 3, 10).values()) == expected


@torch.inference_mode()
def test_shortcut_steps_over_pixels_and_is_filled_up_with_zeros() -> None:
    block = Residual(4, 8).eval()
    nn.init.zeros_(block.conv2.weight)  # the branch says nothing, what is left is the shortcut
    features = torch.rand(2, 4, 6, 6)
    out = block(features)
    torch.testing.assert_close(out[:, :4], features[:, :, ::2, ::2])
    assert out[:, 4:].eq(0).all()
    assert sum(p.numel() for p in block.parameters()) == 9 * 4 * 8 + 9 * 8 * 8 + 4 * 8  # no weights in the shortcut
    same = Residual(4, 4).eval()
    nn.init.zeros_(same.conv2.weight)
    torch.testing.assert_close(same(features), features)


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (20, 3), (32, 3)])
def test_images_of_any_size_become_logits_and_gradients_reach_all(size: int, channels: int) -> None:
    model = ResNet20(channels=channels, num_classes=7)
    logits = model(torch.randn(3, channels, size, size))
    assert logits.shape == (3, 7)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_what_it_does_not_read_neither_names_its_run_nor_its_cost(tmp_path: Path) -> None:
    first, other = (Run.of(tmp_path, CIFAR.replace(**shape), "data") for shape in ({}, {"preset": "tiny", "dim": 64}))
    assert first.path == other.path
    assert "x4" not in first.path.name
    for changes in ({"image_size": 16}, {"lr": 0.1}, {"patch_size": 8}):  # which decide what it sees, or how it learns
        assert Run.of(tmp_path, CIFAR.replace(**changes), "data").path != first.path
    vit = CIFAR.replace(model="vit")
    assert Run.of(tmp_path, vit, "data").path != Run.of(tmp_path, vit.replace(depth=5), "data").path
