"""The chance of training: how far another seed would move the score of one and the same model."""

import math
from typing import TYPE_CHECKING

from vitlab.analysis import metrics

if TYPE_CHECKING:
    from vitlab.lab.results import Lab

SCORES = {  # of a run's summary["test"]
    "accuracy": lambda test: test["accuracy"],
    "macro_f1": lambda test: test["f1"]["macro"],
    "recall": lambda test: test["per_class"]["recall"],
}
Noise = tuple[float, float]  # a variance, and its degrees of freedom


class TrainingNoise:
    """`metrics.training_noise` of a lab's models, pooled over those that have several seeds."""

    def __init__(self, lab: "Lab") -> None:
        self.lab = lab
        self.found: dict[tuple, Noise] = {}

    def of(self, a: str, b: str, score: str, everywhere: bool = False) -> Noise:
        """Of which twice the variance is that of a difference between the models a and b; score: one of `SCORES`.

        Pooled over the models of chapter 02 and of theirs, `everywhere` of all chapters, that begin as these do: at the
        start, or from another run's weights (`metrics.mixed_noise` of one and the other). Where one goes on from the
        other itself, the chance of their common training cancels out within a seed, and only that of the second one is
        left. A run from elsewhere has a seed of its own, so that seeds are no blocks.
        """
        lab = self.lab
        chapters = frozenset({"02", *(lab.plan.chapter_of(name) for name in (a, b) if name not in lab.extra)})
        chapters = frozenset(lab.plan.chapters) if everywhere else chapters
        blocks = not {a, b} & lab.extra.keys()
        if blocks and (self._starts(a, b) or self._starts(b, a)):
            variance, freedom = self._pooled(True, chapters, score, blocks)
            if math.isfinite(freedom):
                return variance / 2, freedom
        kinds = {self._goes_on(name) for name in (a, b)}
        found = [self._pooled(goes_on, chapters, score, blocks) for goes_on in sorted(kinds)]
        known = [noise for noise in found if math.isfinite(noise[1])]
        return metrics.mixed_noise(*known) if len(known) > 1 else (known or found)[0]

    def _pooled(self, goes_on: bool, chapters: frozenset[str], score: str, blocks: bool) -> Noise:
        key = goes_on, chapters, score, blocks
        if key not in self.found:
            plan = self.lab.plan
            names = [name for chapter in sorted(chapters) for name in plan.chapters[chapter]]
            several = [n for n in names if len(plan.repeats[n]) > 1 and self._goes_on(n) == goes_on]
            scores = {n: [SCORES[score](run.summary["test"]) for run in self.lab.load_seeds(n)] for n in several}
            self.found[key] = metrics.training_noise(scores, blocks) if scores else (0.0, math.inf)
        return self.found[key]

    def _goes_on(self, name: str) -> bool:
        """Whether a model's training begins with another run's weights."""
        config = self.lab.extra[name].config if name in self.lab.extra else self.lab.plan.config(name)
        return bool(getattr(config, "init_from", ""))

    def _starts(self, first: str, name: str) -> bool:
        """Whether a model's training begins with the weights of `first`; of the lab's own."""
        plan = self.lab.plan
        return plan.config(name).init_from == self.lab.run_of(plan.config(first)).path.name
