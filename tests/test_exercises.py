"""Every exercise: not yet as it stands in the notebook, right with the notebook's own solution."""

import copy
import re
from collections.abc import Callable
from statistics import fmean, median
from types import SimpleNamespace

import nbformat
import pytest
import torch
import torch.nn.functional as F

from vitlab import exercises
from vitlab.analysis import metrics, tokens
from vitlab.config import LabConfig
from vitlab.data.splits import Source, Split
from vitlab.errors import LabError
from vitlab.lab import Lab
from vitlab.lab.plan import NOTEBOOKS
from vitlab.models import vit
from vitlab.report.render import merge
from vitlab.training.evaluate import predict

SLOW = {"2.3", "3.3"}  # they run tests in a process of their own


def exercise_cells(chapter: str) -> list[nbformat.NotebookNode]:
    cells = nbformat.read(NOTEBOOKS[chapter], as_version=4).cells
    return [cell for cell in cells if "exercise" in cell.metadata.get("tags", [])]


def found(chapter: str) -> dict[str, tuple[str, str, str]]:
    """Number -> the cell to change, the cell that checks, and the solution's code."""
    sources = [cell.source for cell in exercise_cells(chapter)]
    numbers = [re.search(r'check\("(\d\.\d)"', source) for source in sources]
    solutions = [re.search(r"<details><summary>Solution</summary>\n\n```python\n(.*?)\n```", s, re.S) for s in sources]
    return {n[1]: (sources[i - 1], sources[i], solutions[i + 1][1]) for i, n in enumerate(numbers) if n}


ALL = [(chapter, number) for chapter in NOTEBOOKS for number in found(chapter)]


@pytest.fixture
def namespace(few: Source, monkeypatch: pytest.MonkeyPatch) -> dict:
    """What the exercises find in their chapter; what they train is a stand-in here."""
    monkeypatch.setattr(exercises, "trained_against", lambda *_, **__: "trained")
    lab = Lab(LabConfig(), few)
    config = lab.plan.config("DynamicViT")
    stand_in = {
        "labels": torch.zeros(1).numpy(),
        "chosen": torch.zeros(1, 2).numpy(),
        "drawn": torch.zeros(1, 2).numpy(),
        "part": None,
        "images_of": "validation",
        "predict": lambda *_: torch.zeros(1, 2),
    }
    trained = {"DynamicViT": SimpleNamespace(stages=[1, 2, 3])}
    deep = {"trained": trained, "copy": SimpleNamespace(deepcopy=lambda model: model)}
    runs = {
        "dynamic": SimpleNamespace(config=config),
        "yardstick": SimpleNamespace(config=lab.plan.config("ViT, fine-tuned")),
    }
    return {"lab": lab, "config": config, "torch": torch, "vit": vit, "exercises": exercises} | stand_in | deep | runs


def test_each_chapter_has_two_or_three_and_each_has_a_check() -> None:
    assert {chapter: len(found(chapter)) for chapter in NOTEBOOKS} == {
        f"0{k}": n for k, n in zip(range(1, 7), (2, 3, 3, 2, 2, 2), strict=True)
    }
    assert [number for _, number in ALL] == list(exercises.CHECKS)


@pytest.mark.parametrize(("chapter", "number"), [p for p in ALL if p[1] not in SLOW])
def test_not_yet_as_it_stands_and_right_with_the_solution(
    chapter: str, number: str, namespace: dict, capsys: pytest.CaptureFixture
) -> None:
    cell, check, solution = found(chapter)[number]
    for source, verdict in ((cell, "not yet, "), (solution, "right.")):
        exec(source, namespace)
        exec(check, namespace)
        assert f"Exercise {number}: {verdict}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("chapter", "number"), [p for p in ALL if p[1] in SLOW])
def test_what_the_solution_breaks_is_noticed_by_tests(
    chapter: str, number: str, namespace: dict, capsys: pytest.CaptureFixture
) -> None:
    test_not_yet_as_it_stands_and_right_with_the_solution(chapter, number, namespace, capsys)
    assert all(name.startswith(("test_", "Test")) for name in namespace["noticed"])


