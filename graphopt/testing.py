"""For authors of passes: check a pass in one call, compare models, make random models."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from graphopt import ir
from graphopt.ir.random_model import random_model
from graphopt.manager.base import Exactness, Pass
from graphopt.manager.runner import PassManager, Result
from graphopt.runtime.oracle import Oracle
from graphopt.targets import Target

__all__ = ["assert_equivalent", "check_pass", "random_model"]


def check_pass(
    each: Pass | str,
    before: str | ir.Model,
    after: str | None,
    *,
    seeds: Sequence[int] = (0, 1),
    data: Sequence[dict[str, Any]] | None = None,
    numbers: bool = True,
    target: str | Target = "cpu",
) -> Result:
    """Run a pass and check everything a pass promises.

    The result has the expected text; the pass said honestly whether it changed something; interface
    and structure hold; ``onnx.checker`` accepts the result if it accepted the input; outputs are
    equal at the pass's exactness; running it again changes nothing.

    Args:
        each: The pass, or pipeline text.
        before: Model in ONNX text syntax, or a model.
        after: Expected ``ir.dump`` of the result (indented as you like), or None if the pass must
            not change the model.
        seeds: Seeds of the random inputs that outputs are compared on.
        data: Inputs to compare on besides.
        numbers: Compare outputs.
        target: What the model is optimized for.

    Returns:
        The result, for further checks of the report.

    Raises:
        AssertionError: One of these does not hold; the message shows both texts.
    """
    model = ir.parse_text(before) if isinstance(before, str) else before
    source = ir.dump(model)
    manager = PassManager(each, on_mismatch="raise", objective=None, data=data, target=target)
    result = manager.run(model)
    assert ir.dump(model) == source, "the input model was modified"
    got = ir.dump(result.model)
    assert result.report.changed == (got != source), (
        f"the pass says changed={result.report.changed}, and the text is:\n{got}"
    )
    if after is None:
        assert got == source, f"the pass must not change the model, but made\n{got}"
        return result
    want = textwrap.dedent(after).strip("\n") + "\n"
    assert got == want, f"\n--- got\n{got}\n--- want\n{want}"
    ir.verify(result.model)
    ir.check(model, result.model)
    if numbers:
        exactness = Exactness.weakest(p.exactness for p in manager.pipeline.leaves())
        narrows = any(p.narrows for p in manager.pipeline.leaves())
        accepts = result.model if narrows else None
        _compare(Oracle(model, seeds=seeds, data=data, accepts=accepts), result.model, exactness)
    again = manager.run(result.model)
    assert not again.report.changed, f"not idempotent: {ir.dump(again.model)}"
    return result


def assert_equivalent(
    a: ir.Model,
    b: ir.Model,
    exactness: Exactness = Exactness.ROUNDING,
    *,
    seeds: Sequence[int] = (0, 1),
    data: Sequence[dict[str, Any]] | None = None,
) -> None:
    """Check that two models compute the same, with ONNX Runtime's optimizations off.

    Args:
        a: The original.
        b: The other.
        exactness: How equal outputs have to be; ``LOSSY`` only compares types and shapes.
        seeds: Seeds of the random inputs.
        data: Inputs to compare on besides.

    Raises:
        AssertionError: They differ, or the original does not run.
    """
    _compare(Oracle(a, seeds=seeds, data=data), b, exactness)


def _compare(oracle: Oracle, b: ir.Model, exactness: Exactness) -> None:
    assert oracle.available, f"the original does not run: {oracle.reason}"
    found = oracle.check(b, exactness)
    assert found.ok, found.reason
