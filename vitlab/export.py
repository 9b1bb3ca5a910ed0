"""Export of a trained model to a file that other programs run: ONNX, PyTorch's program, or weights alone.

The file is run again in here, by the program that it is meant for, and has to answer as the model does. Input: images
(B, C, S, S), float32 in [−1, 1], any number of them; output: logits (B, classes).
"""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vitlab.errors import LabError
from vitlab.files import writing
from vitlab.models.registry import build_model
from vitlab.runs import Run

BATCHES = (1, 5)  # sizes at which the file's answers are compared
TOLERANCE = 1e-4  # by which logits may differ


@dataclass(frozen=True)
class Format:
    """How a file is written, and how it is run again: path, run -> images to logits."""

    write: Callable[[nn.Module, Run, Path], None]
    read: Callable[[Path, Run], Callable[[Tensor], Tensor]]
    by: str  # the program that runs it again here


def export(run: Run, path: Path) -> float:
    """Write the run's model to `path`, whose ending chooses the format; return by how much logits differ at most.

    LabError for an unknown ending, a file that exists, a module of the reader's own, and where answers differ.
    """
    if path.suffix not in FORMATS:
        raise LabError(f"{path.name} has no ending that export knows: choose {', '.join(FORMATS)}")
    if path.exists():
        raise LabError(f"{path} exists: choose another name, or delete it")
    if "module" in run.record:
        raise LabError(
            f"{run.path.name} holds weights of a class of your own: call torch.export with an instance of it"
        )
    form, model = FORMATS[path.suffix], run.model(device="cpu")
    with writing(path, "FILE") as temporary, _quiet():
        try:
            form.write(model, run, temporary)
        except Exception as error:  # the exporters raise all kinds
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise LabError(f"{type(model).__name__} cannot be written as {path.suffix} ({reason})") from error
        difference = compare(model, form.read(temporary, run), _images(run))
        if not difference <= TOLERANCE:
            raise LabError(f"{form.by} answers otherwise than the model, by {difference:.1e}: no file was written")
    return difference


def compare(model: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """The largest difference of logits over batches of several sizes."""
    with torch.inference_mode():
        return max(float((model(images[:size]) - other(images[:size])).abs().max()) for size in BATCHES)


def about(run: Run) -> dict[str, str]:
    """What whoever runs the file has to know."""
    input_ = f"images (batch, {run.record['channels']}, {run.image_size}, {run.image_size}), float32, bytes / 127.5 - 1"
    return {"run": run.path.name, "input": input_, "classes": json.dumps(run.classes, ensure_ascii=False)}


def _images(run: Run) -> Tensor:
    """Noise in [−1, 1]."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(max(BATCHES), run.record["channels"], run.image_size, run.image_size, generator=generator) * 2 - 1


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters log and print what nobody asked."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def _program(model: nn.Module, run: Run) -> torch.export.ExportedProgram:
    free = ({0: torch.export.Dim.DYNAMIC},)  # the number of images; strict, or len(images) would fix it
    with torch.no_grad():  # not inference mode, whose tensors an exporter may not change
        return torch.export.export(model, (_images(run),), dynamic_shapes=free, strict=True)


# ---------------------------------------------------------------- the formats


def _write_program(model: nn.Module, run: Run, path: Path) -> None:
    with path.open("wb") as file:
        torch.export.save(_program(model, run), file, extra_files={"about.json": json.dumps(about(run))})


def _read_program(path: Path, run: Run) -> Callable[[Tensor], Tensor]:
    with path.open("rb") as file:
        return torch.export.load(file).module()


def _write_onnx(model: nn.Module, run: Run, path: Path) -> None:
    import onnx

    with torch.no_grad():
        program = torch.onnx.export(_program(model, run), input_names=["images"], output_names=["logits"], dynamo=True)
    made = program.model_proto
    onnx.helper.set_model_props(made, about(run))
    path.write_bytes(made.SerializeToString())


def _read_onnx(path: Path, run: Run) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _write_weights(model: nn.Module, run: Run, path: Path) -> None:
    from safetensors.torch import save

    config = {"config": json.dumps(run.record["config"])}
    weights = {name: value.clone().contiguous() for name, value in model.state_dict().items()}
    path.write_bytes(save(weights, metadata=about(run) | config))


def _read_weights(path: Path, run: Run) -> Callable[[Tensor], Tensor]:
    from safetensors.torch import load

    model = build_model(run.config, len(run.classes), run.record["channels"])
    model.load_state_dict(load(path.read_bytes()))
    return model.eval()


FORMATS = {
    ".onnx": Format(_write_onnx, _read_onnx, "onnxruntime"),
    ".pt2": Format(_write_program, _read_program, "torch.export"),
    ".safetensors": Format(_write_weights, _read_weights, "torch"),
}
