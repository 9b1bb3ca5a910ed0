"""The chance of training between two models: pooled over those that have several seeds, by how they begin."""

from types import SimpleNamespace

import numpy as np
import pytest

from vitlab.lab.noise import TrainingNoise

START, ON = 0.03, 0.01  # standard deviations of a training from the start, and of one that goes on
CHAPTERS = {"02": ["ViT", "long"], "03": ["fine-tuned", "dynamic"]}
BEGIN = {"fine-tuned": "long", "dynamic": "long"}


def lab(rng: np.random.Generator, seeds: int = 4) -> SimpleNamespace:
    """A lab of four models whose scores are drawn; the last two go on from "long"."""
    drawn = {name: rng.normal(0.8, START, seeds) for name in CHAPTERS["02"]}
    drawn |= {name: drawn[start] + rng.normal(0, ON, seeds) for name, start in BEGIN.items()}
    configs = {name: SimpleNamespace(name=name, init_from=BEGIN.get(name, "")) for name in drawn}
    plan = SimpleNamespace(
        chapters=CHAPTERS,
        chapter_of=lambda name: next(chapter for chapter, names in CHAPTERS.items() if name in names),
        repeats={name: [None] * seeds for name in drawn},
        config=configs.get,
    )
    return SimpleNamespace(
        plan=plan,
        extra={},
        drawn=drawn,
        run_of=lambda config: SimpleNamespace(path=SimpleNamespace(name=config.name)),
        load_seeds=lambda name: [SimpleNamespace(summary={"test": {"accuracy": score}}) for score in drawn[name]],
    )


@pytest.mark.parametrize(
    ("a", "b", "variance"),
    [
        ("ViT", "long", 2 * START**2),
        ("fine-tuned", "dynamic", 2 * ON**2),
        ("long", "dynamic", ON**2),  # within a seed the start is the same
        ("dynamic", "long", ON**2),
        ("ViT", "dynamic", 2 * START**2 + ON**2),
    ],
)
def test_variance_is_that_of_the_difference_within_a_seed(a: str, b: str, variance: float) -> None:
    rng = np.random.default_rng(0)
    labs = [lab(rng) for _ in range(2000)]
    told = np.mean([2 * TrainingNoise(one).of(a, b, "accuracy")[0] for one in labs])
    measured = np.mean([(one.drawn[a] - one.drawn[b]).var(ddof=1) for one in labs])
    assert told == pytest.approx(variance, rel=0.05)
    assert measured == pytest.approx(variance, rel=0.05)


def test_chance_of_training_is_known_from_all_chapters_or_from_the_models_own() -> None:
    one = lab(np.random.default_rng(0))
    one.plan.chapters = CHAPTERS | {"04": ["other"]}
    one.plan.repeats["other"], one.drawn["other"] = [None] * 4, np.array([0.1, 0.2, 0.3, 0.9])
    begins = one.plan.config
    one.plan.config = lambda name: begins(name) or SimpleNamespace(name=name, init_from="")
    noise = TrainingNoise(one)
    (near, few), (far, more) = (noise.of("ViT", "long", "accuracy", everywhere) for everywhere in (False, True))
    assert (few, more) == (3, 6)
    assert far > near


def test_without_several_seeds_of_what_goes_on_the_others_serve() -> None:
    one = lab(np.random.default_rng(0))
    for name in CHAPTERS["03"]:
        one.plan.repeats[name] = [None]
    noise = TrainingNoise(one)
    assert noise.of("long", "dynamic", "accuracy") == noise.of("ViT", "long", "accuracy")
