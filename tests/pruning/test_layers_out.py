from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt import PassManager, Rewriter, ir, load
from graphopt.measure import Trial
from graphopt.pruning import bypass, find_blocks, matches, removals, take_out
from graphopt.runtime import open_session

HEAD = '<ir_version: 10, opset_import: ["": 17]>\n'
WEIGHTS = "<float[4,4] v, float[4,4] w, float[4,4] u>"


def model(graph: str) -> ir.Model:
    """A model whose weights are small and random."""
    rng = np.random.default_rng(0)
    text = HEAD + "g " + graph
    for name in "vwu":
        values = ", ".join(f"{v:.3f}" for v in rng.normal(0, 0.5, 16))
        text = text.replace(f"float[4,4] {name}", f"float[4,4] {name} = {{{values}}}")
    made = ir.parse_text(text)
    ir.infer_shapes(made)
    return made


def taken_out(made: ir.Model) -> ir.Model:
    """The model without its first block."""
    count = len(list(made.graph))
    block, rw = find_blocks(made)[0], Rewriter(made)
    name = block.name
    bypass(rw, block)
    ir.verify(made)
    assert len(list(made.graph)) == count
    take_out(rw, [name])
    ir.verify(made)
    return made


def reasons(graph: str) -> list[str | None]:
    return [b.reason for b in find_blocks(model(graph))]


PLAIN = f"""(float[N,4] x) => (float[N,4] y) {WEIGHTS} {{
  h = MatMul(x, u)
  a = MatMul(h, v)
  b = Relu(a)
  c = MatMul(b, w)
  s = Add(c, h)
  y = Relu(s)
}}"""


def test_a_branch_is_what_lies_between_the_shortcut_and_the_sum() -> None:
    (block,) = find_blocks(model(PLAIN))
    assert [n.outputs[0].name for n in block.branch] == ["a", "b", "c"]
    assert (block.name, block.shortcut.name, block.kind, block.reason) == (
        "s", "h", "feed-forward", None,
    )  # fmt: skip


def test_without_the_branch_the_shortcut_goes_on() -> None:
    made = taken_out(model(PLAIN))
    assert [n.op_type for n in made.graph] == ["MatMul", "Relu"]
    assert set(made.graph.initializers) == {"u"}
    x = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    with open_session(made) as session:
        (y,) = session.run({"x": x}).values()
    u = ir.array(made.graph.initializers["u"])
    assert u is not None
    np.testing.assert_allclose(y, np.maximum(x @ u, 0), atol=1e-6)


def test_what_only_the_branch_reads_goes_too_and_what_others_read_stays() -> None:
    made = taken_out(
        model(
            f"""(float[N,4] x, float[N,4] m) => (float[N,4] y) {WEIGHTS} {{
          e = Exp(m)
          f = Neg(m)
          a = MatMul(x, v)
          b = Mul(a, e)
          c = Mul(b, f)
          s = Add(x, c)
          y = Mul(s, f)
        }}"""
        )
    )
    assert [n.outputs[0].name for n in made.graph] == ["f", "y"]


def test_a_sum_that_is_an_output_keeps_its_name() -> None:
    made = taken_out(
        model(
            f"""(float[N,4] x) => (float[N,4] y) {WEIGHTS} {{
          h = Relu(x)
          c = MatMul(h, v)
          y = Add(h, c)
        }}"""
        )
    )
    assert [v.name for v in made.graph.outputs] == ["y"]
    assert [n.op_type for n in made.graph] == ["Relu"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        # A projection: both summands are computed.
        ("p = MatMul(x, u) a = MatMul(x, v) y = Add(p, a)", "nothing goes around it"),
        # Broadcast: the shortcut is smaller than the sum.
        (
            "h = ReduceMean <axes=[0]> (x) a = MatMul(h, v) e = Expand(a, n) y = Add(h, e)",
            "its shortcut has another shape",
        ),
        ("a = MatMul(x, v) z = Relu(a) y = Add(x, z)", "is an output of the model"),
        ("a = MatMul(x, v) s = Add(x, a) y = Mul(s, a)", "%a, inside of it, is used elsewhere"),
    ],
)
def test_reasons(body: str, reason: str) -> None:
    outputs = "float[N,4] y, float[N,4] z" if " z = " in body else "float[N,4] y"
    weights = WEIGHTS.replace(">", ", int64[2] n = {3, 4}>")
    (found,) = reasons(f"(float[N,4] x) => ({outputs}) {weights} {{ {body} }}")
    assert found is not None
    assert reason in found


def test_sizes_that_are_not_known_may_be_broadcast() -> None:
    made = model(
        f"(float[N,4] x) => (float[M,4] y) {WEIGHTS} {{"
        "h = Relu(x) a = MatMul(h, v) s = Add(h, a) y = MatMul(s, w) }"
    )
    (block,) = find_blocks(made)
    assert block.reason is None
    block.shortcut.shape = ir.Shape((None, 4))
    block.add.outputs[0].shape = ir.Shape((None, 4))
    assert find_blocks(made)[0].reason == "the shape of its shortcut is not known"


