from __future__ import annotations

import numpy as np
import pytest

from graphopt import Exactness, PassManager, ir
from graphopt.passes.fold import FoldBranches
from graphopt.testing import assert_equivalent, check_pass

HEAD = '<ir_version: 9, opset_import: ["": 19]>\n'


def test_constant_condition() -> None:
    check_pass(
        FoldBranches(),
        HEAD
        + """
        g (float[N] x) => (float[N] y) <bool c = {1}> {
          y = If (c) <
            then_branch = t () => (float[N] a) { a = Relu(x) },
            else_branch = e () => (float[N] b) { b = Neg(x) }
          >
        }""",
        """
        graph(%x: float[N]) {
          %y = Relu(%x)
          return %y
        }""",
    )


def test_branch_that_returns_its_own_constant() -> None:
    check_pass(
        FoldBranches(),
        HEAD
        + """
        g (float[N] x) => (float[2] y, float[N] z, float[2] w) <bool[1] c = {0}> {
          y, v, u = If (c) <
            then_branch = t () => (float[N] a, float[N] p, float[N] k) {
              a = Relu(x) p = Exp(x) k = Sin(x)
            },
            else_branch = e () => (float[2] b, float[N] q, float[2] b) <float[2] b = {1, 2}> {
              q = Neg(x)
            }
          >
          z = Abs(v)
          w = Abs(u)
        }""",
        """
        graph(%x: float[N]) {
          const %b: float[2]
          %q = Neg(%x)
          %y = Identity(%b)
          %z = Abs(%q)
          %w = Abs(%b)
          return %y, %z, %w
        }""",
        numbers=False,  # onnxruntime leaves out the second of two equal outputs of a branch
    )


def test_condition_of_an_if_around() -> None:
    check_pass(
        FoldBranches(),
        HEAD
        + """
        g (float[N] x, bool c) => (float[N] y) {
          y = If (c) <
            then_branch = t () => (float[N] a) {
              p = Relu(x)
              a = If (c) <
                then_branch = t2 () => (float[N] aa) { aa = Exp(p) },
                else_branch = e2 () => (float[N] ab) { ab = Neg(p) }
              >
            },
            else_branch = e () => (float[N] b) {
              n = Not(c)
              b = If (n) <
                then_branch = t3 () => (float[N] ba) { ba = Sin(x) },
                else_branch = e3 () => (float[N] bb) { bb = Cos(x) }
              >
            }
          >
        }""",
        """
        graph(%x: float[N], %c: bool[]) {
          %y = If(%c)
            else_branch:
              graph() {
                %b = Sin(%x)
                return %b
              }
            then_branch:
              graph() {
                %p = Relu(%x)
                %a = Exp(%p)
                return %a
              }
          return %y
        }""",
        data=[{"x": np.ones(3, np.float32), "c": np.bool_(c)} for c in (False, True)],
    )


def test_negated_condition() -> None:
    check_pass(
        FoldBranches(),
        HEAD
        + """
        g (float[N] x, bool c) => (float[N] y) {
          n = Not(c)
          y = If (n) <
            then_branch = t () => (float[N] a) {
              a = If (c) <
                then_branch = t2 () => (float[N] aa) { aa = Exp(x) },
                else_branch = e2 () => (float[N] ab) { ab = Neg(x) }
              >
            },
            else_branch = e () => (float[N] b) { b = Sin(x) }
          >
        }""",
        """
        graph(%x: float[N], %c: bool[]) {
          %n = Not(%c)
          %y = If(%n)
            else_branch:
              graph() {
                %b = Sin(%x)
                return %b
              }
            then_branch:
              graph() {
                %a = Neg(%x)
                return %a
              }
          return %y
        }""",
        data=[{"x": np.ones(3, np.float32), "c": np.bool_(c)} for c in (False, True)],
    )


def test_nested_branches_that_are_decided() -> None:
    check_pass(
        FoldBranches(),
        HEAD
        + """
        g (float[N] x, bool c) => (float[N] y) <bool no = {0}, bool yes = {1}> {
          y = If (yes) <
            then_branch = t () => (float[N] a) {
              p = Relu(x)
              q = If (no) <
                then_branch = t2 () => (float[N] aa) { aa = Exp(p) },
                else_branch = e2 () => (float[N] ab) { ab = Neg(p) }
              >
              a = Sin(q)
            },
            else_branch = e () => (float[N] b) { b = Sin(x) }
          >
        }""",
        """
        graph(%x: float[N], %c: bool[]) {
          %p = Relu(%x)
          %ab = Neg(%p)
          %y = Sin(%ab)
          return %y
        }""",
    )


