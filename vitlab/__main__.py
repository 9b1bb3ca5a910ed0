"""vitlab's commands: python -m vitlab report | train, or `vitlab …` where it is installed.

    vitlab report --profile quick
    vitlab train --params params/quick.yaml --run "ViT"
    accelerate launch --num_processes 4 -m vitlab train --params params/cifar10_gpu.yaml --run "ViT" "Linear ViT"

`train` makes runs without a notebook, in one process or several; the chapters then find them complete.
"""

import argparse
import contextlib
import sys

from vitlab.errors import LabError


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
        for name, config in configs.items():
            run = lab.train_one(config)
            if state is None or state.is_main_process:
                print(f"{name}: test accuracy {run.summary['test']['accuracy']:.1%}, in {run.path}")
    finally:
        if state:
            state.destroy_process_group()


def parser() -> argparse.ArgumentParser:
    from vitlab.parameters import add_overrides

    whole = argparse.ArgumentParser(prog="vitlab", description=__doc__.splitlines()[0])
    commands = whole.add_subparsers(dest="command", required=True)
    one = commands.add_parser("report", help="run the six notebooks and render the report")
    one.add_argument("--profile", default="quick", help="params/<profile>.yaml (make: PROFILE=…)")
    one.add_argument("--out", default="", help="where to put the report (OUT=…); default: reports/<profile>")
    one.set_defaults(work=report, read=add_overrides(one))
    one = commands.add_parser("train", help="train runs of a profile without a notebook")
    one.add_argument("--params", required=True, help="a profile, such as params/cifar10_gpu.yaml")
    one.add_argument("--run", nargs="+", required=True, metavar="NAME", help='such as "ViT" or "sampler, seed 0"')
    one.set_defaults(work=train, read=add_overrides(one))
    return whole


def main(words: list[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):  # a terminal that has no "…" shows another sign
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    arguments = parser().parse_args(words)
    try:
        arguments.overrides = arguments.read(arguments)
        arguments.work(arguments)
    except LabError as error:
        print(f"vitlab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vitlab: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
