"""What one sees of trainings while they run: a table in a notebook, a line in a terminal, a line a minute in a log.

Sessions read a `Status` off their progress and hand it to the view that is open. In a notebook that is one output
whose HTML is replaced, not a widget: a saved notebook then shows no widget that has died.
"""

import collections
import contextlib
import html
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from IPython.display import HTML, display
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from vitlab.errors import Stopped
from vitlab.kernel import reader
from vitlab.training import progress

READ_SECONDS = 1.0  # between two looks at a training: a GPU has to be waited for
LOG_SECONDS = 60.0  # between two lines of a log
CURVE_POINTS = 150  # at most
PIPED = "VITLAB_PIPED"  # environment: whoever started this process reads statuses as lines of JSON
MARK = "vitlab-status "


@dataclass(frozen=True)
class Status:
    """How a training stands. loss: since the last look; curve: (step, loss) of each look so far, thinned."""

    name: str
    epoch: int = 0  # 0: not begun
    epochs: int = 0  # 0: as many as fit into the time
    share: float = 0.0  # of the budget
    loss: float = math.nan
    val_accuracy: float | None = None
    images_per_second: float = 0.0
    seconds_left: float = 0.0
    curve: Sequence[tuple[int, float]] = ()
    done: bool = False

    @property
    def place(self) -> str:
        return f"epoch {self.epoch} of {self.epochs}" if self.epochs else f"epoch {self.epoch}"

    @property
    def words(self) -> list[str]:
        minutes, seconds = divmod(round(self.seconds_left), 60)
        hours, minutes = divmod(minutes, 60)
        left = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
        known = "–" if self.val_accuracy is None else f"{self.val_accuracy:.1%}"
        speed = f"{self.images_per_second:,.0f} images/s"
        return [self.place, f"loss {self.loss:.3f}", f"validation {known}", f"{left} left", speed]


class Meter:
    """Reads statuses off a training that goes on from `at`; speed is that of the last half minute."""

    def __init__(self, name: str, at: progress.Progress) -> None:
        self.status = Status(name, curve=[(row["step"], row["loss"]) for row in at.history])
        self._looks = collections.deque([(time.perf_counter(), at.step)], maxlen=31)
        self._sums = at.step, float(at.sums.get("loss", 0.0))  # an epoch may have begun before

    def read(self, at: progress.Progress, budget: progress.Budget) -> Status | None:
        """The status now, or None where the last one is not a second old."""
        now, (then, _) = time.perf_counter(), self._looks[-1]
        if now - then < READ_SECONDS:
            return None
        self._looks.append((now, at.step))
        first, step = self._looks[0]
        pace = (at.step - step) / (now - first)  # steps a second
        left = 60 * budget.recipe.minutes - at.seconds if budget.by_time else (budget.steps - at.step) / pace
        validated = [row["val_accuracy"] for row in at.history if "val_accuracy" in row]
        loss = self._loss(at, budget)
        curve = [*self.status.curve, (at.step, loss)]
        self.status = replace(
            self.status,
            epoch=max(1, math.ceil(at.step / budget.epoch_steps)),
            epochs=0 if budget.by_time else math.ceil(budget.steps / budget.epoch_steps),
            share=min(1.0, budget.share(at)),
            loss=loss,
            val_accuracy=validated[-1] if validated else None,
            images_per_second=pace * budget.batch_size,
            seconds_left=max(0.0, left),
            curve=curve[:: 2 if len(curve) > CURVE_POINTS else 1],
        )
        return self.status

    def _loss(self, at: progress.Progress, budget: progress.Budget) -> float:
        """The mean since the last look; where an epoch has ended since, that of the epoch."""
        if not at.sums:
            return at.history[-1]["loss"]
        (step, total), now = self._sums, float(at.sums["loss"])
        begin = (at.step - 1) // budget.epoch_steps * budget.epoch_steps
        self._sums = at.step, now
        return (now - total) / (at.step - step) if begin < step < at.step else now / (at.step - begin)


# ---------------------------------------------------------------- views


class View:
    """Shows nothing: what the others have in common."""

    def __init__(self) -> None:
        self.rows: dict[str, Status] = {}

    def begin(self, names: Sequence[str]) -> None:
        """Some trainings are going to run."""
        self.rows |= {name: Status(name) for name in names if name not in self.rows}

    def update(self, status: Status) -> None:
        self.rows[status.name] = status

    def close(self, told: str = "") -> None:
        """Take away what was shown; what is `told` stays."""

    def count(self) -> str:
        return f"{sum(row.done for row in self.rows.values())} of {len(self.rows)} runs done"


class NotebookView(View):
    """One output of the cell: a row for each training that runs."""

    def begin(self, names: Sequence[str]) -> None:
        super().begin(names)
        shell = reader()
        if shell and not shell.custom_exceptions:  # what stopped a training is told here, not in a red box
            shell.set_custom_exc((Stopped,), lambda *_, **__: None)
        self.handle = display(HTML(_page(self)), display_id=True)

    def update(self, status: Status) -> None:
        super().update(status)
        self.handle.update(HTML(_page(self)))

    def close(self, told: str = "") -> None:
        self.handle.update(HTML(f"<p>{html.escape(told)}</p>" if told else ""))


