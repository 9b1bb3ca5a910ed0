"""vitlab's commands: python -m vitlab report | train | predict | …, or `vitlab …` where it is installed.

    vitlab report --profile quick
    vitlab train --params params/quick.yaml --run "ViT"
    vitlab predict RUN picture.jpg
    vitlab evaluate RUN --data FOLDER
    vitlab analyze --preset small --models vit dynamic_vit
    vitlab export RUN model.onnx
    accelerate launch --num_processes 4 -m vitlab train --params params/cifar10_gpu.yaml --run "ViT" "Linear ViT"

`train` makes runs without a notebook, in one process or several; the chapters then find them complete.
"""

import argparse
import contextlib
import itertools
import os
import sys
from pathlib import Path
from typing import NoReturn

from vitlab.errors import LabError, told


def report(arguments: argparse.Namespace) -> None:
    from vitlab.report.make import make  # here, so that each command loads only what it needs

    make(arguments.profile, arguments.overrides, arguments.out)


def train(arguments: argparse.Namespace) -> None:
    import torch
    from accelerate import PartialState

    from vitlab.lab import Lab
    from vitlab.machine import launched_processes, require_as_launched
    from vitlab.parameters import load_params, profile_path

    require_as_launched()
    params = load_params(profile_path(arguments.params), arguments.overrides)
    state = PartialState(cpu=not torch.cuda.is_available()) if launched_processes() > 1 else None
    with state.main_process_first() if state else contextlib.nullcontext():  # it decodes the images for the others
        lab = Lab.of(params)
    try:
        configs = {name: lab.plan.config(name) for name in arguments.run}  # a misspelt one stops all before any work
        if state is None or state.is_main_process:
            for note in lab.notes:
                print(f"note: {note}")
        if params.cluster:
            lab.train(configs)
        runs = []
        for name, config in sorted(configs.items(), key=lambda named: bool(named[1].init_from)):  # starts come first
            runs.append(run := lab.train_one(config))
            if state is None or state.is_main_process:
                print(f"{name}: test accuracy {run.summary['test']['accuracy']:.1%}, in {run.path}")
        if state is None or state.is_main_process:
            lab.tell_of_other_code(runs)
    finally:
        if state:
            state.destroy_process_group()


def lab(arguments: argparse.Namespace) -> None:
    import subprocess

    root = Path(__file__).resolve().parent.parent
    first = min(root.glob("notebooks/01_*.ipynb")).relative_to(root).as_posix()
    hook = "--FileContentsManager.pre_save_hook=vitlab.report.saving.without_widgets"
    kernels = "--ServerApp.kernel_spec_manager_class=vitlab.report.kernels.OwnKernels"  # of this interpreter
    command = [sys.executable, "-m", "jupyter", "lab", f"--LabApp.default_url=/lab/tree/{first}", hook, kernels]
    with subprocess.Popen([*command, *arguments.options], cwd=root) as server:
        while server.poll() is None:
            with contextlib.suppress(KeyboardInterrupt):  # Jupyter hears it as well, and asks whether to stop
                server.wait()


def predict(arguments: argparse.Namespace) -> None:
    from vitlab.lab.use import find_run, require_pictures_only

    run = find_run(arguments.run)
    require_pictures_only(run)
    faults = []
    for picture in arguments.image:
        try:
            print(f"{picture}: {run.predict(picture)}")
        except LabError as fault:  # the others are answered all the same
            faults.append(str(fault))
    if faults:
        raise LabError("; ".join(dict.fromkeys(faults)))


def evaluate(arguments: argparse.Namespace) -> None:
    from vitlab.files import writing
    from vitlab.lab.use import confusion, evaluate_run, find_run

    run = find_run(arguments.run)
    path = arguments.csv
    if path is None:
        stem = f"{run.path.name}-{Path(arguments.data).resolve().name if arguments.data else 'test'}"
        numbered = (Path(f"{stem}{f'-{n}' if n > 1 else ''}.csv") for n in itertools.count(1))
        path = next(name for name in numbered if not name.exists())
    elif path.exists():
        raise LabError(f"{path} exists already: name another file with --csv")
    scores, rows, remark = evaluate_run(run, arguments.data)
    with writing(path, "--csv FILE") as temporary:
        rows.to_csv(temporary, index=False)
    low, high = (100 * end for end in scores["interval"])
    f1_low, f1_high = scores["f1_interval"]
    print(f"accuracy {scores['accuracy']:.1%} of {scores['n']:,} images (95% interval {low:.1f} – {high:.1f}%)")
    print(f"macro F1 {scores['f1']['macro']:.3f} ({f1_low:.3f} – {f1_high:.3f}), top-2 {scores['top_2']:.1%}")
    print(f"\nrows: class, columns: answer\n{confusion(run, scores).to_string()}\n")
    print(f"{remark + ' ' if remark else ''}Every image's answer: {path}")