def test_conditions_that_may_change_stay() -> None:
    # An initializer that is a graph input is a default, not a constant.
    text = """
        g (float[N] x, bool c = {1}, bool d) => (float[N] y) {
          z = If (c) <
            then_branch = t () => (float[N] a) { a = Relu(x) },
            else_branch = e () => (float[N] b) { b = Neg(x) }
          >
          y = If (d) <
            then_branch = t1 () => (float[N] a1) { a1 = Relu(z) },
            else_branch = e1 () => (float[N] b1) { b1 = Neg(z) }
          >
        }"""
    check_pass(FoldBranches(), HEAD + text, None)


def test_models_without_control_flow() -> None:
    check_pass(
        FoldBranches(), HEAD + "g (float[N] x) => (float[N] y) { z = Exp(x) y = Neg(z) }", None
    )


LOOP = """
    g (float[N] x) => (float[N] y{extra}) <int64 m = {{{m}}}, bool c = {{{c}}}> {{
      y, z = Loop (m, c, x) <
        body = b (int64 i, bool ci, float[N] s) => (bool co, float[N] t, float[N] u) {{
          co = Identity(ci) t = Add(s, s) u = Identity(t)
        }}
      >
    }}"""


def test_loops_that_do_not_run() -> None:
    for m, c in ((0, 1), (-3, 1), (5, 0)):
        check_pass(
            FoldBranches(),
            HEAD + LOOP.format(m=m, c=c, extra=""),
            """
            graph(%x: float[N]) {
              %y = Identity(%x)
              return %y
            }""",
        )


def test_collected_values_of_a_loop_that_does_not_run() -> None:
    result = check_pass(
        FoldBranches(), HEAD + LOOP.format(m=0, c=1, extra=", float[K,N] z"), None, numbers=False
    )
    assert result.report.passes[0].declined == {
        "skip-loop: the shape of a scan output is not known": 1
    }


def test_loop_that_runs() -> None:
    check_pass(
        FoldBranches(),
        HEAD + LOOP.format(m=2, c=1, extra=", float[K,N] z"),
        None,
    )


def test_unused_results_of_branches() -> None:
    check_pass(
        FoldBranches(),
        HEAD
        + """
        g (float[N] x, bool c) => (float[N] y) {
          w, y = If (c) <
            then_branch = t () => (float[N] a, float[N] p) { a = Relu(x) p = Exp(a) },
            else_branch = e () => (float[2] b, float[N] q) <float[2] b = {1, 2}> { q = Neg(x) }
          >
        }""",
        """
        graph(%x: float[N], %c: bool[]) {
          %y = If(%c)
            else_branch:
              graph() {
                %q = Neg(%x)
                return %q
              }
            then_branch:
              graph() {
                %a = Relu(%x)
                %p = Exp(%a)
                return %p
              }
          return %y
        }""",
        data=[{"x": np.ones(3, np.float32), "c": np.bool_(c)} for c in (False, True)],
    )


def test_unused_control_flow_goes_with_what_it_needed() -> None:
    check_pass(
        FoldBranches(),
        HEAD
        + """
        g (float[N] x, bool c) => (float[N] y) {
          z = Exp(x)
          w = If (c) <
            then_branch = t () => (float[N] a) { a = Relu(z) },
            else_branch = e () => (float[2] b) { b = Neg(z) }
          >
          y = Neg(x)
        }""",
        """
        graph(%x: float[N], %c: bool[]) {
          %y = Neg(%x)
          return %y
        }""",
    )


LOOP_DATA = [{"x": np.float32([1, 2, 3]), "m": np.int64(m)} for m in (0, 1, 4)]


def test_unused_results_of_a_loop() -> None:
    # r feeds only itself; u is collected for nobody.
    check_pass(
        FoldBranches(),
        HEAD
        + """
        g (float[3] x, int64 m) => (float[3] y) {
          y, w, z = Loop (m, , x, x) <
            body = b (int64 i, bool ci, float[3] s, float[3] r)
              => (bool co, float[3] t, float[3] rr, float[3] u) {
              co = Identity(ci) t = Add(s, s) rr = Mul(r, r) u = Exp(rr)
            }
          >
        }""",
        """
        graph(%x: float[3], %m: int64[]) {
          %y = Loop(%m, _, %x)
            body:
              graph(%i: int64[*], %ci: bool[*], %s: float[*]) {
                %co = Identity(%ci)
                %t = Add(%s, %s)
                return %co, %t
              }
          return %y
        }""",
        data=LOOP_DATA,
    )


