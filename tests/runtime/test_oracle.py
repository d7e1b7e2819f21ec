"""The oracle: what it compares on, what it catches, what it leaves alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from graphopt import Exactness, PassManager, ir
from graphopt.errors import CalibrationError
from graphopt.ir.random_model import random_model
from graphopt.runtime import oracle as module
from graphopt.runtime.oracle import Oracle, random_outputs
from graphopt.runtime.session import Session, open_session, ort

HEADER = '<ir_version: 10, opset_import: ["": 21]>\n'


def parse(text: str) -> ir.Model:
    return ir.parse_text(HEADER + text)


def unary(op: str) -> ir.Model:
    return parse(f"g (float[N,4] x) => (float[N,4] y) {{ y = {op}(x) }}")


def scaled(factor: float) -> ir.Model:
    return parse(f"g (float[N,4] x) => (float[N,4] y) <float f = {{{factor}}}> {{ y = Mul(x, f) }}")


def test_the_original_passes_and_another_function_does_not() -> None:
    oracle = Oracle(unary("Relu"))
    assert oracle.available
    assert oracle.reason is None
    assert oracle.remarks == []
    for promise in Exactness:
        assert oracle.check(unary("Relu"), promise).ok
    found = oracle.check(unary("Abs"), Exactness.ROUNDING)
    assert not found.ok
    assert found.worst_output == "y"
    assert "more than rounding" in str(found.reason)
    assert oracle.check(unary("Abs"), Exactness.LOSSY).ok


def test_promises_are_told_apart() -> None:
    oracle = Oracle(scaled(1.0))
    nearly = scaled(1.0000005)
    assert not oracle.check(nearly, "bitwise").ok
    assert oracle.check(nearly, "rounding").ok
    assert not oracle.check(scaled(1.001), "rounding").ok


def test_each_step_is_compared_with_the_one_before() -> None:
    oracle = Oracle(scaled(1.0))
    step = scaled(1.0000005)
    assert oracle.check(step, "rounding").ok
    oracle.accept()
    assert oracle.check(step, "bitwise", against="previous").ok
    assert not oracle.check(step, "bitwise", against="original").ok
    assert not oracle.check(scaled(1.0), "bitwise", against="previous").ok
    oracle.restart()
    assert oracle.check(scaled(1.0), "bitwise", against="previous").ok
    with pytest.raises(ValueError, match="against"):
        oracle.check(step, "bitwise", against="last")


def test_only_a_model_that_ran_can_be_accepted() -> None:
    oracle = Oracle(unary("Relu"))
    with pytest.raises(ValueError, match="no checked model"):
        oracle.accept()
    assert not oracle.check(b"no model", "lossy").ok
    with pytest.raises(ValueError, match="no checked model"):
        oracle.accept()


def test_a_model_that_no_longer_loads_or_runs_fails() -> None:
    oracle = Oracle(unary("Relu"))
    found = oracle.check(b"no model", Exactness.LOSSY)
    assert not found.ok
    assert "no longer runs" in str(found.reason)
    # Right for the first setting (one row), refused for the second.
    one_row = parse(
        "g (float[N,4] x) => (float[N,4] y) <int64[1] s = {4}>"
        " { r = Relu(x)  f = Reshape(r, s)  y = Unsqueeze(f, a) }".replace(
            "<int64", "<int64[1] a = {0}, int64"
        )
    )
    found = oracle.check(one_row, Exactness.ROUNDING)
    assert not found.ok
    assert "no longer runs" in str(found.reason)


def test_what_is_lossy_is_measured_where_the_data_are() -> None:
    data = [{"x": np.full((2, 4), 0.5, np.float32)}]
    # The same in [-1, 1], another function beyond.
    clipped = parse(
        "g (float[N,4] x) => (float[N,4] y) <float lo = {-1}, float hi = {1}>"
        " { y = Clip(x, lo, hi) }"
    )
    original = unary("Identity")
    without, given = Oracle(original, seeds=(0, 1)), Oracle(original, data=data, seeds=(0, 1))
    assert without.check(clipped, Exactness.LOSSY).max_abs > 0.1
    found = given.check(clipped, Exactness.LOSSY)
    assert (found.ok, found.max_abs, found.sqnr_db) == (True, 0.0, np.inf)
    half = given.check(scaled(0.5), Exactness.LOSSY)
    assert half.max_abs == 0.25
    assert half.sqnr_db == pytest.approx(6.02, abs=0.01)
    assert not given.check(clipped, Exactness.ROUNDING).ok


def test_what_is_lossy_stays_finite_beyond_the_data() -> None:
    data = [{"x": np.full((2, 4), 0.5, np.float32)}]
    oracle = Oracle(unary("Identity"), data=data)
    assert any((p.feeds["x"] < 0).any() for p in oracle.probes)
    found = oracle.check(unary("Sqrt"), Exactness.LOSSY)
    assert not found.ok
    assert "is nan" in str(found.reason)


def test_wrong_for_the_second_setting_only() -> None:
    oracle = Oracle(parse("g (float[N,4] x) => (float[N,4] y) { y = Identity(x) }"))
    first_row = parse(
        "g (float[N,4] x) => (float[N,4] y) <int64[1] i = {0}>"
        " { r = Gather(x, i)  s = Shape(x)  y = Expand(r, s) }"
    )
    found = oracle.check(first_row, Exactness.ROUNDING)
    assert not found.ok
    assert [d["N"] for d in oracle.feeds_summary["dims"]] == [1, 3]


def test_summary() -> None:
    data = [{"x": np.full((5, 4), float(i), np.float32)} for i in range(9)]
    oracle = Oracle(unary("Relu"), data=data, seeds=(3, 1))
    assert oracle.feeds_summary == {
        "samples": 2,
        "batches": 9,
        "made": 4,
        "dims": [{"N": 1}, {"N": 3}],
        "seeds": [1, 3],
    }
    assert [f["x"].shape[0] for f in oracle.feeds] == [5, 5, 1, 1, 3, 3]
    assert len(oracle.outputs) == 6
    assert oracle.seconds > 0


def test_refused_samples_are_remarked() -> None:
    oracle = Oracle(unary("Relu"), data=[{"x": np.zeros((5, 3), np.float32)}])
    assert oracle.available
    assert oracle.feeds_summary["samples"] == 0
    assert "refuses samples" in oracle.remarks[0]


def test_errors_of_the_data_are_not_swallowed() -> None:
    def broken() -> Iterator[dict[str, Any]]:
        raise CalibrationError("samples.npz, sample 0: NaN")
        yield {}

    with pytest.raises(CalibrationError, match="sample 0"):
        Oracle(unary("Relu"), data=broken())


def test_random_outputs_are_found_without_luck() -> None:
    text = """
        g (float[2] x, bool c) => (float[2] a, float[2] b, float[2] d, float[2] e) {
            r = RandomNormalLike(x)
            a = Add(x, r)
            b = Neg(x)
            d = If(c) <
                then_branch = t () => (float[2] t1) { q = Abs(a)  t1 = Neg(q) },
                else_branch = f () => (float[2] f1) { f1 = Identity(x) }
            >
            e = If(c) <
                then_branch = t2 () => (float[2] t3) { t3 = RandomNormalLike(x) },
                else_branch = f2 () => (float[2] f3) { f3 = Identity(x) }
            >
        }"""
    model = parse(text)
    assert random_outputs(model) == {"a", "d", "e"}
    oracle = Oracle(model)
    assert sorted(oracle.remarks) == [
        f"output {name!r} is random and is not compared" for name in "ade"
    ]
    assert oracle.check(parse(text), Exactness.BITWISE).ok
    assert not oracle.check(parse(text.replace("b = Neg", "b = Abs")), Exactness.BITWISE).ok


def test_nothing_but_random_outputs() -> None:
    oracle = Oracle(parse("g (float[2] x) => (float[2] y) { y = RandomNormalLike(x) }"))
    assert not oracle.available
    assert oracle.reason == "all outputs of the original are random"


def test_original_that_onnxruntime_cannot_load() -> None:
    oracle = Oracle(ir.load(_custom_op()))
    assert not oracle.available
    assert "Nothing" in str(oracle.reason)
    assert oracle.feeds == []
    with pytest.raises(ValueError, match="not available"):
        oracle.check(unary("Relu"), "bitwise")


def _custom_op() -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Nothing", ["x"], ["y"], domain="nowhere")],
        "g",
        [value("x", 1, [2])],
        [value("y", 1, [2])],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("nowhere", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def test_original_that_accepts_nothing() -> None:
    model = parse("g (float[3] x) => (float[2] y) <int64[1] s = {2}> { y = Reshape(x, s) }")
    oracle = Oracle(model)
    assert not oracle.available
    assert "no inputs were found that the original accepts" in str(oracle.reason)


def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    ort.cache_clear()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    oracle = Oracle(unary("Relu"))
    assert not oracle.available
    assert "graphopt[cpu]" in str(oracle.reason)
    ort.cache_clear()


def test_inputs_are_looked_for_that_give_numbers() -> None:
    # A logarithm three operators away from the input, which no table knows about.
    model = parse("g (float[N,4] x) => (float[N,4] y) { a = Neg(x)  b = Neg(a)  y = Log(b) }")
    oracle = Oracle(model)
    assert oracle.remarks == []
    assert all(2 * np.isfinite(o["y"]).sum() >= o["y"].size for o in oracle.outputs)
    hopeless = Oracle(
        parse("g (float[4] x) => (float[4] y) { a = Abs(x)  b = Neg(a)  y = Log(b) }")
    )
    assert hopeless.available
    assert hopeless.remarks == ["most outputs are NaN or infinite for made-up inputs"]


def test_half_precision_inside_a_model_loosens_the_comparison() -> None:
    model = parse("g (float[N,64] x) => (float[N,64] y) { h = Cast<to=10>(x)  y = Cast<to=1>(h) }")
    plain = parse("g (float[N,64] x) => (float[N,64] y) { y = Identity(x) }")
    assert Oracle(model).check(plain, Exactness.ROUNDING).ok
    assert not Oracle(plain).check(model, Exactness.ROUNDING).ok


def test_one_session_at_a_time_and_nothing_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    alive: list[Session] = []
    most = 0

    def counting(*args: Any, **options: Any) -> Session:
        nonlocal most
        alive[:] = [s for s in alive if s._session is not None]
        session = open_session(*args, **options)
        alive.append(session)
        most = max(most, len(alive))
        return session

    monkeypatch.setattr(module, "open_session", counting)
    monkeypatch.chdir(tmp_path)
    oracle = Oracle(unary("Relu"))
    for _ in range(3):
        assert oracle.check(unary("Relu"), "bitwise").ok
    assert most == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", range(6))
def test_random_models_equal_themselves(seed: int) -> None:
    model = random_model(seed)
    oracle = Oracle(model)
    assert oracle.available, oracle.reason
    assert oracle.check(ir.clone(model), Exactness.BITWISE).ok


def test_wrong_rewrites_of_random_models_are_caught() -> None:
    caught = total = 0
    swap = {"Add": "Sub", "Mul": "Sub", "Neg": "Tanh", "Sigmoid": "Tanh", "Softplus": "Erf"}
    for seed in range(8):
        model = random_model(seed)
        oracle = Oracle(model)
        used = live(model)
        for i, node in enumerate(model.graph):
            if node.op_type not in swap or node not in used:
                continue
            wrong = ir.clone(model)
            list(wrong.graph)[i].op_type = swap[node.op_type]
            total += 1
            caught += not oracle.check(wrong, Exactness.ROUNDING).ok
    assert total >= 10
    assert caught >= 0.9 * total  # what follows may hide a wrong value


def live(model: ir.Model) -> set[ir.Node]:
    """The nodes that outputs depend on."""
    found: set[ir.Node] = set()
    pending = [v.producer() for v in model.graph.outputs]
    while pending:
        node = pending.pop()
        if node is None or node in found:
            continue
        found.add(node)
        inner = [n for g in ir.subgraphs(node) for n in g]
        pending += [v.producer() for n in (node, *inner) for v in n.inputs if v is not None]
    return found


def test_rounding_behind_16_bit_floats_is_judged_as_such() -> None:
    """A pass behind a conversion to float16 keeps the function, but not to 7 digits."""
    head = '<ir_version: 8, opset_import: ["": 17]>\ng (float[N,8] x) => (float[N,8] y) '
    original = ir.parse_text(head + "{ a = Sin(x) b = Exp(a) y = Sin(b) }")
    coarse = ir.parse_text(
        head + "{ a = Sin(x) c = Cast<to = 10>(a) e = Cast<to = 1>(c) b = Exp(e) y = Sin(b) }"
    )
    shifted = ir.parse_text(
        head.replace("=> (float[N,8] y) ", "=> (float[N,8] y) <float[1] k = {1.0003}> ")
        + "{ a = Sin(x) s = Mul(a, k) c = Cast<to = 10>(s) e = Cast<to = 1>(c) b = Exp(e) "
        + "y = Sin(b) }"
    )
    oracle = Oracle(original)
    assert oracle.check(coarse, "lossy").ok
    oracle.accept()
    assert oracle.check(shifted, "rounding", against="previous").ok
    assert not oracle.check(shifted, "rounding", against="original").ok
    oracle.restart()
    assert not oracle.check(shifted, "rounding", against="previous").ok


def test_bits_of_16_bit_floats_are_up_to_the_casts_around_them() -> None:
    half = PassManager("convert-fp16", oracle="off").run(random_model(0)).model
    same = PassManager("eliminate-identity", oracle="off").run(half)
    assert same.report.changed
    assert Oracle(half).check(same.model, "bitwise").ok
    sine, cosine = (
        parse(f"g (float16[N,4] x) => (float16[N,4] y) {{ y = {op}(x) }}") for op in ("Sin", "Cos")
    )
    assert not Oracle(sine).check(cosine, "bitwise").ok