def analyze(arguments: argparse.Namespace) -> None:
    from vitlab.lab.use import analyze

    print(analyze(arguments.preset, arguments.models, arguments.overrides).to_string())


def export(arguments: argparse.Namespace) -> None:
    from vitlab.export import FORMATS, export
    from vitlab.lab.use import find_run

    difference = export(find_run(arguments.run), arguments.file)
    size = arguments.file.stat().st_size / 2**20
    program = FORMATS[arguments.file.suffix].by
    print(f"{arguments.file}: {size:.1f} MiB; run again by {program}, its logits differ by {difference:.0e} at most")


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a command in a sentence, as everything else here does."""

    def error(self, message: str) -> NoReturn:
        raise LabError(f"{message}; {self.prog} --help shows what there is")


def parser() -> argparse.ArgumentParser:
    from typing import get_args

    from vitlab.config import Preset
    from vitlab.parameters import add_overrides

    whole = Parser(prog="vitlab", description=__doc__.splitlines()[0])
    commands = whole.add_subparsers(dest="command", required=True)
    one = commands.add_parser("report", help="run the six notebooks and render the report")
    one.add_argument("--profile", default="quick", help="params/<profile>.yaml (make: PROFILE=…)")
    one.add_argument("--out", default="", help="where to put the report (OUT=…); default: reports/<profile>")
    one.set_defaults(work=report, read=add_overrides(one))
    one = commands.add_parser("train", help="train runs of a profile without a notebook")
    one.add_argument("--params", required=True, help="a profile, such as params/cifar10_gpu.yaml")
    one.add_argument(
        "--run", nargs="+", action="extend", required=True, metavar="NAME", help='such as "ViT" or "sampler, seed 0"'
    )
    one.set_defaults(work=train, read=add_overrides(one))
    one = commands.add_parser("lab", help="open JupyterLab at chapter 01 (make lab)")
    one.add_argument("options", nargs="*", help="for jupyter lab, after --: vitlab lab -- --no-browser --port=8889")
    one.set_defaults(work=lab, read=_none)
    run_help = "a run's directory, its name in runs/, or a report's folder for its best ViT"
    one = commands.add_parser("predict", help="what a trained model answers to pictures")
    one.add_argument("run", metavar="RUN", help=run_help)
    one.add_argument("image", nargs="+", metavar="IMAGE", help="any format, size and mode")
    one.set_defaults(work=predict, read=_none)
    one = commands.add_parser("evaluate", help="score a trained model on other images")
    one.add_argument("run", metavar="RUN", help=run_help)
    one.add_argument("--data", default="", metavar="FOLDER", help="class folders; default: the run's own test images")
    one.add_argument(
        "--csv", type=Path, metavar="FILE", help="where every image's answer goes; default: RUN-FOLDER.csv"
    )
    one.set_defaults(work=evaluate, read=_none)
    one = commands.add_parser("analyze", help="parameters, work, time and memory of models: chapter 05's table")
    one.add_argument("--preset", default="small", choices=get_args(Preset))
    one.add_argument(
        "--models", nargs="+", action="extend", default=[], metavar="NAME", help="such as vit dynamic_vit; default: all"
    )
    one.set_defaults(work=analyze, read=add_overrides(one))
    one = commands.add_parser("export", help="write a trained model for other programs, and run it again from there")
    one.add_argument("run", metavar="RUN", help=run_help)
    one.add_argument("file", type=Path, metavar="FILE", help="its ending decides: .onnx, .pt2 or .safetensors")
    one.set_defaults(work=export, read=_none)
    return whole


def _none(arguments: argparse.Namespace) -> dict:
    """A command without parameters to override."""
    return {}


def main(words: list[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):  # a terminal that has no "…" shows another sign
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")

    def work() -> None:
        arguments = parser().parse_args(words)
        arguments.overrides = arguments.read(arguments)
        arguments.work(arguments)

    try:
        try:
            return told("vitlab", work)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read what is printed has gone, as `head` does
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # or Python complains when it flushes
        return 1


if __name__ == "__main__":
    sys.exit(main())
