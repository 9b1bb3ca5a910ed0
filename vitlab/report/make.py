"""`make report`: check everything, run the six notebooks with papermill, write the results, render HTML and PDF."""

import hashlib
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import papermill
import yaml
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from vitlab.analysis import plots, tables
from vitlab.analysis.typefaces import typeset
from vitlab.config import LabConfig, RunConfig
from vitlab.errors import LabError
from vitlab.export import export
from vitlab.files import copy, expanded, from_here, reading, require_writable, writing
from vitlab.lab.plan import NOTEBOOKS
from vitlab.lab.results import Lab, check
from vitlab.machine import ROOT, pace
from vitlab.models.registry import MODELS
from vitlab.parameters import as_profile, load_params, profile_path
from vitlab.report.kernels import OwnKernelManager
from vitlab.report.render import PLACE, render
from vitlab.report.title import title_page
from vitlab.runs import Run

PARAMETERS, SOURCES = "parameters.yaml", "sources.yaml"  # a profile that makes the report again; its data
PLACES = {"data_dir", "runs_dir", "extra_runs", "device", "processes", "cluster", "num_workers", "pin_memory"}
INCIDENTAL = PLACES | {"notes", "data_name"}  # no result is to depend on them; on `processes`, see README
KERNEL_SECONDS = 600  # that a notebook's process may take to start, on a machine that others use as well


def make(profile: str, overrides: dict[str, Any], folder: str = "") -> None:
    """Make report.html, report.pdf and the results in `folder`, or in reports/<profile>.

    What the user can mend is a LabError before any work.
    """
    logging.getLogger("papermill").setLevel(logging.ERROR)
    path = profile_path(profile)
    profile = path.stem
    out = expanded(folder or ROOT / "reports" / profile).resolve()
    params = load_params(path, overrides)
    lab = check(params)
    require_writable(out, 16, PLACE)
    for note in lab.notes:
        _say(f"note: {note}")
    require_own(lab, out)
    require_writable(lab.runs_dir, megabytes=16)
    executed = [out / "notebooks" / path.name for path in NOTEBOOKS.values()]
    stamp = out / "notebooks" / "stamp.txt"
    made_from = stamp.read_text(encoding="utf-8") if stamp.exists() else ""
    if made_from != _stamp(lab) or not all(path.exists() for path in executed):
        stamp.unlink(missing_ok=True)
        _train(lab)
        for number, (source, target) in enumerate(zip(NOTEBOOKS.values(), executed, strict=True), 1):
            _say(f"[{number}/{len(executed)}] {source.stem} …")
            started = time.perf_counter()
            run_notebook(source, target, as_profile(params))
            _say(f"[{number}/{len(executed)}] {source.stem} done in {time.perf_counter() - started:.0f} s")
        with writing(stamp, PLACE) as temporary:
            temporary.write_text(_stamp(lab), encoding="utf-8")
    else:
        _say("All six chapters are up to date: rendering them.")
    runs = tables.results(lab)
    results = tables.by_model(runs)
    with writing(out / "results.csv", PLACE) as temporary:
        runs.to_csv(temporary, index=False)
    with writing(out / "pairs.csv", PLACE) as temporary:
        tables.flat(tables.pairs(lab)).to_csv(temporary, index=False)
    with writing(out / "results.tex", PLACE) as temporary:  # for a document with the package booktabs
        table = tables.scores_table(results)
        latex = table.to_latex(escape=True, column_format="l" + "r" * len(table.columns))
        temporary.write_text(latex, encoding="utf-8")
    keep_parameters(lab, out)
    keep_runs(lab, out / "runs")
    figure = plots.accuracy_against_cost(results, runs)
    made_of = {"Source": f"results.csv {file_digest(out / 'results.csv')}"}
    with writing(out / "comparison.png", PLACE) as temporary, typeset(figure):
        figure.savefig(temporary, format="png", dpi=170, bbox_inches="tight", facecolor="white", metadata=made_of)
    others = [out / name for name in ("results.csv", "pairs.csv", "results.tex", "comparison.png")]
    for path in [*render(executed, out, title_page(lab, profile, results)), *others]:
        _say(f"made {from_here(path)}")


def _train(lab: Lab) -> None:
    """Train what can be trained at once; chapter by chapter, cores would wait for the last run of each."""
    if todo := lab.missing(lab.plan.configs.values()):
        started = time.perf_counter()
        _say(f"{len(todo)} trainings …")
        lab.train_at_once(todo)
        if left := lab.missing(todo):
            _say(f"{len(left)} trainings are left to their chapters")
        else:
            _say(f"{len(todo)} trainings done in {time.perf_counter() - started:.0f} s")


def result_parameters(lab: Lab) -> dict[str, Any]:
    """What a report's results depend on: parameters, but for places, names and processes, and what else went in."""
    return lab.params.model_dump(exclude=INCIDENTAL) | sources(lab)


def sources(lab: Lab) -> dict[str, str]:
    """What a report is made of beside parameters: the data's digest and runs of other labs, wherever they are."""
    return {"data": lab.source.digest, "extra_runs": ", ".join(sorted(lab.extra))}


def keep_parameters(lab: Lab, out: Path) -> None:
    """Write into `out` the profile that makes its report again, and its sources."""
    for name, values in ((PARAMETERS, as_profile(lab.params, without=PLACES)), (SOURCES, sources(lab))):
        with writing(out / name, PLACE) as temporary:
            temporary.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")