class Doubled(torch.nn.Module):
    """Both scores rise with the length: the second by more, so that the model keeps the shortest."""

    def forward(self, tokens: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        length = tokens.norm(dim=-1)
        return torch.stack([length, 2 * length], -1)


def test_score_that_keeps_the_shortest_tokens_is_not_right(capsys: pytest.CaptureFixture) -> None:
    assert not exercises.check("3.2", Doubled)
    assert "first score exceeds the second by most" in capsys.readouterr().out


@pytest.mark.slow
def test_longest_tokens_are_those_that_a_trained_model_keeps(
    namespace: dict, done: Lab, capsys: pytest.CaptureFixture
) -> None:
    """The rest of 3.2's cell, with nothing in a stand-in's place."""
    run, part = done.load("DynamicViT"), done.data.val
    models = {"trained": {"DynamicViT": run.model()}, "config": run.config, "copy": copy, "predict": predict}
    namespace |= models | {"part": part, "labels": part.labels.numpy()}
    cell, check, solution = found("03")["3.2"]
    exec(cell, namespace)
    exec(check, namespace)
    assert "longest tokens" not in capsys.readouterr().out
    exec(solution, namespace)
    exec(check, namespace)
    weights = {name: value for name, value in run.weights().items() if not name.startswith("predictors.")}
    plain = SimpleNamespace(config=run.config, classes=run.classes, record=run.record, weights=lambda: weights)
    by_length = predict(
        tokens.reduced(plain, plain.config.replace(model="topk_vit", salience="norm")), part, run.config
    )
    share = metrics.accuracy(metrics.tally(by_length.numpy(), part.labels.numpy()))
    assert f"longest tokens: {share:.1%} of the validation images" in capsys.readouterr().out
    torch.testing.assert_close(predict(namespace["longest"], part, run.config), by_length)


@pytest.mark.parametrize(("ratio", "verdict"), [(0.55, "right."), (0.54, "not yet, 0.54 is no multiple of 0.05")])
def test_keep_ratio_between_the_steps_is_not_right(
    ratio: float, verdict: str, namespace: dict, capsys: pytest.CaptureFixture
) -> None:
    exec(found("03")["3.1"][2], namespace)
    exercises.check("3.1", namespace["lab"], namespace["highest"] + ratio - 0.55)
    assert f"Exercise 3.1: {verdict}" in capsys.readouterr().out


def by_token(attention: type) -> type:
    """2.2's answer with what it normalises along another axis."""

    class Other(attention):
        def forward(self, tokens: torch.Tensor, keep: None = None, trace: None = None) -> torch.Tensor:
            q, k, v = vit.split_heads(self.qkv(tokens), 3, self.heads)
            cosines = F.normalize(q, dim=2) @ F.normalize(k, dim=2).transpose(-2, -1)
            weights = (cosines * self.scale[:, None, None]).softmax(-1)
            return self.proj((weights @ v).transpose(1, 2).flatten(2))

    return Other


def over_queries(attention: type) -> type:
    """2.2's answer, but each key's weights sum to one over the queries."""

    class Other(attention):
        def forward(self, tokens: torch.Tensor, keep: None = None, trace: None = None) -> torch.Tensor:
            q, k, v = vit.split_heads(self.qkv(tokens), 3, self.heads)
            cosines = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
            weights = (cosines * self.scale[:, None, None]).softmax(-2)
            return self.proj((weights @ v).transpose(1, 2).flatten(2))

    return Other


def by_forward(attention: type) -> type:
    """2.2's answer as a layer that does not say which weights it uses."""

    class Other(vit.Attention):
        def __init__(self, dim: int, heads: int, num_tokens: int) -> None:
            super().__init__(dim, heads, num_tokens)
            self.scale = torch.nn.Parameter(torch.full((heads,), 10.0))

        def forward(self, tokens: torch.Tensor, keep: None = None, trace: None = None) -> torch.Tensor:
            q, k, v = vit.split_heads(self.qkv(tokens), 3, self.heads)
            cosines = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
            weights = (cosines * self.scale[:, None, None]).softmax(-1)
            return self.proj((weights @ v).transpose(1, 2).flatten(2))

    return Other


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (by_token, "cosines know no length"),
        (over_queries, "not the softmax, over the keys"),
        (by_forward, "figures show other weights than it uses: change scores, not forward"),
    ],
)
def test_attention_that_is_nearly_cosine_is_not_right(
    change: Callable, told: str, namespace: dict, capsys: pytest.CaptureFixture
) -> None:
    exec(found("02")["2.2"][2], namespace)
    assert not exercises.check("2.2", change(namespace["OwnAttention"]))
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        (lambda labels, counts: -(counts[labels] ** -0.5), "below zero"),
        (lambda labels, counts: counts**-0.5, "(3,) weights for 525 images"),
        (lambda labels, counts: counts[labels] ** -0.5 * torch.rand(len(labels)), "one class get different weights"),
        (lambda labels, counts: 1 / counts[labels], "the roots are as 20 : 10 : 5"),
        (lambda labels, counts: torch.zeros(len(labels)), "nothing but zero"),
        (lambda labels, counts: [1.0] * len(labels), "the roots are as 20 : 10 : 5"),
    ],
)
def test_weights_that_no_sampler_draws_by_are_not_right(
    weights: Callable, told: str, capsys: pytest.CaptureFixture
) -> None:
    assert not exercises.check("1.2", weights)
    assert told in capsys.readouterr().out


