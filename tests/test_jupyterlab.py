"""The notebooks as a student uses them: in a real JupyterLab, in a real browser."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import yaml
from browser import chromium
from conftest import SHARED_RUNS, SMALL
from PIL import Image

from vitlab.lab.plan import NOTEBOOKS
from vitlab.report.saving import WIDGET

asked = os.environ.get("VITLAB_JUPYTERLAB")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not asked, reason="runs all six notebooks in a browser: VITLAB_JUPYTERLAB=1 asks for it"),
]
PROGRESS = "progress"  # the element that a running training shows
STOPPABLE = [
    "# Parameters of this chapter\nmore = {}",
    "from vitlab.lab import Lab\nlab = Lab.open(globals())",
    'run = lab.train_one(lab.plan.config("ViT").replace(epochs=8, batch_size=8))',
    'print("the end", run.summary["epochs"])',
]
# JavaScript; `panel` is the open notebook
IDLE = "() => jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'"
OUTPUTS = "() => jupyterapp.shell.currentWidget.content.model.toJSON().cells.map((cell) => cell.outputs ?? [])"
COMMAND = "(name) => jupyterapp.commands.execute(name)"
THEME = "(theme) => jupyterapp.commands.execute('apputils:change-theme', { theme })"


class Lab:
    """One page of a running JupyterLab."""

    def __init__(self, page: Any, address: str, folder: Path) -> None:
        self.page, self.address, self.folder = page, address, folder

    def open(self, name: str) -> None:
        self.page.goto(f"{self.address}/lab/tree/notebooks/{name}?reset")
        self.page.wait_for_function(
            "() => window.jupyterapp && jupyterapp.shell.currentWidget?.context?.isReady"
            " && jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'",
            timeout=120_000,
        )

    def run_all(self) -> None:
        """Run All, and wait for its end."""
        self.page.evaluate(COMMAND, "notebook:run-all-cells")

    def start_all(self) -> None:
        self.page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells') }")

    def outputs(self) -> list[list[dict]]:
        """Of each cell."""
        return self.page.evaluate(OUTPUTS)

    def close(self) -> None:
        self.page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.shutdown()")

    def show(self, selector: str, name: str) -> Any:
        """Bring a part of the notebook, which draws what is in sight, into sight; a screenshot is kept if asked for."""
        found = self.page.locator(selector).first
        found.scroll_into_view_if_needed(timeout=60_000)
        if folder := os.environ.get("VITLAB_SCREENSHOTS"):
            for theme in ("Dark", "Light"):
                self.page.evaluate(THEME, f"JupyterLab {theme}")
                self.page.wait_for_timeout(500)
                self.page.locator("#jupyterlab-splash").wait_for(state="detached")  # it covers a change of theme
                self.page.screenshot(path=Path(folder) / f"{name}-{theme.lower()}.png")
        return found


def faults(outputs: list[list[dict]]) -> list[str]:
    """What a student would take for a fault: errors, and whatever is written in red."""
    wrong = [o for cell in outputs for o in cell if o["output_type"] == "error" or o.get("name") == "stderr"]
    return [str(output.get("evalue") or output.get("text")) for output in wrong]


def texts(outputs: list[list[dict]], mime: str) -> str:
    return "".join("".join(o["data"][mime]) for cell in outputs for o in cell if mime in o.get("data", {}))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab as `make lab` starts it, over copies of the notebooks, with parameters that train in seconds."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browser_path, folder = chromium(), tmp_path_factory.mktemp("lab")
    shutil.copytree(NOTEBOOKS["01"].parent, folder / "notebooks", ignore=shutil.ignore_patterns(".*"))
    cells = [nbformat.v4.new_code_cell(source) for source in STOPPABLE]
    metadata = nbformat.read(NOTEBOOKS["01"], as_version=4).metadata  # with its kernel
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), folder / "notebooks" / "stoppable.ipynb")
    small = SMALL.replace(study_seeds=1).model_dump(exclude_defaults=True, exclude={"runs_dir"})
    (folder / "mine.yaml").write_text(yaml.safe_dump(small), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"--ServerApp.root_dir={folder}", f"--port={port}", "--no-browser", "--expose-app-in-browser"]
    options += ["--IdentityProvider.token=", "--ServerApp.port_retries=0", "--allow-root"]
    environment = os.environ | {"VITLAB_RUNS": str(SHARED_RUNS), "VITLAB_PARAMS": str(folder / "mine.yaml")}
    environment |= {"JUPYTER_CONFIG_DIR": str(folder / "config"), "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings")}
    command, address = [sys.executable, "-m", "vitlab", "lab", "--", *options], f"http://127.0.0.1:{port}"
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True) as server,
    ):
        try:
            wait_for(address, server, folder / "log")
            with sync_api.sync_playwright() as playwright:
                browser = playwright.chromium.launch(
                    executable_path=browser_path, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
                )
                page = browser.new_page(viewport={"width": 1280, "height": 1000})
                page.set_default_timeout(300_000)
                yield Lab(page, address, folder)
                browser.close()
        finally:
            with contextlib.suppress(ProcessLookupError):  # it has not even started
                os.killpg(server.pid, signal.SIGTERM)


def wait_for(address: str, server: subprocess.Popen, log: Path, seconds: float = 90) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end and server.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/api", timeout=5)
            return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"JupyterLab did not start: {log.read_text()[-2000:]}")


@pytest.mark.parametrize("chapter", NOTEBOOKS)
def test_run_all_leaves_no_fault_and_no_bar(lab: Lab, chapter: str) -> None:
    lab.open(NOTEBOOKS[chapter].name)
    lab.run_all()
    outputs = lab.outputs()
    assert faults(outputs) == []
    assert PROGRESS not in texts(outputs, "text/html")
    assert texts(outputs, "text/markdown").count("**Figure") >= 2
    said = "".join(o["text"] for cell in outputs for o in cell if o.get("name") == "stdout")
    assert said.count("not yet") in (2, 3), said  # the exercises
    if chapter in ("02", "03"):
        explore(lab, chapter)
    lab.close()


class Explored:
    """A cell with controls and the picture that answers them, which is what a saved notebook keeps."""

    def __init__(self, lab: Lab, number: int) -> None:
        self.lab, self.number, self.seen = lab, number, []
        lab.page.evaluate("(i) => jupyterapp.shell.currentWidget.content.scrollToItem(i)", number)
        self.place = lab.page.locator(f".jp-CodeCell[data-windowed-list-index='{number}']")
        self.place.locator(".jupyter-widgets").first.wait_for()
        self.seen.append(self.picture())

    def picture(self) -> str:
        outputs = self.lab.outputs()[self.number]
        [found] = [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
        return found

    def has_changed(self, what: str) -> None:
        end = time.perf_counter() + 60
        while self.picture() in self.seen:
            assert time.perf_counter() < end, f"{what} changed nothing"
            time.sleep(0.2)
        self.lab.page.wait_for_function(IDLE)
        self.seen.append(self.picture())

    def choose(self, number: int, option: str) -> None:
        self.place.locator(".widget-dropdown select").nth(number).select_option(option)
        self.has_changed(option)

    def slide(self, number: int, value: str) -> None:
        self.place.locator(".widget-slider .widget-readout").nth(number).fill(value)
        self.lab.page.keyboard.press("Enter")
        self.has_changed(f"slider {number}")


def explore(lab: Lab, chapter: str) -> None:
    """Use each control."""
    page = lab.page
    *others, number = [i for i, cell in enumerate(lab.outputs()) if any(WIDGET in o.get("data", {}) for o in cell)]
    for other in others:  # chapter 03: any image, method and keep ratio
        cell = Explored(lab, other)
        begin = cell.place.locator(".widget-readout").nth(1)
        begin.filter(has_text=f"{SMALL.keep_ratio:.2f}").wait_for(timeout=10_000)  # as it was trained
        cell.choose(0, "ToMe")
        cell.slide(0, "7")
        cell.slide(1, "1")
    cell = Explored(lab, number)
    lab.show(".widget-button:has-text('next mistake')", f"explore-{chapter}").click()
    cell.has_changed("next mistake")
    cell.choose(0, "3")
    cell.slide(0, "0.3" if chapter == "03" else "1")
    own = lab.folder / "own.png"
    Image.fromarray(np.arange(40 * 30 * 3).reshape(30, 40, 3).astype(np.uint8)).save(own)
    with page.expect_file_chooser() as chooser:
        cell.place.locator(".jupyter-widgets.widget-upload").click()
    chooser.value.set_files(own)
    cell.has_changed("own picture")
    said = cell.place.locator(".widget-vbox").first.inner_text()
    assert "cropped and resized from 40×30 to 8×8 and made grey" in said
    lab.show(".widget-upload", f"own-{chapter}")
    page.evaluate(COMMAND, "docmanager:save")
    saved = json.loads((lab.folder / "notebooks" / NOTEBOOKS[chapter].name).read_text(encoding="utf-8"))
    for place in (*others, number):
        kept = [set(o["data"]) for o in saved["cells"][place]["outputs"]]
        assert not [data for data in kept if WIDGET in data]
        assert [data for data in kept if "image/png" in data]


def test_training_is_stopped_in_a_sentence_and_resumed(lab: Lab) -> None:
    lab.open("stoppable.ipynb")
    lab.start_all()
    lab.page.locator("[role=status] :text('epoch 2 of 8')").wait_for(state="attached")  # one is kept
    shown = lab.show("[role=status]", "waiting").inner_text()
    assert [word for word in ("ViT", "loss", "validation", "left", "images/s") if word not in shown] == []
    assert lab.page.locator("[role=status] svg polyline").count() == 1
    lab.page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.interrupt()")
    lab.show("text=run this cell again to continue", "stopped")
    lab.page.wait_for_function(IDLE)
    outputs = lab.outputs()
    assert faults(outputs) == []
    assert PROGRESS not in texts(outputs, "text/html")
    assert outputs[3] == []  # Run All went no further

    lab.start_all()
    resumed = lab.show(f"[role=status]:has({PROGRESS})", "resumed").inner_text()
    assert int(re.search(r"epoch (\d) of 8", resumed)[1]) >= 2
    lab.page.wait_for_function(f"() => ({OUTPUTS})()[3].length")
    outputs = lab.outputs()
    assert faults(outputs) == []
    assert texts(outputs, "text/html") == ""
    assert outputs[3][0]["text"].split() == ["the", "end", "8"]
    lab.close()
