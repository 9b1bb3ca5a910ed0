"""A trained model to play with in JupyterLab: any image, the next mistake, a picture of one's own."""

import html
import io
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
import torch
from IPython.display import display
from matplotlib.figure import Figure
from torch import Tensor, nn

from vitlab.analysis import attention, pictures
from vitlab.data.pictures import as_pixels
from vitlab.data.splits import Data
from vitlab.errors import LabError
from vitlab.kernel import reader
from vitlab.models.reduce import ReducedViT
from vitlab.models.vit import ViT
from vitlab.report.notebook import Picture
from vitlab.runs import Run

ANY = "any class"


def explore_run(run: Run, data: Data, module: nn.Module | None = None) -> None:
    """In JupyterLab: controls for a test image or a picture of one's own, and what the trained model makes of it.

    Shown are the probabilities, and what the model's blocks attend to, or which tokens they keep or merge. Without a
    reader nothing is shown. `module`: an instance of the class that a run of the reader's own holds weights of.
    """
    if reader():
        Explorer(run, data, module).show()


def what_is_seen(model: nn.Module, image: Tensor, block: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The probabilities (classes,) for a uint8 (C, S, S) image, and maps over it, of tokens or of attention.

    Where tokens are reduced: of each stage which token a patch is part of, -1 for none. Else the attention of `block`,
    counted from 1, and rollout up to it.
    """
    seen = attention.trace(model, image[None]) if isinstance(model, ViT) else {}  # no tokens in a ResNet
    with torch.inference_mode():
        probabilities = model(attention.to_float(image[None])).softmax(-1)[0]
    if isinstance(model, ReducedViT):
        made, maps = attention.composition(seen["reduced"], seen["attention"]), {}
        for stage, (first, left) in enumerate(zip(model.stages, model.tokens_per_stage(), strict=True), 1):
            where = attention.groups(made[first], model.grid)[0]
            maps[f"stage {stage}: {left} of {len(where)}"] = where.view(model.grid, model.grid)
        return probabilities, maps
    if "attention" not in seen:  # there are no weights in linear attention
        return probabilities, {}
    upto = seen["attention"][:block]
    heads = attention.attention_of_heads(upto[-1], model.grid)[0]
    maps = {"rollout": attention.rollout(upto, model.grid)[0]}
    return probabilities, maps | {f"head {h + 1}": weights for h, weights in enumerate(heads)}


class Explorer:
    """Controls, a remark and a picture; the picture is replaced, so that the page does not move."""

    def __init__(self, run: Run, data: Data, module: nn.Module | None = None) -> None:
        self.run, self.test, self.model = run, data.test, run.model(module, device="cpu")
        logits, self.labels = run.predictions
        self.wrong = logits.argmax(1) != self.labels
        self.own: Tensor | None = None
        self.image = widgets.BoundedIntText(0, 0, len(self.labels) - 1, description="test image")
        self.of_class = widgets.Dropdown(options=[ANY, *run.classes], description="of")
        self.mistake = widgets.Button(description="next mistake")
        self.upload = widgets.FileUpload(accept="image/*", description="own picture")
        self.remark = widgets.HTML(layout={"min_height": "2em"})  # empty too, or the page would move
        depth = len(self.model.blocks) if isinstance(self.model, ViT) else 1
        self.block = widgets.IntSlider(depth, 1, depth, description="block")
        ratio = getattr(self.model, "keep_ratio", 1.0)
        self.ratio = widgets.FloatSlider(ratio, min=min(0.1, ratio), max=1.0, step=0.05, description="keep ratio")

    def show(self) -> None:
        first = widgets.HBox([self.image, self.of_class, self.mistake, self.upload])
        _, maps = what_is_seen(self.model, self.test.images_at([0])[0], self.block.value)
        sliders = [self.ratio] if isinstance(self.model, ReducedViT) else [self.block] if maps else []
        display(widgets.VBox([first, *sliders, self.remark]))
        self.picture = Picture()
        self.image.observe(self._image_chosen, "value")
        self.of_class.observe(lambda _: self._go_to(self._members()), "value")
        self.mistake.on_click(lambda _: self._go_to(self._members() & self.wrong))
        self.upload.observe(self._uploaded, "value")
        for slider in sliders:
            slider.observe(lambda _: self._draw(), "value")
        self._draw()

    def _members(self) -> np.ndarray:
        """(N,) bool: test images of the chosen class."""
        name = self.of_class.value
        return np.full(len(self.labels), True) if name == ANY else self.labels == self.run.classes.index(name)

    def _go_to(self, fitting: np.ndarray) -> None:
        """The next fitting image after the one shown, or the first."""
        places = np.flatnonzero(fitting)
        if not len(places):
            self.remark.value = "there is none"
            return
        later = places[places > self.image.value]
        if (chosen := int((later if len(later) else places)[0])) == self.image.value:
            self._image_chosen()  # an own picture may stand in its place
        self.image.value = chosen

    def _image_chosen(self, _: Any = None) -> None:
        self.own, self.remark.value = None, ""
        self._draw()

    def _uploaded(self, _: Any) -> None:
        if not self.upload.value:
            return
        content = io.BytesIO(bytes(self.upload.value[-1]["content"]))
        try:
            self.own, self.remark.value = as_pixels(
                content, self.run.record["channels"], self.run.image_size, self.run.record.get("rule")
            )
        except LabError as error:
            self.remark.value = html.escape(str(error).replace(str(content), self.upload.value[-1]["name"]))
            return
        self._draw()

    def _draw(self) -> None:
        self.picture.draw(self._figure())

    def _figure(self) -> Figure:
        index = self.image.value
        image = self.test.images_at([index])[0] if self.own is None else self.own
        self.model.keep_ratio = self.ratio.value
        probabilities, maps = what_is_seen(self.model, image, self.block.value)
        name = "own picture" if self.own is not None else f"test image {index}: {self.run.classes[self.labels[index]]}"
        return pictures.explored(image, name, pd.Series(probabilities.numpy(), self.run.classes), maps)