def test_values_that_feed_only_each_other() -> None:
    check_pass(
        FoldBranches(),
        HEAD
        + """
        g (float[3] x, int64 m) => (float[3] y) {
          a, b, y = Loop (m, , x, x, x) <
            body = b (int64 i, bool ci, float[3] s, float[3] r, float[3] k)
              => (bool co, float[3] sn, float[3] rn, float[3] kn) {
              co = Identity(ci) sn = Add(r, k) rn = Mul(s, r) kn = Exp(k)
            }
          >
        }""",
        """
        graph(%x: float[3], %m: int64[]) {
          %y = Loop(%m, _, %x)
            body:
              graph(%i: int64[*], %ci: bool[*], %k: float[*]) {
                %co = Identity(%ci)
                %kn = Exp(%k)
                return %co, %kn
              }
          return %y
        }""",
        data=LOOP_DATA,
    )


def test_values_that_others_need_stay() -> None:
    # r decides when to stop, q is read by what is collected, inside a branch.
    check_pass(
        FoldBranches(),
        HEAD
        + """
        g (float[3] x, float r0, float[3] q0) => (float[K,3] y) <int64 m = {9}, float big = {40}> {
          a, b, y = Loop (m, , r0, q0) <
            body = b (int64 i, bool ci, float r, float[3] q)
              => (bool co, float rn, float[3] qn, float[3] u) {
              rn = Add(r, r)
              co = Less(rn, big)
              qn = Add(q, x)
              u = If (ci) <
                then_branch = t () => (float[3] p) { p = Exp(q) },
                else_branch = e () => (float[3] n) { n = Neg(x) }
              >
            }
          >
        }""",
        None,
        data=[{"x": np.ones(3, np.float32), "r0": np.float32(3), "q0": np.zeros(3, np.float32)}],
    )


def test_value_that_a_loop_returns_unchanged() -> None:
    check_pass(
        FoldBranches(),
        HEAD
        + """
        g (float[3] x, int64 m) => (float[3] y, float[3] z) {
          k = Exp(x)
          y, w = Loop (m, , x, k) <
            body = b (int64 i, bool ci, float[3] s, float[3] r)
              => (bool co, float[3] t, float[3] rr) {
              co = Identity(ci) t = Add(s, r) rr = Identity(r)
            }
          >
          z = Neg(w)
        }""",
        """
        graph(%x: float[3], %m: int64[]) {
          %k = Exp(%x)
          %y = Loop(%m, _, %x)
            body:
              graph(%i: int64[*], %ci: bool[*], %s: float[*]) {
                %co = Identity(%ci)
                %t = Add(%s, %k)
                return %co, %t
              }
          %z = Neg(%k)
          return %y, %z
        }""",
        data=LOOP_DATA,
    )


def test_unused_inputs_and_results_of_a_scan() -> None:
    check_pass(
        FoldBranches(),
        HEAD
        + """
        g (float[3,5] x, float[5,3] v, float[3] i) => (float[3,5] y) {
          a, b, w, y = Scan <
            num_scan_inputs = 2, scan_input_axes = [1, 0], scan_input_directions = [0, 1],
            scan_output_axes = [0, 1], scan_output_directions = [0, 1],
            body = b (float[3] s, float[3] r, float[3] xe, float[3] ve)
              => (float[3] sn, float[3] rn, float[3] u, float[3] p) {
              sn = Add(s, xe) rn = Mul(r, ve) u = Exp(sn) p = Add(rn, ve)
            }
          > (i, i, x, v)
        }""",
        """
        graph(%x: float[3,5], %v: float[5,3], %i: float[3]) {
          %b, %y = Scan(%i, %v) {num_scan_inputs=1, scan_input_axes=[0], scan_input_directions=[1], scan_output_axes=[1], scan_output_directions=[1]}
            body:
              graph(%r: float[3], %ve: float[3]) {
                %rn = Mul(%r, %ve)
                %p = Add(%rn, %ve)
                return %rn, %p
              }
          return %y
        }""",  # noqa: E501
    )


def test_a_scan_keeps_one_input() -> None:
    # It says how often the body runs.
    check_pass(
        FoldBranches(),
        HEAD
        + """
        g (float[4,3] x, float[4,2] v, float[3] i) => (float[3] y) {
          y = Scan <
            num_scan_inputs = 2,
            body = b (float[3] s, float[3] xe, float[2] ve) => (float[3] sn) { sn = Add(s, s) }
          > (i, x, v)
        }""",
        """
        graph(%x: float[4,3], %v: float[4,2], %i: float[3]) {
          %y = Scan(%i, %x) {num_scan_inputs=1}
            body:
              graph(%s: float[3], %xe: float[3]) {
                %sn = Add(%s, %s)
                return %sn
              }
          return %y
        }""",
    )


