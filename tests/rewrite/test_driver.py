"""The greedy driver: fixed point, determinism, fuel, honesty."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt import Const, Match, Op, Replacement, Rewriter, Var, apply_rules, ir, rule
from graphopt.errors import GraphOptError, PassFailed

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
x, c, d = Var(), Const(), Const()


@rule(Op("Identity", x))
def drop_identity(m: Match, rw: Rewriter) -> Replacement:
    return m[x]


@rule(Op("Add", Op("Add", x, c), d))
def merge_adds(m: Match, rw: Rewriter) -> Replacement:
    if m[c].shape != m[d].shape:
        return m.fail("shapes differ")
    return rw.op("Add", m[x], rw.const(m[c] + m[d], "sum"))


def chain(n: int) -> ir.Model:
    body = " ".join(f"t{i + 1} = Identity(t{i})" for i in range(n))
    return ir.parse_text(f"{HEAD}g (float[2] t0) => (float[2] y) {{ {body} y = Relu(t{n}) }}")


def test_runs_to_a_fixed_point() -> None:
    model = chain(50)
    stats = apply_rules(Rewriter(model), [drop_identity])
    assert [n.op_type for n in model.graph] == ["Relu"]
    assert stats.applied == {"drop-identity": 50}
    ir.verify(model)


def test_rewrites_feed_rewrites() -> None:
    model = ir.parse_text(
        HEAD
        + """g (float[2] a) => (float[2] y) <float[2] k = {1,2}> {
          p = Add(a, k)  q = Identity(p)  r = Add(k, q)  y = Add(r, k)
        }"""
    )
    stats = apply_rules(Rewriter(model), [merge_adds, drop_identity])
    assert [n.op_type for n in model.graph] == ["Add"]
    assert stats.applied["merge-adds"] == 2
    node = next(iter(model.graph))
    np.testing.assert_array_equal(ir.array(node.inputs[1]), [3, 6])
    assert list(model.graph.initializers) == [node.inputs[1].name]  # type: ignore[union-attr]


def test_declines_with_a_reason_and_leaves_nothing_behind() -> None:
    @rule(Op("Add", x, c))
    def build_then_decline(m: Match, rw: Rewriter) -> Replacement:
        rw.op("Mul", m[x], rw.const(np.ones(2, np.float32)))
        return m.fail("changed my mind")

    model = ir.parse_text(
        HEAD + "g (float[2] a) => (float[2] y) <float[2] k = {1,2}> { y = Add(a, k) }"
    )
    before = ir.dump(model)
    rw = Rewriter(model)
    stats = apply_rules(rw, [build_then_decline])
    assert ir.dump(model) == before
    assert stats.declined == {"build-then-decline: changed my mind": 1}
    assert not stats.changed
    assert not rw.changed


def test_an_identity_that_names_an_output_stays() -> None:
    model = ir.parse_text(HEAD + "g (float[2] a) => (float[2] y) { y = Identity(a) }")
    stats = apply_rules(Rewriter(model), [drop_identity])
    assert not stats.changed
    assert sum(stats.declined.values()) == 1


def test_dead_nodes_go_but_effects_stay() -> None:
    model = ir.parse_text(
        '<ir_version: 8, opset_import: ["" : 17, "my.ops" : 1]>\n'
        """g (float[2] a) => (float[2] y) {
          p = Tanh(a)  q = Neg(p)  s = my.ops.Log(a)  y = Relu(a)
        }"""
    )
    stats = apply_rules(Rewriter(model), [drop_identity])
    assert [n.op_type for n in model.graph] == ["Log", "Relu"]
    assert stats.erased == 2


def test_fuel_stops_at_exactly_one_rewrite() -> None:
    for limit in range(5):
        left = iter([True] * limit + [False] * 100)
        model = chain(10)
        stats = apply_rules(Rewriter(model, allow=lambda _, left=left: next(left)), [drop_identity])
        assert stats.applied.total() == limit
        ir.verify(model)


def test_deterministic() -> None:
    dumps = set()
    for _ in range(3):
        model = ir.parse_text(
            HEAD
            + """g (float[2] a) => (float[2] y, float[2] z) <float[2] k = {1,2}> {
              p = Add(a, k)  q = Add(p, k)  r = Identity(q)  y = Relu(r)  z = Add(k, r)
            }"""
        )
        apply_rules(Rewriter(model), [merge_adds, drop_identity])
        dumps.add(ir.dump(model))
    assert len(dumps) == 1


def test_rules_of_greater_benefit_come_first() -> None:
    @rule(Op("Neg", x))
    def small(m: Match, rw: Rewriter) -> Replacement:
        return rw.op("Abs", m[x])

    @rule(Op("Neg", x), benefit=9)
    def large(m: Match, rw: Rewriter) -> Replacement:
        return rw.op("Relu", m[x])

    model = ir.parse_text(HEAD + "g (float[2] a) => (float[2] y) { y = Neg(a) }")
    assert apply_rules(Rewriter(model), [small, large]).applied == {"large": 1}


def test_rules_that_do_not_converge_are_named() -> None:
    @rule(Op("Neg", x))
    def ping(m: Match, rw: Rewriter) -> Replacement:
        return rw.op("Abs", m[x])

    @rule(Op("Abs", x))
    def pong(m: Match, rw: Rewriter) -> Replacement:
        return rw.op("Neg", m[x])

    model = ir.parse_text(HEAD + "g (float[2] a) => (float[2] y) { y = Neg(a) }")
    with pytest.raises(GraphOptError, match=r"rules do not converge: p[io]ng \(\d+ times\)"):
        apply_rules(Rewriter(model), [ping, pong])


def test_a_rule_that_raises_is_named() -> None:
    @rule(Op("Neg", x))
    def broken(m: Match, rw: Rewriter) -> Replacement:
        raise ZeroDivisionError("oops")

    model = ir.parse_text(HEAD + "g (float[2] a) => (float[2] y) { y = Neg(a) }")
    with pytest.raises(PassFailed, match="rule broken at %y: ZeroDivisionError: oops"):
        apply_rules(Rewriter(model), [broken])


def test_changing_the_root_in_place_counts() -> None:
    @rule(Op("Elu", x))
    def reset_alpha(m: Match, rw: Rewriter) -> Replacement:
        if ir.attr(m.root, "alpha") == 1.0:
            return None
        rw.set_attr(m.root, alpha=None)
        return m.root.outputs[0]

    model = ir.parse_text(HEAD + "g (float[2] a) => (float[2] y) { y = Elu<alpha=2.0>(a) }")
    assert apply_rules(Rewriter(model), [reset_alpha]).applied == {"reset-alpha": 1}


def test_several_outputs_are_replaced_together() -> None:
    @rule(Op("Split", x, Const()))
    def split_of_two(m: Match, rw: Rewriter) -> Replacement:
        return (rw.op("Relu", m[x]), None)

    model = ir.parse_text(
        HEAD
        + """g (float[2] a) => (float[1] y, float[1] z) <int64[2] s = {1,1}> {
          y, z = Split(a, s)
        }"""
    )
    rw = Rewriter(model)
    with pytest.raises(GraphOptError, match="do not converge"):
        apply_rules(
            rw, [split_of_two], max_rewrites=3
        )  # the Split stays for z, so it matches again


def test_work_is_linear_in_the_number_of_nodes() -> None:
    def asked(n: int) -> int:
        count = 0

        def allow(_: str) -> bool:
            nonlocal count
            count += 1
            return True

        apply_rules(Rewriter(chain(n), allow=allow), [drop_identity])
        return count

    assert asked(400) == 4 * asked(100)


def test_a_rule_that_builds_and_declines_does_not_wake_itself() -> None:
    tried: list[str] = []

    @rule(Op("Relu", Var()))
    def changes_its_mind(m: Match, rw: Rewriter) -> ir.Value | None:
        tried.append(m.root.outputs[0].name or "")
        assert len(tried) < 10
        rw.op("Neg", m.root.inputs[0])
        return m.fail("on second thoughts")

    model = ir.parse_text("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N] x) => (float[N] y) { t = Neg(x) y = Relu(t) }
    """)
    before = ir.dump(model)
    stats = apply_rules(Rewriter(model), [changes_its_mind])
    assert not stats.changed
    assert tried == ["y"]
    assert ir.dump(model) == before
