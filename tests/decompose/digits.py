"""The reference models, how many digits they read, and what passes say and models compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from graphopt import PassManager, ir, load
from graphopt.analyses import Cost
from graphopt.calibration import load_data
from graphopt.manager.runner import Result
from graphopt.runtime import open_session

__all__ = ["Digits", "outputs", "reasons"]


class Digits:
    """A model with its samples. Test images take no part in any choice.

    Attributes:
        model: The model as it was exported.
        plain: The same, lossless optimization done.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.model = load(folder / f"{name}.onnx")
        self.plain = PassManager("O2", oracle="off").run(self.model).model
        self._data = load_data(folder / "digits_calib.npz", self.model)
        self._images = np.load(folder / "digits_test.npz")["image"]
        self._labels = np.load(folder / "digits_test_labels.npy")

    def run(self, text: str, target: str = "portable") -> Result:
        """Run a pipeline, with nothing measured in time unless another target is named."""
        result = PassManager(text, data=self._data, target=target).run(self.model)
        ir.verify(result.model)
        ir.check(self.model, result.model)
        return result

    def macs(self, model: ir.Model) -> float:
        """Multiply-accumulates in units of the original's."""
        return Cost(model).macs / Cost(self.plain).macs

    def accuracy(self, model: ir.Model, *, optimize: bool = True) -> float:
        """Share of the test images that a model reads right."""
        with open_session(model, optimize=optimize) as session:
            (logits,) = session.run({"image": self._images}).values()
        return float((logits.argmax(axis=1) == self._labels).mean())


def reasons(result: Result) -> str:
    """All that the only pass said."""
    (record,) = result.report.passes
    return "; ".join([*record.declined, *record.remarks, record.reason or ""])


def outputs(model: ir.Model, x: Any) -> Any:
    """What a model of ``x`` and ``y`` computes."""
    with open_session(model) as session:
        return session.run({"x": x})["y"]
