"""Train runs of a profile without a notebook, in one process or, with `accelerate launch`, in several.

    python -m vitlab.fit --params params/quick.yaml --run "ViT"
    accelerate launch --num_processes 4 -m vitlab.fit --params params/cifar10_gpu.yaml --run "ViT" "Linear ViT"

They lie where the chapters look for them, which then find them complete.
"""

import argparse
import sys
from pathlib import Path

import torch
from accelerate import PartialState

from vitlab.config import LabError, add_overrides, load_params
from vitlab.lab import Lab


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m vitlab.fit", description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, required=True, help="a profile, such as params/cifar10_gpu.yaml")
    parser.add_argument("--run", nargs="+", required=True, metavar="NAME", help='such as "ViT" or "sampler, seed 0"')
    overrides = add_overrides(parser)
    arguments = parser.parse_args()
    state = PartialState(cpu=not torch.cuda.is_available())  # joins the processes, if there are several
    try:
        params = load_params(arguments.params, overrides(arguments))
        with state.main_process_first():  # which decodes the images for the others
            lab = Lab.of(params)
        configs = {name: lab.config(name) for name in arguments.run}  # a misspelt one stops all before hours of work
        for name, config in configs.items():
            run = lab.train(config)
            if state.is_main_process:
                print(f"{name}: test accuracy {run.summary['test']['accuracy']:.1%}, in {run.path}")
    except LabError as error:
        print(f"vitlab.fit: {error}", file=sys.stderr)
        return 1
    finally:
        state.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
