"""How much of the original's quality a changed model has to keep."""

from __future__ import annotations

import dataclasses

from graphopt.measure.trial import Quality

__all__ = ["Budget"]

# Ratio of signal to noise in dB below which a form is none, where there is no budget: a mean cosine
# of about 0.95.
_LEAST = 10.0


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a changed model has to keep of the original; by default 10 dB.

    Attributes:
        sqnr_db: Least ratio of signal to noise at the outputs.
        drop: Largest share of predictions that may change, in percent.
    """

    sqnr_db: float | None = None
    drop: float | None = None

    def __post_init__(self) -> None:
        """Check the share.

        Raises:
            ValueError: It is out of bounds.
        """
        if self.drop is not None and not 0 <= self.drop <= 100:
            raise ValueError(f"max-drop is a share in percent, in [0, 100], not {self.drop}")

    def doubt(self, quality: Quality) -> str | None:
        """Why a quality within the budget tells little, or None."""
        step = 100 / max(quality.samples, 1)
        if self.drop is not None and step > max(self.drop, 1.0):
            return f"{quality.samples} samples tell changed predictions in steps of {step:.3g} %"
        if self == Budget() and quality.sqnr_db < _LEAST:
            return "the outputs are the original's roughly at best: check them with labels"
        return None

    def obstacle(self, quality: Quality) -> str | None:
        """Why a quality is not within the budget, or None if it is."""
        least = _LEAST if self == Budget() else self.sqnr_db
        if least is not None and not quality.sqnr_db >= least:  # NaN neither
            return f"SQNR {quality.sqnr_db:.1f} dB is below {least:g} dB"
        if self.drop is not None:
            if quality.agreement is None:
                return "no output is [rows, classes], so that changed predictions cannot be counted"
            changed = 100 * (1 - quality.agreement)
            if changed > self.drop:
                return f"{changed:.2f} % of the predictions change, more than {self.drop:g} %"
        return None