def test_quadratic_work_is_seen_without_a_product_of_matrices(capsys: pytest.CaptureFixture) -> None:
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        weights = (q[:, :, :, None] * k[:, :, None]).sum(-1)
        return (weights[..., None] * v[:, :, None]).sum(3) / weights.sum(-1, keepdim=True)

    assert not exercises.check("4.2", attend)
    assert "twice the tokens take 4.0 times the work" in capsys.readouterr().out

    def by_numpy(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        weights = q.numpy() @ k.numpy().swapaxes(-2, -1)
        return torch.from_numpy(weights / weights.sum(-1, keepdims=True) @ v.numpy())

    assert not exercises.check("4.2", by_numpy)
    assert "it makes no tensor" in capsys.readouterr().out

    def row_by_row(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out, context, total = torch.empty_like(v), k.transpose(-2, -1) @ v, k.sum(2)
        for t in range(q.shape[2]):
            out[:, :, [t]] = q[:, :, [t]] @ context / (q[:, :, t] * total).sum(-1)[..., None, None]
        return out

    assert exercises.check("4.2", row_by_row)


@pytest.mark.parametrize(
    ("left_out", "calls", "average"), [(0, 9, median), (1, 8, median), (1, 20, median), (1, 9, fmean)]
)
def test_measuring_otherwise_than_asked_is_not_right(
    left_out: int, calls: int, average: Callable, capsys: pytest.CaptureFixture
) -> None:
    def seconds(work: Callable, clock: Callable) -> float:
        times = []
        for _ in range(left_out + calls):
            start = clock()
            work()
            times.append(clock() - start)
        return average(times[left_out:])

    assert not exercises.check("5.2", seconds)
    assert "and their median is 5" in capsys.readouterr().out


def test_names_of_tests_that_nobody_ran_are_not_right(capsys: pytest.CaptureFixture) -> None:
    assert not exercises.check("2.3", ["test_made_up"])
    assert "pass what exercises.tests_that_notice(…) has returned" in capsys.readouterr().out
    of_another = exercises.Noticed(["test_vit"])
    of_another.file = "models/vit.py"
    assert exercises.check("2.3", of_another)
    assert not exercises.check("3.3", of_another)
    assert not exercises.check("2.3", exercises.Noticed())


@pytest.mark.slow
def test_tests_that_notice_are_found_in_a_kernel_which_asks_for_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    noticed = exercises.tests_that_notice("models/resnet.py", "out + shortcut", "out", "test_resnet.py")
    assert noticed
    assert all(name.startswith("test_") for name in noticed)
    with pytest.raises(
        LabError, match=r"pytest could not run tests/test_resnt\.py: ERROR: file or directory not found"
    ):
        exercises.tests_that_notice("models/resnet.py", "out + shortcut", "out", "test_resnt.py")


def test_fault_of_the_reader_is_told_and_ends_nothing(capsys: pytest.CaptureFixture) -> None:
    assert not exercises.check("6.2", lambda only_a, only_b: 1 / 0)
    assert "not yet, your answer raised ZeroDivisionError" in capsys.readouterr().out


def test_what_is_to_be_broken_must_be_there() -> None:
    with pytest.raises(LabError, match=r"there is no vitlab/vit\.py: name the file by its place"):
        exercises.tests_that_notice("vit.py", "softmax", "", "test_vit.py")
    with pytest.raises(LabError, match="does not hold 'softmx'"):
        exercises.tests_that_notice("models/vit.py", "softmx", "", "test_vit.py")


def test_attention_of_an_exercise_trains_on_colour_images_as_well(fresh: Lab) -> None:
    """CIFAR-10's shape."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    split = Split.whole(torch.randint(0, 256, (60, 3, 32, 32), generator=generator, dtype=torch.uint8), labels)
    lab = Lab(fresh.params.replace(image_size=32, batch_size=16), Source(split, split, ("a", "b", "c"), "colour", ()))
    space = {"torch": torch, "vit": vit}
    exec(found("02")["2.2"][2], space)
    curves = exercises.trained_against(lab, space["OwnAttention"], epochs=2)
    assert list(curves) == ["yours", "ours"]
    assert len(curves) == 2
    assert not curves.isna().any(axis=None)


def test_the_report_leaves_them_out() -> None:
    merged, _ = merge(list(NOTEBOOKS.values()))
    assert "Exercises" not in "".join(cell.source for cell in merged.cells)
