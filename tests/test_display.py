"""What one sees of trainings while they run, in a notebook, a terminal or a log, and what is left when they stop."""

import io
import re
from collections.abc import Callable, Iterator

import pytest
import torch
from conftest import KilledError, killed_before

from vitlab.config import Recipe, RunConfig
from vitlab.data.splits import Source, split
from vitlab.errors import Stopped
from vitlab.runs import Run
from vitlab.training import display
from vitlab.training.display import LogView, Meter, NotebookView, Status, TerminalView, View, _page
from vitlab.training.fit import fit
from vitlab.training.progress import Budget, Progress
from vitlab.training.session import RunSession, Session

RUNNING = Status("ViT", 3, 10, 0.25, 1.234, 0.567, 427.0, 3725.0, [(1, 2.0), (2, 1.5), (3, 1.0)])


class Seen(View):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.statuses: list[Status] = []

    def update(self, status: Status) -> None:
        super().update(status)
        self.statuses.append(status)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    monkeypatch.setattr(display, "READ_SECONDS", 0.0)
    display.use(view := Seen())
    yield view
    display.use(None)


def test_statuses_follow_the_training(train: Callable[..., Run], tiny: RunConfig, seen: Seen) -> None:
    run = train(tiny)
    *statuses, last = seen.statuses
    assert [status.epoch for status in statuses] == [1] * 5 + [2] * 5
    assert {status.epochs for status in statuses} == {2}
    assert [status.share for status in statuses] == [pytest.approx((k + 1) / 10) for k in range(10)]
    assert last.done
    assert last.val_accuracy == run.history["val_accuracy"].iloc[-1]
    first = run.history["loss"][0]
    assert sum(status.loss for status in statuses[:4]) / 5 < first < max(status.loss for status in statuses[:5]) + 1e-6
    assert all(status.images_per_second > 0 for status in statuses)
    assert statuses[-1].seconds_left == 0
    assert len(last.curve) == 10


def test_a_training_that_goes_on_is_measured_from_where_it_goes_on(
    train: Callable[..., Run], tiny: RunConfig, seen: Seen
) -> None:
    with pytest.raises(KilledError):
        train(tiny, session=killed_before(7))
    before = len(seen.statuses)
    train(tiny)
    again = seen.statuses[before]
    assert (again.epoch, again.share) == (2, pytest.approx(0.8))
    assert again.curve[0][0] == 5  # the epoch that was over
    assert again.loss < 4  # the mean since then, and not the sum since the epoch began


def test_speed_is_that_of_the_last_looks_not_of_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a resume at step 1,000 one step a second is not 1,001."""
    now = [0.0]
    monkeypatch.setattr(display.time, "perf_counter", lambda: now[0])
    at, budget = Progress(step=1000), Budget(Recipe(epochs=200, batch_size=10), 100)
    meter = Meter("ViT", at)
    assert meter.read(at, budget) is None
    at.step, now[0], at.sums = 1001, 1.0, {"loss": torch.tensor(2.0)}
    status = meter.read(at, budget)
    assert status.images_per_second == pytest.approx(10)
    assert status.seconds_left == pytest.approx(999)
    assert status.loss == pytest.approx(2.0)


def test_interrupt_is_one_sentence_that_says_where_and_how_it_goes_on(
    few: Source, tiny: RunConfig, tmp_path, seen: Seen
) -> None:
    class Impatient(RunSession):
        def before_step(self, step: int) -> None:
            if step == 7:
                raise KeyboardInterrupt

    run = Run.of(tmp_path, tiny, few.digest)
    with pytest.raises(Stopped, match=r"^ViT stopped in epoch 2 of 2: start it again to continue$"):
        fit(
            torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)),
            split(few, tiny),
            tiny,
            Impatient(run, title="ViT"),
        )


def test_interrupt_of_a_training_without_a_session_says_that_nothing_is_kept(few: Source, tiny: RunConfig) -> None:
    class Impatient(Session):
        def before_step(self, step: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(Stopped, match=r"^Sequential stopped in its first steps: nothing of it is kept$"):
        fit(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), split(few, tiny), tiny, Impatient())


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_whatever_ends_a_training_its_view_is_closed(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    monkeypatch.setattr(LogView, "close", lambda self, words="": told.append(words))
    with pytest.raises(Stopped if error is KeyboardInterrupt else error), display.viewed("a", "b"):
        raise error
    assert told == (["stopped, 0 of 2 runs done: start it again to continue"] if error is KeyboardInterrupt else [""])
    with display.viewed("c") as view:  # another one of its own
        assert list(view.rows) == ["c"]


def test_trainings_within_others_share_their_view() -> None:
    with display.viewed("a", "b") as outer, display.viewed("a") as inner:
        assert inner is outer


def test_log_has_a_line_a_minute(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    now = [0.0]
    monkeypatch.setattr(display.time, "perf_counter", lambda: now[0])
    view = LogView()
    view.begin(["ViT"])
    for now[0] in range(130):
        view.update(RUNNING)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["ViT: epoch 3 of 10, loss 1.234, validation 56.7%, 1:02:05 left, 427 images/s"] * 2


def test_terminal_has_a_line_a_training_and_none_when_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(display.sys, "stderr", screen := Screen())
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("TERM", "xterm")
    view = TerminalView()
    view.begin(["ViT", "Linear ViT"])
    view.update(RUNNING)
    assert re.search(r"ViT .*epoch 3 of 10, loss 1.234, .*\(0 of 2 runs done\)", screen.getvalue())
    view.close()
    assert screen.getvalue().count("\n") <= 2


def test_notebook_shows_a_row_a_running_training_and_counts_the_others() -> None:
    view = View()
    view.begin(["<b>", "ViT", "done", "waiting"])
    view.update(Status("<b>", 1, 2, 0.5, 0.5, None, 1.0, 1.0))
    view.update(RUNNING)
    view.update(Status("done", 1, 1, 1.0, done=True))
    page = _page(view)
    assert page.count("<progress") == page.count("<tr>") == 2
    assert "1 of 4 runs done" in page
    assert "&lt;b&gt;" in page
    assert page.count("<polyline") == 1  # the other has no curve yet


def test_notebooks_output_is_empty_at_the_end_or_says_what_stopped_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []

    class Handle:
        def update(self, html: object) -> None:
            shown.append(html.data)

    monkeypatch.setattr(display, "display", lambda html, display_id: shown.append(html.data) or Handle())
    view = NotebookView()
    view.begin(["ViT"])
    view.update(RUNNING)
    view.close("a < b")
    view.close()
    assert "begins" in shown[0]
    assert "epoch 3 of 10" in shown[1]
    assert shown[2:] == ["<p>a &lt; b</p>", ""]


def test_statuses_pass_through_a_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv(display.PIPED, "1")
    display._here().update(RUNNING)
    told = display.parse(capsys.readouterr().err)
    assert told.words == RUNNING.words
    assert [tuple(point) for point in told.curve] == RUNNING.curve
    assert display.parse("RuntimeError: something else") is None