def test_what_may_have_effects_stays() -> None:
    check_pass(
        FoldBranches(),
        """
        <ir_version: 9, opset_import: ["": 19, "custom": 1]>
        g (float[3] x, int64 m) => (float[3] y) {
          y, w = Loop (m, , x, x) <
            body = b (int64 i, bool ci, float[3] s, float[3] r)
              => (bool co, float[3] t, float[3] rr) {
              co = Identity(ci) t = Add(s, s) rr = Mul(r, r) log = custom.Print(r)
            }
          >
        }""",
        None,
        numbers=False,
    )


def test_fuel() -> None:
    text = HEAD + LOOP.format(m=0, c=1, extra="")
    result = PassManager(FoldBranches(), fuel=0).run(ir.parse_text(text))
    assert not result.report.changed


HALVES = ", ".join(["0.5"] * 32)


def lstm_cell(cond: str, consumer: str) -> str:
    """``Squeeze`` if the last size is 1, as torch writes it, before an operator of fixed rank."""
    return (
        HEAD
        + f"""
        g (float[N,4,K] x, bool c) => (float[A,B,C] y)
        <int64[1] last = {{-1}}, int64[1] one = {{1}},
         int64[1] first = {{0}}, float[8,4,1] w = {{{HALVES}}}, float[1,8,4] wi = {{{HALVES}}},
         float[1,8,2] wh = {{{HALVES[:78]}}}> {{
          s = Shape<start = 2>(x)
          e = Equal(s, one)
          {cond}
          z = If (t) <
            then_branch = a () => (float[N,4] p) {{ p = Squeeze(x, last) }},
            else_branch = b () => (float[N,4,K] q) {{ q = Identity(x) }}
          >
          {consumer}
        }}"""
    )


LSTM = "r = Relu(z) u = Unsqueeze(r, first) y, h, cc = LSTM<hidden_size = 2>(u, wi, wh)"
ONE = {"x": np.ones((3, 4, 1), np.float32), "c": np.bool_(False)}


@pytest.mark.parametrize(
    ("cond", "operator"),
    [
        ("t = Identity(e)", "Squeeze"),
        ("n = Not(e) k = Cast<to = 9>(n) t = Not(k)", "Squeeze"),
    ],
)
def test_branch_whose_rank_nothing_can_take(cond: str, operator: str) -> None:
    model = ir.parse_text(lstm_cell(cond, LSTM + " yy = Identity(y)"))
    result = PassManager(FoldBranches(), on_mismatch="raise", objective=None).run(model)
    ops = [n.op_type for n in result.model.graph]
    assert "If" not in ops
    assert operator in ops
    assert_equivalent(model, result.model, Exactness.BITWISE, data=[ONE], seeds=())


def test_the_branch_that_convolution_can_take() -> None:
    text = lstm_cell("t = Identity(c)", "r = Exp(z) y = Conv(r, w)")
    check_pass(
        FoldBranches(),
        text,
        """
        graph(%x: float[N,4,K], %c: bool[]) {
          const %w: float[8,4,1]
          %q = Identity(%x)
          %r = Exp(%q)
          %y = Conv(%r, %w)
          return %y
        }""",
        data=[ONE],
        seeds=(),
    )


@pytest.mark.parametrize(
    "consumer",
    [
        "y = Exp(z)",  # takes any rank
        "v = Relu(z) y = Transpose(v)",  # without perm, too
        "y = Unsqueeze(z, s)",  # the axis is not known
    ],
)
def test_branches_that_what_follows_can_both_take(consumer: str) -> None:
    check_pass(FoldBranches(), lstm_cell("t = Identity(e)", consumer), None, data=[ONE], seeds=())


def test_what_may_not_run_does_not_count() -> None:
    consumer = """
        y = If (c) <
          then_branch = a2 () => (float[A,B,C] p2) { v = Unsqueeze(z, first)
            p2, h, cc = LSTM<hidden_size = 2>(v, wi, wh) },
          else_branch = b2 () => (float[A,B,C] q2) { q2 = Exp(z) }
        >"""
    check_pass(FoldBranches(), lstm_cell("t = Identity(e)", consumer), None, data=[ONE], seeds=())


def test_what_always_fails_stays() -> None:
    consumer = "v = Unsqueeze(z, first) u = Unsqueeze(v, first) w0 = Unsqueeze(u, first)"
    consumer += " y, h, cc = LSTM<hidden_size = 2>(w0, wi, wh)"
    check_pass(FoldBranches(), lstm_cell("t = Identity(e)", consumer), None, numbers=False)
