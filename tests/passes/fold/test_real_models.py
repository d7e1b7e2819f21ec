"""The passes on models that people use."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from graphopt import Exactness, PassManager, ir
from graphopt.testing import assert_equivalent

PIPELINE = "fixpoint{max=6}(fold-shapes,fold-constants,fold-branches,infer-shapes)"
SCAFFOLD = {"Shape", "Gather", "Cast", "ConstantOfShape", "Concat", "Transpose", "Unsqueeze"}

CASES = {
    # name: most nodes that may be left, operators that may not be
    "resnet20": (75, SCAFFOLD | {"Mul", "Sub"}),  # the option-A shortcuts end as Slice and Pad
    "resnet56": (201, SCAFFOLD | {"Mul", "Sub"}),
    "silero_vad": (102, {"Shape", "Size", "Not", "ConstantOfShape", "Transpose", "Reshape"}),
    "minilm_l6": (220, {"Concat"}),
    "mnist": (11, set()),
    "ultraface_rfb_320": (163, {"Shape", "Gather", "Unsqueeze"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_shared_models(name: str, shared_data: Path) -> None:
    model = ir.load(shared_data / "models" / f"{name}.onnx")
    result = PassManager(PIPELINE, on_mismatch="raise").run(model)
    most, gone = CASES[name]
    ops = Counter(node.op_type for node in ir.all_nodes(result.model))
    assert ops.total() <= most
    assert not gone & set(ops)
    assert ir.nbytes(result.model) <= ir.nbytes(model)
    assert_equivalent(model, result.model, Exactness.BITWISE)


def test_a_voice_detector_keeps_one_condition(shared_data: Path) -> None:
    # Of 25 If nodes one depends on an input, the sampling rate. All others are decided.
    model = ir.load(shared_data / "models" / "silero_vad.onnx")
    result = PassManager(PIPELINE, on_mismatch="raise").run(model)
    conditions = [n for n in ir.all_nodes(result.model) if n.op_type == "If"]
    assert [v.name for v in conditions[0].inputs if v is not None] == ["Equal_0_C"]
    assert len(conditions) == 1
