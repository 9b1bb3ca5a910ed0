"""Diagrams carry the numbers of the models they are drawn of."""

import re
from xml.etree import ElementTree

import pytest
import torch

from vitlab.analysis import diagrams
from vitlab.analysis.drawing import Drawing
from vitlab.analysis.theme import SMALLEST
from vitlab.config import RunConfig
from vitlab.models.registry import build_model

CONFIG = RunConfig(image_size=32, patch_size=4, dim=128, depth=6, heads=4, mlp_ratio=2.0)


def words(drawing: Drawing) -> list[str]:
    return [
        "".join(text.itertext()) for text in ElementTree.fromstring(drawing.svg).iter() if text.tag.endswith("text")
    ]


def all_of_them() -> dict[str, Drawing]:
    embed = build_model(CONFIG.replace(tokenizer="conv"), 10, 3).embed
    large = build_model(CONFIG.replace(tokenizer="conv", image_size=224, patch_size=32), 10, 3).embed
    return {
        "many convolutions": diagrams.conv_tokenizer(large, 224),
        "many stages": diagrams.fewer_tokens([64, 44, 31, 21, 15, 10], [1, 2, 3, 4, 5], 6),
        "many tokens": diagrams.fewer_tokens([4096, 2867, 2007], [2, 4], 6),
        "vit": diagrams.vit(CONFIG, 3, 10),
        "conv": diagrams.conv_tokenizer(embed, 32),
        "tokens": diagrams.fewer_tokens([64, 44, 31, 21], [2, 4, 5], 6),
        "orders": diagrams.two_orders(65, 32),
    }


@pytest.mark.parametrize("name", ["vit", "conv", "tokens", "orders", "many convolutions", "many stages", "many tokens"])
def test_diagram_is_whole_and_legible(name: str) -> None:
    drawing = all_of_them()[name]
    sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", drawing.svg)]
    assert min(sizes) >= SMALLEST
    places = [float(x) for x in re.findall(r' x="([\d.-]+)"', drawing.svg)]
    assert min(places) >= 0
    assert max(places) <= round(drawing.width, 1)
    assert all(float(wide) > 0 for wide in re.findall(r' width="([\d.-]+)"', drawing.svg))
    arrows = re.findall(r'<line x1="([\d.-]+)" y1="([\d.-]+)" x2="([\d.-]+)" y2="\2"', drawing.svg)
    assert all(float(begin) < float(end) for begin, _, end in arrows)  # to the right


def test_vit_shows_its_shape() -> None:
    assert {"3×32×32", "64 patches of 4×4", "65 tokens", "48 → 128", "6 blocks", "128 → 256 → 128"} <= set(
        words(diagrams.vit(CONFIG, 3, 10))
    )
    assert "64 tokens" in words(diagrams.vit(CONFIG.replace(pool="mean"), 3, 10))


def test_tokenizer_ends_with_the_shape_that_the_module_gives() -> None:
    embed = build_model(CONFIG.replace(tokenizer="conv"), 10, 3).embed
    assert embed(torch.zeros(1, 3, 32, 32)).shape == (1, 64, 128)
    found = words(diagrams.conv_tokenizer(embed, 32))
    assert "128×8×8" in found
    assert "64 places are 64 tokens of 128 numbers" in found


def test_stages_draw_as_many_tokens_as_they_leave() -> None:
    svg = diagrams.fewer_tokens([16, 9, 4], [2, 3], 4).svg
    assert svg.count('fill="#292da4"') == 16 + 9 + 4  # pruned
    assert svg.count('fill="#4c935d"') == 16 + 9 + 4  # merged


def test_orders_count_their_multiply_adds() -> None:
    assert {f"{2 * 65 * 65 * 32:,} multiply-adds", f"{2 * 65 * 32 * 32:,} multiply-adds"} <= set(
        words(diagrams.two_orders(65, 32))
    )