class TerminalView(View):
    """A line for each training that runs."""

    def begin(self, names: Sequence[str]) -> None:
        super().begin(names)
        text = TextColumn("{task.fields[words]}", table_column=Column(no_wrap=True, overflow="ellipsis"))
        console = Console(file=sys.stderr)
        self.lines = Progress(
            TextColumn("{task.description}"), BarColumn(20), text, console=console, transient=True, auto_refresh=False
        )
        self.tasks = {}
        self.lines.start()

    def update(self, status: Status) -> None:
        super().update(status)
        if status.name not in self.tasks:
            self.tasks[status.name] = self.lines.add_task(status.name, total=1.0, words="")
        words = ", ".join(status.words) + (f" ({self.count()})" if len(self.rows) > 1 else "")
        self.lines.update(
            self.tasks[status.name], completed=status.share, words=words, visible=not status.done, refresh=True
        )

    def close(self, told: str = "") -> None:
        self.lines.stop()


class LogView(View):
    """A line a minute for each training."""

    def begin(self, names: Sequence[str]) -> None:
        super().begin(names)
        self.said: dict[str, float] = {}

    def update(self, status: Status) -> None:
        super().update(status)
        now = time.perf_counter()
        if now - self.said.setdefault(status.name, now) >= LOG_SECONDS and not status.done:
            self.said[status.name] = now
            print(f"{status.name}: {', '.join(status.words)}", file=sys.stderr, flush=True)


class PipeView(View):
    """Hands each status on, to a process that shows it."""

    def __init__(self, put: Callable[[Status], None]) -> None:
        super().__init__()
        self.update = put


def _here() -> View:
    if os.environ.get(PIPED):
        return PipeView(lambda status: print(MARK + json.dumps(asdict(status)), file=sys.stderr, flush=True))
    if reader():
        return NotebookView()
    return TerminalView() if sys.stderr.isatty() else LogView()


def parse(line: str) -> Status | None:
    """The status that another process has printed, or None if the line is something else."""
    return Status(**json.loads(line.removeprefix(MARK))) if line.startswith(MARK) else None


_open: View | None = None


def use(view: View | None) -> None:
    """Have all trainings of this process shown by `view`."""
    global _open
    _open = view


@contextlib.contextmanager
def viewed(*names: str) -> Iterator[View]:
    """What shows these trainings: the view that is open already, or one of its own, gone at the end."""
    if _open is not None or not names:
        yield _open or View()
        return
    view, told = _here(), ""
    use(view)
    view.begin(names)
    try:
        yield view
    except KeyboardInterrupt as error:
        told = str(error) or f"stopped, {view.count()}: {again()} to continue"
        raise Stopped(told) from None
    finally:
        use(None)
        view.close(told)


def again() -> str:
    return "run this cell again" if reader() else "start it again"


# ---------------------------------------------------------------- in a notebook


def _page(view: View) -> str:
    """The rows of what runs, and how many are done and wait."""
    running = [row for row in view.rows.values() if row.epoch and not row.done]
    cells = [
        [html.escape(row.name), f'<progress max="1" value="{row.share:.4f}"></progress>', *row.words, _curve(row)]
        for row in running
    ]
    few = f"<p>{view.count()}</p>" if len(view.rows) > 1 else ""
    if not cells:
        few = few or f"<p>{html.escape(next(iter(view.rows), ''))}: begins …</p>"
    style = "text-align: left; white-space: nowrap; padding: 0 1em 0 0; font-variant-numeric: tabular-nums"
    cell = f'<td style="{style}">{{}}</td>'
    rows = "".join(f"<tr>{''.join(map(cell.format, row))}</tr>" for row in cells)
    table = f'<table style="margin: 0; border: 0"><tbody>{rows}</tbody></table>'
    return f'<div role="status" style="overflow-x: auto">{few}{table}</div>'


def _curve(row: Status, width: int = 120, height: int = 24) -> str:
    """The loss so far as a line, from its smallest value to its largest."""
    finite = [(step, loss) for step, loss in row.curve if math.isfinite(loss)]
    if len(finite) < 2:
        return ""
    (steps, losses), low = zip(*finite, strict=True), min(loss for _, loss in finite)
    right, range_ = max(steps[-1] / max(row.share, 1e-9), 1), max(max(losses) - low, 1e-9)
    points = " ".join(f"{width * s / right:.1f},{2 + (height - 4) * (1 - (v - low) / range_):.1f}" for s, v in finite)
    line = f'<polyline points="{points}" fill="none" stroke="currentColor" stroke-width="1.5"/>'
    return f'<svg role="img" aria-label="loss so far" width="{width}" height="{height}">{line}</svg>'
