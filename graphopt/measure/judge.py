"""Whether a changed model is what was asked for."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from graphopt import ir
from graphopt.errors import NotApplicable
from graphopt.measure.budget import Budget
from graphopt.measure.goal import WORDS, Goal, Outcome
from graphopt.measure.race import SCATTER, race, runs_here, settings
from graphopt.measure.trial import Quality, Trial
from graphopt.runtime import Feeds
from graphopt.targets import Target

__all__ = ["Judge"]

# A latency within this of the goal is the goal; races of the result, at most.
_CLOSE, _RACES = 1.05, 3
# Outputs whose ratio of signal to noise in dB is below have nothing to do with the original's. A
# user who asks for half the work and no accuracy gets what there is above.
_LEAST = 0.0
# Energy of a difference that is rounding.
_ROUNDING = 1e-6


@dataclasses.dataclass
class Judge:
    """Compares changed models with the original, on samples that nothing was fitted to.

    Attributes:
        original: The model as it was.
        target: Where it will run.
        fit: Samples that layers are fitted on.
        aside: Others.
        goal: What may be left.
        budget: What has to be kept.
        threads: Threads within an operator, when latency is measured.
    """

    original: ir.Model
    target: Target
    fit: Sequence[Feeds]
    aside: Sequence[Feeds]
    goal: Goal
    budget: Budget
    threads: int

    def same(self, wanted: ir.Model, found: ir.Model, what: str) -> None:
        """Check that a change of structure changed no number.

        Args:
            wanted: What should be computed.
            found: What is.
            what: The change, for the message.

        Raises:
            NotApplicable: The outputs differ by more than rounding.
        """
        off = Trial(wanted, self.fit[:1]).noise(found)
        if not off <= _ROUNDING:
            raise NotApplicable(
                f"{what} changed the outputs by {off:.1e} of their energy, which it must not; "
                "please report this model"
            )

    def race(self, changed: ir.Model) -> list[float]:
        """Latency of a model in units of the original's, input by input; none without a device."""
        if runs_here(self.target) is not None or not self.fit:
            return []
        inputs = settings(self.fit[0], self.original)
        runs: list[list[float]] = []
        for _ in range(_RACES):
            runs += race(self.original, [changed], inputs, target=self.target, threads=self.threads)
            if self.goal.what != "latency" or runs[0][0] <= self.goal.left * _CLOSE:
                break  # other work on the machine may make one race miss the goal
        return [statistics.median(ratios) for ratios in zip(*runs, strict=True)]

    def verdict(
        self,
        changed: ir.Model,
        share: float,
        details: dict[str, Any],
        *,
        how: str,
        exhausted: bool,
    ) -> Outcome:
        """Measure a model, and accept or refuse it.

        Args:
            changed: The model.
            share: What is left of what the goal is about; of latency it is measured where it can
                be.
            details: For the report; what is measured is added.
            how: What was done to it: "pruned".
            exhausted: Whether nothing more can go.
        """
        goal = self.goal
        quality, odd = self._quality(changed)
        ratios = self.race(changed)
        if ratios:
            details["speedup"] = [1 / r for r in ratios]
        if quality is not None:
            details["quality"] = {**quality.to_json(), "aside": bool(self.aside)}
            asked = self.budget != Budget()
            obstacle = (self.budget if asked else Budget(sqnr_db=_LEAST)).obstacle(quality)
            if obstacle is not None:
                hint = [] if asked else ["min-sqnr sets another limit"]
                reason = "; ".join([f"{how} like this, {obstacle}", *hint, *odd])
                return Outcome(None, reason, details, missed=asked)
        if ratios and max(ratios) > SCATTER:
            reason = f"the {how} model would be slower: {1 / max(ratios):.2f}x"
            return Outcome(None, reason, details)
        if goal.what == "latency" and ratios:
            share = ratios[0]
        close = _CLOSE if goal.what == "latency" else 1.0 + 1e-9
        if share > goal.left * close:
            if exhausted:
                reason = (
                    f"{goal.what} cannot be brought to {goal.left:g} of the original's, "
                    f"{share:.3f} is the least"
                )
            else:
                reason = f"{goal.what} is {share:.3f} of the original's, more than {goal.left:g}"
            return Outcome(None, reason, details, missed=True)
        if goal.what == "latency":
            words = [f"{share:.3f} of the latency is left"]
        else:
            words = [f"{share:.3f} of the {WORDS[goal.what]} are left"]
            words += [f"{1 / ratio:.2f}x as fast" for ratio in ratios[:1]]
        if quality is not None:
            words.append(str(quality))
        doubts = [*odd, None if quality is None else self.budget.doubt(quality)]
        remarks = tuple(d for d in doubts if d)
        return Outcome(changed, "; ".join(words), details, remarks=remarks)

    def _quality(self, changed: ir.Model) -> tuple[Quality | None, list[str]]:
        """Quality, and what is odd about it; None without samples."""
        judged = self.aside or self.fit
        if not judged:
            return None, []
        trial = Trial(self.original, judged)
        odd = []
        if not trial.finite:
            odd.append(
                "the model itself computes NaN or infinity on these samples, which do not count"
            )
        if trial.silent:
            odd.append("all outputs are zero on these samples, which tells nothing")
        return trial.quality(changed), odd
