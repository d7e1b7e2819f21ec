"""The rules for NNAPI, against ONNX Runtime's own checker and against the provider's sources."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import pytest

from graphopt import PassManager, ir
from graphopt.passes.legalize.fix_shapes import FixShapes
from graphopt.targets import check, get
from graphopt.testing import random_model

NNAPI = get("nnapi")
# Rules about what ONNX Runtime's checker looks at, too.
SHARED = {"operators", "domains", "static_shapes"}


def judged(model: ir.Model) -> tuple[set[str], set[str]]:
    """By ONNX Runtime's checker: first outputs of supported nodes, and unsupported operators."""
    from onnxruntime.tools.mobile_helpers.usability_checker import check_nnapi_partitions

    # As long as nothing is changed, a model is written as it was read: with its Constant nodes here
    # and out of order, which the checker refuses.
    model.ir_version += 1
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model))
    info = check_nnapi_partitions(proto, require_fixed_input_sizes=True)
    supported = {node.output[0] for group in info.supported_groups for node in group}
    return supported, set(info.unsupported_ops)


def compare(model: ir.Model) -> None:
    supported, unsupported = judged(model)
    violations = check(model, NNAPI)
    refused = {v.node for v in violations if v.node is not None}
    ours = {n.outputs[0].name for n in ir.all_nodes(model) if n not in refused}
    # We take nothing that the checker refuses: it looks at less.
    assert ours <= supported, sorted(ours - supported)
    # We know the same operators.
    named = {
        f"{v.node.domain or 'ai.onnx'}:{v.node.op_type}"
        for v in violations
        if v.node is not None and v.rule in ("operators", "domains")
    }
    assert named == unsupported
    # What it takes and we refuse, we refuse for a reason that it does not look at.
    for v in violations:
        if v.node is not None and v.node.outputs[0].name in supported and v.rule in SHARED:
            assert v.rule == "static_shapes", "it does not look at the shapes of outputs"


def static(model: ir.Model, size: int) -> ir.Model:
    """The model with one size for every open dimension, and what follows from that folded."""
    open_ = [
        f"{v.name}[{i}]={size}"
        for v in ir.inputs(model)
        for i, d in enumerate(ir.dims(v) or ())
        if not isinstance(d, int)
    ]
    for step in (FixShapes(dims=tuple(open_)), "fold"):
        model = PassManager(step, objective=None, oracle="off").run(model).model
    return model


MODELS = [
    "digits_lstm.onnx", "digits_mobilenet.onnx", "digits_resnet.onnx", "digits_transformer.onnx",
    "digits_vgg.onnx",
]  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_checker_agrees_about_trained_models(name: str, models_dir: Path, tmp_path: Path) -> None:
    model = ir.load(models_dir / name)
    compare(model)
    compare(static(model, 2))


@pytest.mark.parametrize("seed", range(12))
def test_checker_agrees_about_random_models(seed: int) -> None:
    model = random_model(seed)
    compare(model)
    compare(static(model, 8))


def test_operators_are_those_of_the_checker() -> None:
    from onnxruntime.tools import mobile_helpers

    assert mobile_helpers.__file__ is not None
    text = (Path(mobile_helpers.__file__).parent / "nnapi_supported_ops.md").read_text()
    listed = set(re.findall(r"^\|([\w.]+:\w+)\|", text, re.MULTILINE))
    assert NNAPI.operators is not None
    ours = {op.replace("com.microsoft.", "com.microsoft:") for op in NNAPI.operators}
    assert {op if ":" in op else f"ai.onnx:{op}" for op in ours} == listed
