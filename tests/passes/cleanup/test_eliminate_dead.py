from __future__ import annotations

import time

import onnx
import pytest

from graphopt import PassManager, ir
from graphopt.passes.cleanup import EliminateDead
from graphopt.passes.cleanup.eliminate_dead import _INDEPENDENT
from graphopt.testing import check_pass


def test_dead_nodes_and_initializers() -> None:
    result = check_pass(
        EliminateDead(),
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N] x) => (float[N] y) <float k = {2}, float unused = {3}>
        { a = Relu(x) b = Mul(a, k) c = Exp(b) y = Neg(x) d = RandomNormalLike(a) }
        """,
        """
        graph(%x: float[N]) {
          %y = Neg(%x)
          return %y
        }
        """,
    )
    record = result.report.passes[0]
    assert record.rewrites == {"drop-initializer": 2}
    assert record.erased == 4


def test_unused_inputs_and_defaults_stay() -> None:
    check_pass(
        EliminateDead(),
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N] x, float[N] unused, float k = {2}) => (float[N] y) { y = Neg(x) }
        """,
        None,
    )


def test_nodes_of_unknown_domains_may_have_effects() -> None:
    check_pass(
        EliminateDead(),
        """
        <ir_version: 8, opset_import: ["": 17, "mine": 1]>
        g (float[N] x) => (float[N] y) { a = Relu(x) b = mine.Log(a) y = Neg(x) }
        """,
        None,
    )


def test_captures_count_as_uses() -> None:
    check_pass(
        EliminateDead(),
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N] x, bool c) => (float[N] y)
        {
            a = Relu(x)
            b = Exp(x)
            y = If (c) <
                then_branch = t () => (float[N] p) { dead = Neg(b) p = Abs(a) },
                else_branch = e () => (float[N] r) { r = Abs(x) }
            >
        }
        """,
        """
        graph(%x: float[N], %c: bool[]) {
          %a = Relu(%x)
          %y = If(%c)
            else_branch:
              graph() {
                %r = Abs(%x)
                return %r
              }
            then_branch:
              graph() {
                %p = Abs(%a)
                return %p
              }
          return %y
        }
        """,
    )


def test_dead_node_with_subgraphs() -> None:
    check_pass(
        EliminateDead(),
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N] x, bool c) => (float[N] y)
        {
            a = Relu(x)
            z = If (c) <
                then_branch = t () => (float[N] p) <float k = {1}> { p = Mul(a, k) },
                else_branch = e () => (float[N] r) { r = Abs(a) }
            >
            y = Neg(x)
        }
        """,
        """
        graph(%x: float[N], %c: bool[]) {
          %y = Neg(%x)
          return %y
        }
        """,
    )


LSTM = """
    <ir_version: 8, opset_import: ["": 17]>
    g (float[S,B,2] x) => (float[1,B,3] {out})
    <float[1,12,2] w = {{{w}}}, float[1,12,3] r = {{{r}}}>
    {{ y, h, c = LSTM<hidden_size=3>(x, w, r) }}
"""


@pytest.mark.parametrize(("out", "kept"), [("h", "_, %h"), ("c", "_, _, %c")])
def test_unused_optional_outputs(out: str, kept: str) -> None:
    sizes = (("w", 24), ("r", 36))
    weights = {k: ",".join(f"{(i % 7 - 3) / 4}" for i in range(n)) for k, n in sizes}
    result = check_pass(
        EliminateDead(),
        LSTM.format(out=out, **weights),
        f"""
        graph(%x: float[S,B,2]) {{
          const %r: float[1,12,3]
          const %w: float[1,12,2]
          {kept} = LSTM(%x, %w, %r) {{hidden_size=3}}
          return %{out}
        }}
        """,
    )
    assert result.report.passes[0].rewrites == {"drop-output": 2}


@pytest.mark.parametrize(
    ("kind", "call", "kept"),
    [
        (
            "float[1,1,4,4]",
            "y, i = MaxPool<kernel_shape=[2,2]>(x)",
            "MaxPool(%x) {kernel_shape=[2, 2]}",
        ),
        ("float[N,4]", "y, m = Dropout(x)", "Dropout(%x)"),
        ("float[N,4]", "y, m, s = LayerNormalization(x, k)", "LayerNormalization(%x, %k)"),
        ("float[N]", "y, a, b, c = Unique(x)", "Unique(%x)"),
    ],
)
def test_other_operators(kind: str, call: str, kept: str) -> None:
    const = "const %k: float[4]\n          " if "k" in kept.split("kernel")[0] else ""
    out = {"MaxPool": "float[1,1,3,3]", "Unique": "float[M]"}.get(kept.split("(")[0], kind)
    check_pass(
        EliminateDead(),
        f"""
        <ir_version: 8, opset_import: ["": 17]>
        g ({kind} x) => ({out} y) <float[4] k = {{1,2,3,4}}> {{ {call} }}
        """,
        f"""
        graph(%x: {kind}) {{
          {const}%y = {kept}
          return %y
        }}
        """,
    )


def test_used_outputs_stay() -> None:
    check_pass(
        EliminateDead(),
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N] x) => (float[M] y, int64[M] n) { y, a, b, c = Unique(x) n = Neg(c) }
        """,
        """
        graph(%x: float[N]) {
          %y, _, _, %c = Unique(%x)
          %n = Neg(%c)
          return %y, %n
        }
        """,
    )


@pytest.mark.parametrize(
    ("opset", "call"),
    [
        # Five outputs select training before opset 14; three are required by it since.
        (9, "y, m, v, q, r = BatchNormalization(x, s, s, s, s)"),
        (15, "y, m, v = BatchNormalization<training_mode=1>(x, s, s, s, s)"),
        (17, "y, i = TopK(x, k)"),
        (18, "y, z = Split<axis=0,num_outputs=2>(x)"),
    ],
)
def test_outputs_that_are_not_independent(opset: int, call: str) -> None:
    const = "float[2] s = {1,2}" if "Batch" in call else "int64[1] k = {1}" if "k" in call else ""
    check_pass(
        EliminateDead(),
        f"""
        <ir_version: 8, opset_import: ["": {opset}]>
        g (float[4,2] x) => (float[A,B] y) <{const}> {{ {call} }}
        """,
        None,
    )


def test_independent_outputs_are_optional() -> None:
    for op in _INDEPENDENT:
        outputs = onnx.defs.get_schema(op).outputs
        assert any(str(o.option).endswith("Optional") for o in outputs), op
        assert len(outputs) > 1


def test_fuel_stops_it() -> None:
    source = ir.parse_text("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N] x) => (float[N] y) { a = Relu(x) b = Exp(x) y = Neg(x) }
    """)
    # The pass itself is an action, too.
    left = [
        len(list(PassManager(EliminateDead(), fuel=fuel).run(source).model.graph))
        for fuel in range(4)
    ]
    assert left == [3, 3, 2, 1]


def test_linear_time() -> None:
    def seconds(count: int) -> float:
        chain = "\n".join(f"v{i + 1} = Relu(v{i})" for i in range(count))
        source = ir.parse_text(f"""
            <ir_version: 8, opset_import: ["": 17]>
            g (float[N] v0) => (float[N] y) {{ {chain} y = Neg(v0) }}
        """)
        start = time.process_time()
        result = PassManager(EliminateDead()).run(source)
        assert len(list(result.model.graph)) == 1
        return time.process_time() - start

    small, large = min(seconds(300) for _ in range(3)), min(seconds(3000) for _ in range(2))
    assert large < 30 * small + 0.2
