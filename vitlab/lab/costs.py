"""What the lab's models cost: measured once for a shape, a machine, its device and this code, and kept as files."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vitlab.analysis import complexity, timing
from vitlab.config import RunConfig
from vitlab.errors import LabError
from vitlab.files import code_digest, writing
from vitlab.lab.plan import how_to_make
from vitlab.machine import pace
from vitlab.models.registry import MODELS

CODE = (
    "models/*.py",
    "machine.py",
    "analysis/complexity.py",
    "analysis/timing.py",
)  # sources that decide what a measurement gives


@dataclass(frozen=True)
class Costs:
    """Measurements in `folder`, of models for images of `channels` and `num_classes`."""

    folder: Path
    num_classes: int
    channels: int
    together: tuple[RunConfig, ...] = ()  # models that are compared: measured in turns, when the first is asked for
    measurement: int = 0  # another number measures anew
    rounds: int = timing.ROUNDS  # in which what is compared takes turns, at least

    def measured(self, what: str, key: Any, measure: Callable[[], Any] | None, on: str = "auto") -> Any:
        """A measurement kept as a file: taken once, then read; on: the parameter `device` of what is measured.

        Without `measure` it is only read, also where the code has changed since, or it was taken on another machine or
        device.
        """
        return self._record(what, key, measure, on)["result"]

    def _record(self, what: str, key: Any, measure: Callable[[], Any] | None, on: str) -> dict[str, Any]:
        """A measurement, and what and where it is of."""
        path, about = self._place(what, key, on)
        about["code"] = code_digest(*CODE)
        stored = _stored(path)
        if measure is not None and (stored is None or stored["code"] != about["code"]):
            stored = about | {"result": measure()}
            with writing(path) as temporary:
                temporary.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
            stored = _stored(path)
        if measure is None and stored is None:
            alike = "key", "measurement", "rounds"
            elsewhere = (one for one in self._kept(what) if all(one.get(name) == about[name] for name in alike))
            stored = next(elsewhere, None)
        if stored is None:
            raise LabError(f"{what} has not been measured in {self.folder.parent}: {how_to_make('05')}")
        return stored

    def latest(self, what: str, **of: Any) -> pd.DataFrame:
        """The last measurement of this kind on this machine and the lab's device, in this lab's number of rounds.

        of: what its key has to say, as dim=128; the rest of its shape is whatever it is.
        """
        about = {"measurement": self.measurement, "rounds": self.rounds}
        about["machine"] = pace(next((config.device for config in self.together), "auto"))
        for content in self._kept(what):
            alike = all(content.get(name) == value for name, value in about.items())
            if alike and of.items() <= content["key"].items():
                return pd.DataFrame(content["result"])
        raise LabError(f"{what} has not been measured in {self.folder.parent}: {how_to_make('05')}")

    def _kept(self, what: str) -> list[dict[str, Any]]:
        """Measurements of this kind, of whatever shape and on whatever machine, the last one first."""
        paths = sorted(self.folder.glob(f"{what}-*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        return [content for content in map(_stored, paths) if content]

    def _place(self, what: str, key: Any, on: str) -> tuple[Path, dict[str, Any]]:
        """Where a measurement on this machine is kept, and what it is of."""
        about = {"what": what, "key": key, "measurement": self.measurement, "rounds": self.rounds}
        about["machine"] = pace(on)
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:10]
        return self.folder / f"{what}-{digest}.json", about

    def _shape(self, config: RunConfig) -> dict[str, Any]:
        """What decides the cost of inference."""
        row = MODELS[config.model]
        names = ("model", "image_size", *row.shared, *row.options)
        of_training = {"init", "dropout", "drop_path", "ratio_weight", "distill_weight"}
        of_training |= {"backbone_rate", "frozen", "settle"}
        shape = {name: getattr(config, name) for name in names if name not in of_training}
        return shape | {"num_classes": self.num_classes, "channels": self.channels}

    def _compared(self, config: RunConfig) -> list[RunConfig]:
        """The models that are measured with this one, one of each shape: those of `together`, or it alone."""
        shapes = [self._shape(other) for other in self.together]
        if self._shape(config) not in shapes:
            return [config]
        return [other for i, other in enumerate(self.together) if shapes.index(shapes[i]) == i]

    def _shapes(self, config: RunConfig) -> list[dict[str, Any]]:
        return [self._shape(other) for other in self._compared(config)]

    def of(self, config: RunConfig, only_read: bool = False) -> dict[str, Any]:
        """The row of `complexity.measure` of a configuration."""
        compared, shapes = self._compared(config), self._shapes(config)
        sizes = self.channels, self.num_classes, self.rounds
        measure = None if only_read else lambda: complexity.measure(compared, *sizes)
        return self.measured("models", shapes, measure, config.device)[shapes.index(self._shape(config))]

    def where(self, config: RunConfig) -> dict[str, Any]:
        """`machine.pace` of where this model was measured."""
        return self._record("models", self._shapes(config), None, config.device)["machine"]

    def path_of(self, config: RunConfig) -> Path:
        """The file that `of` reads on this machine, whether it exists or not."""
        return self._place("models", self._shapes(config), config.device)[0]

    def ratio(self, config: RunConfig, reference: RunConfig, what: str, only_read: bool = False) -> tuple[float, float]:
        """`timing.ratio` of `what`, "latency" or "images_per_second", to another model's, within rounds if both were
        measured together; NaN of two that were measured on different machines.
        """
        name = "latency_rounds_ms" if what == "latency" else "images_per_second_rounds"
        one, other = (np.array(self.of(of, only_read)[name]) for of in (config, reference))
        together = self._shapes(config) == self._shapes(reference)
        if not together and self.where(config) != self.where(reference):
            return math.nan, math.nan
        return timing.ratio(one, other, together)

    def macs(self, config: RunConfig) -> dict[str, int]:
        """MACs of one image by component."""
        return complexity.macs(config, self.channels, self.num_classes)

    def by_keep_ratio(self, config: RunConfig, ratios: tuple[float, ...]) -> pd.DataFrame:
        """Cost of a DynamicViT by keep ratio."""

        def measure() -> list[dict]:
            sizes = self.channels, self.num_classes, self.rounds
            return complexity.by_keep_ratio(config, ratios, *sizes).to_dict("records")

        key = self._shape(config) | {"ratios": ratios}
        return pd.DataFrame(self.measured("keep_ratio", key, measure, config.device))

    def growth(self, config: RunConfig, tokens: list[int]) -> pd.DataFrame:
        """`complexity.growth` of one attention layer of each kind."""
        names = {"dim", "heads", *(option for row in MODELS.values() if row.attention for option in row.options)}
        key = {name: getattr(config, name) for name in sorted(names)} | {"tokens": tokens}

        def measure() -> list[dict]:
            return complexity.growth(config, tokens, self.rounds).to_dict("records")

        return pd.DataFrame(self.measured("growth", key, measure, config.device))


def _stored(path: Path) -> dict[str, Any] | None:
    """A measurement that was kept; None where there is none, or its file is damaged: then it is taken again."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return stored if {"code", "result"} <= stored.keys() else None
    except (OSError, ValueError, AttributeError):
        return None