def require_own(lab: Lab, out: Path) -> None:
    """LabError where `out` holds a report of other parameters or data: hours of work are not overwritten unasked."""
    ours = result_parameters(lab)
    theirs = LabConfig().model_dump() if (out / PARAMETERS).exists() else dict(ours)
    for path in filter(Path.exists, (out / PARAMETERS, out / SOURCES)):
        with reading(path, f"delete the folder {from_here(out)}, or name another one (make: OUT=reports/mine)"):
            values = dict(yaml.safe_load(path.read_text(encoding="utf-8")))
            theirs |= dict(values.pop("more", {})) | values
    other = [name for name, value in ours.items() if theirs.get(name) != value]
    if other:
        raise LabError(
            f"{from_here(out)} holds a report with other values of {', '.join(other)}: choose another folder for "
            "this one (make: OUT=reports/mine), or delete that one"
        )


def run_notebook(source: Path, target: Path, values: dict[str, Any]) -> None:
    """Execute a notebook with parameters; its error messages are passed on as a LabError, finished runs stay."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # a kernel that is shut down is interrupted first, and now and then logs that as an error
    settings = {
        "NotebookClient": {
            "extra_arguments": ["--IPKernelApp.log_level=50"],
            "kernel_manager_class": OwnKernelManager,
            "shutdown_kernel": "immediate",  # it has nothing left to do, and takes a second to take itself apart
        }
    }
    try:
        with tempfile.TemporaryDirectory(prefix="vitlab-") as sockets:
            if os.name == "posix":  # kernels talk over sockets in the file system: TCP draws a warning from ipykernel 7
                settings["KernelManager"] = {"transport": "ipc", "ip": f"{sockets}/kernel"}  # else where we stand
            papermill.execute_notebook(
                source,
                target,
                values,
                kernel_name="python3",
                progress_bar=False,
                start_timeout=KERNEL_SECONDS,
                request_save_on_cell_execute=False,  # some ten seconds of a report; the last cell saves all the same
                coalesce_streams=True,
                stderr_file=sys.stderr,
                config=Config(settings),
            )
    except DeadKernelError:
        raise LabError(
            f"{source.name} lost its process, most likely for want of memory: lower batch_size or raise accumulate; "
            "finished runs and checkpoints are kept, the same command goes on from there"
        ) from None
    except RuntimeError as error:
        if "Kernel didn't respond" not in str(error):
            raise
        raise LabError(
            f"the process of {source.name} did not start in {KERNEL_SECONDS} s: end what else keeps this machine busy, "
            "then start again; finished runs are kept"
        ) from None
    except PapermillExecutionError as error:
        raise LabError(
            f"{source.name} stopped in cell {error.exec_count}: {error.ename}: {error.evalue}. The executed notebook "
            f"is {from_here(target)}; finished runs are kept, the same command goes on from there"
        ) from None


def keep_runs(lab: Lab, folder: Path) -> None:
    """Copy the runs' small files and their models' costs: with parameter runs_dir there, chapter 06 reads them.

    Of the best ViT the weights are kept as well, and of a run from elsewhere the one that it started from.
    """
    own = [*(run for name in lab.plan.names for run in lab.load_seeds(name)), *lab.studied]
    others = [one for run in lab.extra.values() for one in (run, *run.starts())]
    for run in [*others, *own]:  # of the same name are the same configurations: ours is written last
        run.copy_small_files(folder)
    measured = [lab.plan.config("ViT"), *(run.config for run in lab.extra.values())]  # the first with all of the plan
    for path in {lab.costs.path_of(config) for config in measured if isinstance(config, RunConfig)}:
        copy(path, folder / path.parent.name / path.name)
    if best := best_vit(lab):
        fresh = folder / best.path.name / "fresh.safetensors"
        fresh.unlink(missing_ok=True)
        export(best, fresh)
        for weights in folder.glob("*/model.safetensors"):  # of an earlier report
            weights.unlink()
        fresh.rename(fresh.with_name("model.safetensors"))


def best_vit(lab: Lab) -> Run | None:
    """Of all ViTs that are compared the one with the most of its validation images right, in the lab's first seed.

    Without validation images it is the one that chapter 03 goes on from. What has no weights here, as copies of another
    report, does not count.
    """
    names = lab.compared if len(lab.data.val) else [lab.plan.backbone]
    runs = [run for run in map(lab.load, names) if (run.path / "model.pt").exists()]
    vits = [run for run in runs if isinstance(run.config, RunConfig) and MODELS[run.config.model].is_vit]
    return max(vits, key=lambda run: run.summary["val_accuracy"] or 0.0, default=None)


def file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _stamp(lab: Lab) -> str:
    """Digest of all that the executed notebooks depend on: sources, parameters, and the runs that they read."""
    digest = hashlib.sha256(lab.params.model_dump_json().encode())
    digest.update(f"{lab.source.digest} {pace()}".encode())
    for path in [*NOTEBOOKS.values(), *sorted((ROOT / "vitlab").rglob("*.py"))]:
        digest.update(path.read_bytes())
    for config in lab.plan.configs.values():
        summary = lab.run_of(config).path / "summary.json"
        digest.update(summary.read_bytes() if summary.exists() else b"missing")
    for run in lab.extra.values():
        digest.update((run.path / "summary.json").read_bytes())
    digest.update(str(lab.costs.path_of(lab.plan.config("ViT")).exists()).encode())
    return digest.hexdigest()


def _say(line: str) -> None:
    print(line, flush=True)
