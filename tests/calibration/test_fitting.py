"""Samples cut to the batch size of a model."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt import ir
from graphopt.calibration import fitting, from_batches
from graphopt.errors import CalibrationError

HEAD = '<ir_version: 8, opset_import: ["": 17]>\n'
FREE = ir.parse_text(HEAD + "g (float[N,2] x, float[N] w) => (float[N,2] y) { y = Relu(x) }")
TWO = ir.parse_text(HEAD + "g (float[2,2] x, float[2] w) => (float[2,2] y) { y = Relu(x) }")


def batch(rows: int) -> dict[str, np.ndarray]:
    x = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
    return {"x": x, "w": x[:, 0]}


@pytest.mark.parametrize("wrap", [lambda b: b, lambda b: from_batches(b, FREE)])
def test_batches_are_cut(wrap) -> None:
    found = list(fitting(wrap([batch(4), batch(2)]), TWO))
    assert [len(f["x"]) for f in found] == [2, 2, 2]
    np.testing.assert_array_equal(np.concatenate([f["x"] for f in found[:2]]), batch(4)["x"])
    np.testing.assert_array_equal(np.concatenate([f["w"] for f in found[:2]]), batch(4)["w"])


def test_they_can_be_read_again_and_say_where_they_are_from() -> None:
    found = fitting(from_batches([batch(4)], FREE), TWO)
    assert [w for w, _ in found.named()] == [w for w, _ in found.named()]
    assert [w for w, _ in found.named()] == ["data, batch 0, part 0", "data, batch 0, part 1"]


def test_a_free_batch_stays_whole() -> None:
    samples = from_batches([batch(4)], FREE)
    assert fitting(samples, FREE) is samples


def test_what_is_no_multiple_is_refused() -> None:
    with pytest.raises(CalibrationError, match=r"takes \[2, 2\], not \[3, 2\]"):
        list(fitting(from_batches([batch(3)], FREE), TWO))