def test_nested_layers_go_in_any_order() -> None:
    text = f"""(float[N,4] x) => (float[N,4] y, float[N,4] t) {WEIGHTS} {{
      h = Relu(x)
      a = MatMul(h, v)
      b = MatMul(a, w)
      s = Add(a, b)
      c = MatMul(s, u)
      t = Add(h, c)
      y = Neg(t)
    }}"""
    for order in ("s", "t", "st", "ts"):
        made, gone = model(text), []
        for name in order:
            for block in find_blocks(made):
                if block.name == name:
                    assert block.reason is None
                    bypass(Rewriter(made), block)
                    gone.append(name)
        take_out(Rewriter(made), gone)
        ir.verify(made)
        assert [v.name for v in made.graph.outputs] == ["y", "t"]
        ops = [n.op_type for n in made.graph]
        assert ops.count("MatMul") == (2 if order == "s" else 0)
        assert ops.count("Add") == (1 if order == "s" else 0)


def test_a_sum_that_a_subgraph_reads() -> None:
    made = taken_out(
        model(
            f"""(float[N,4] x, bool c) => (float[N,4] y) {WEIGHTS} {{
          h = Relu(x)
          a = MatMul(h, v)
          s = Add(h, a)
          y = If(c) <
            then_branch = t () => (float[N,4] p) {{ p = Neg(s) }},
            else_branch = e () => (float[N,4] q) {{ q = MatMul(s, w) }}
          >
        }}"""
        )
    )
    assert [n.op_type for n in made.graph] == ["Relu", "If"]
    with open_session(made) as session:
        (y,) = session.run({"x": np.ones((1, 4), np.float32), "c": np.array(True)}).values()
    assert np.array_equal(y, -np.ones((1, 4), np.float32))


@pytest.mark.parametrize(
    "body",
    [
        "b = Add(x, c) y = MatMul(b, v)",  # a bias
        "y = Add(x, x)",
        "e = Erf(x) s = Add(x, e) y = MatMul(s, v)",  # part of an activation
    ],
)
def test_additions_that_are_no_layers(body: str) -> None:
    weights = WEIGHTS.replace(">", ", float[4] c = {1, 2, 3, 4}>")
    assert reasons(f"(float[N,4] x) => (float[N,4] y) {weights} {{ {body} }}") == []


def test_layers_are_matched_by_kind_and_by_names_inside() -> None:
    (block,) = find_blocks(model(PLAIN))
    for pattern in ("s", "b", "feed-*"):
        assert matches(block, ["nothing", pattern])
    assert not matches(block, ["h", "y", "attention"])


def test_kinds_and_reasons_of_real_models(models_dir: Path) -> None:
    found: dict[str, Any] = {}
    for name in ("digits_resnet", "digits_mobilenet", "digits_transformer"):
        made = PassManager("O2").run(load(models_dir / f"{name}.onnx")).model
        ir.infer_shapes(made)
        found[name] = [(b.kind, b.reason is None) for b in find_blocks(made)]
    assert found["digits_resnet"] == [("convolution", True)] * 3 + [("convolution", False)]
    assert found["digits_mobilenet"] == [("convolution", True)] * 3
    assert found["digits_transformer"] == [("attention", True), ("feed-forward", True)] * 3


def test_the_layer_that_is_missed_least_goes_first() -> None:
    made = model(
        """(float[N,4] x) => (float[N,4] y) <float[4,4] v, float[4,4] w, float[1] k = {0.01}> {
          a = MatMul(x, v)
          r = Add(x, a)
          b = MatMul(r, w)
          c = Mul(b, k)
          s = Add(r, c)
          y = Neg(s)
        }"""
    )
    feeds = {"x": np.random.default_rng(2).normal(size=(16, 4)).astype(np.float32)}
    trial = Trial(made, [feeds])
    first, second = removals(made, trial, {"r", "s"})
    assert [first.block.name, second.block.name] == ["s", "r"]
    assert set(first.others) == {"r", "s"}
    assert first.noise == first.raw == first.others["s"] < first.others["r"] <= second.noise
    assert trial.noise(second.model) == second.noise
    assert [n.op_type for n in second.model.graph] == ["Neg"]


def test_a_bypass_keeps_the_names_and_places_of_what_stays() -> None:
    made = model(PLAIN)
    before = [n.outputs[0].name for n in made.graph]
    bypass(Rewriter(made), find_blocks(made)[0])
    after = [n.outputs[0].name for n in made.graph]
    assert [(i, n) for i, n in enumerate(after) if n in before] == [(0, "h"), (4, "s"), (5, "y")]
    assert [n.op_type for n in made.graph] == ["MatMul", *["Identity"] * 4, "Relu"]


def test_layers_behind_make_up_for_one_that_went() -> None:
    """A linear layer beside its shortcut can be made up for wholly by the next one."""
    made = model(
        f"""(float[N,4] x) => (float[N,4] y) {WEIGHTS} {{
          a = MatMul(x, v)
          s = Add(x, a)
          y = MatMul(s, w)
        }}"""
    )
    rng = np.random.default_rng(2)
    fit, other = ([{"x": rng.normal(size=(64, 4)).astype(np.float32)}] for _ in range(2))
    (found,) = removals(made, Trial(made, other), {"s"}, fit=fit)
    assert found.raw == found.others["s"] > 0.05
    assert found.noise < 1e-6
    assert [n.op_type for n in found.model.graph] == ["MatMul"]
    assert found.noise == Trial(made, other).noise(found.model)
