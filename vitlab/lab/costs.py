"""What the lab's models cost: measured once for a shape, a machine and this code, and kept as files."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from vitlab.analysis import complexity
from vitlab.config import RunConfig
from vitlab.errors import LabError
from vitlab.files import writing
from vitlab.lab.plan import how_to_make
from vitlab.machine import ROOT, environment
from vitlab.models.registry import MODELS, SHARED

CODE = ("models/*.py", "machine.py", "analysis/complexity.py")  # sources that decide what a measurement gives


@dataclass(frozen=True)
class Costs:
    """Measurements in `folder`, of models for images of `channels` and `num_classes`."""

    folder: Path
    num_classes: int
    channels: int

    def measured(self, what: str, key: Any, measure: Callable[[], Any] | None) -> Any:
        """A measurement kept as a file: taken once, then read.

        Without `measure` it is only read, also where the code has changed since.
        """
        path, about = self._place(what, key)
        about["code"] = code_digest()
        stale = not path.exists() or json.loads(path.read_text(encoding="utf-8")).get("code") != about["code"]
        if stale and measure is not None:
            result = measure()
            with writing(path) as temporary:
                temporary.write_text(json.dumps(about | {"result": result}, indent=1) + "\n", encoding="utf-8")
        elif not path.exists():
            raise LabError(f"{what} has not been measured in {self.folder.parent}: {how_to_make('05')}")
        return json.loads(path.read_text(encoding="utf-8"))["result"]

    def latest(self, what: str) -> pd.DataFrame:
        """The measurement of this kind, of whatever shape, that was taken last on this machine."""
        machine = self._place(what, None)[1]["machine"]
        paths = sorted(self.folder.glob(f"{what}-*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        for content in (json.loads(path.read_text(encoding="utf-8")) for path in paths):
            if content["machine"] == machine:
                return pd.DataFrame(content["result"])
        raise LabError(f"{what} has not been measured in {self.folder.parent}: {how_to_make('05')}")

    def _place(self, what: str, key: Any) -> tuple[Path, dict[str, Any]]:
        """Where a measurement on this machine is kept, and what it is of."""
        here = environment()
        about = {"what": what, "key": key, "machine": {k: here[k] for k in ("device", "threads", "versions")}}
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:10]
        return self.folder / f"{what}-{digest}.json", about

    def _shape(self, config: RunConfig) -> dict[str, Any]:
        """What decides the cost of inference."""
        names = ("model", *SHARED, *MODELS[config.model].options)
        training = {"init", "dropout", "drop_path", "ratio_weight", "distill_weight"}
        shape = {name: getattr(config, name) for name in names if name not in training}
        return shape | {"num_classes": self.num_classes, "channels": self.channels}

    def of(self, config: RunConfig, only_read: bool = False) -> dict[str, Any]:
        """`complexity.measure` of a configuration."""
        shape = self.channels, self.num_classes
        measure = None if only_read else lambda: complexity.measure(config, *shape)
        return self.measured("model", self._shape(config), measure)

    def path_of(self, config: RunConfig) -> Path:
        """The file of `of` on this machine, whether it exists or not."""
        return self._place("model", self._shape(config))[0]

    def macs(self, config: RunConfig) -> dict[str, int]:
        """MACs of one image by component."""
        return complexity.macs(config, self.channels, self.num_classes)

    def by_keep_ratio(self, config: RunConfig, ratios: tuple[float, ...]) -> pd.DataFrame:
        """Cost of a DynamicViT by keep ratio."""

        def measure() -> list[dict]:
            return complexity.by_keep_ratio(config, ratios, self.channels, self.num_classes).to_dict("records")

        return pd.DataFrame(self.measured("keep_ratio", self._shape(config) | {"ratios": ratios}, measure))

    def growth(self, config: RunConfig, tokens: list[int]) -> pd.DataFrame:
        """`complexity.growth` of one attention layer of each kind."""
        names = {"dim", "heads", *(option for row in MODELS.values() if row.attention for option in row.options)}
        key = {name: getattr(config, name) for name in sorted(names)} | {"tokens": tokens}
        return pd.DataFrame(self.measured("growth", key, lambda: complexity.growth(config, tokens).to_dict("records")))


@cache
def code_digest() -> str:
    paths = [path for pattern in CODE for path in sorted((ROOT / "vitlab").glob(pattern))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:12]
