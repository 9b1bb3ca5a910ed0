"""Every chapter runs on two classes with two images each, or says before any training why not."""

from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL
from PIL import Image

from vitlab.lab import Lab
from vitlab.lab.plan import NOTEBOOKS
from vitlab.parameters import as_profile
from vitlab.report.make import run_notebook


@pytest.mark.slow
@pytest.mark.parametrize("parts", [("",), ("train", "test")], ids=["split by us", "train and test"])
def test_every_chapter_runs_on_two_images_of_two_classes(
    parts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as here: costs are kept by the number of threads
    rng = np.random.default_rng(0)
    for part in parts:
        for name in ("cat", "dog"):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for i in range(2):
                pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / part / name / f"{i}.png")
    folders = {"data_dir": str(tmp_path / "data"), "runs_dir": str(tmp_path / "runs")}
    params = SMALL.replace(dataset="folder", epochs=1, rounds=1, **folders)
    lab = Lab.of(params)
    for chapter in ("01", "02", "03", "04", "06"):
        if chapter == "06":  # chapter 05 measures models of its own sizes, which takes long, and these
            for name in lab.plan.names:
                lab.costs.of(lab.plan.config(name))
        run_notebook(NOTEBOOKS[chapter], tmp_path / f"{chapter}.ipynb", as_profile(params))
