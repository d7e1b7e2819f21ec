"""The text of a model: complete enough to compare, the same on every run."""

from __future__ import annotations

from graphopt import Rewriter, ir

TEXT = """<ir_version: 8, opset_import: ["": 17, "private": 1]>
g (float[N,3] x, bool c) => (float[N,3] y, seq(float[M]) z)
<float[3] w = {1,2,3}, int64[1] axes = {0}> {
    a = Unsqueeze(x, axes)
    b = Squeeze(a, axes)
    s = If(c) <then_branch = t () => (float[N,3] p) { p = Add(b, w) },
               else_branch = e () => (float[N,3] q) { q = LeakyRelu<alpha = 0.5>(b) }>
    y, _ = private.Thing<
        f = 1.5, i = 2, n = [1, 2], s = "text", ss = ["a", "b"], t = float[1] {1}>(s, , w)
    z = SplitToSequence(y)
}"""

EXPECTED = """\
graph(%x: float[N,3], %c: bool[]) {
  const %axes: int64[1] = [0]
  const %w: float[3]
  %a = Unsqueeze(%x, %axes)
  %b = Squeeze(%a, %axes)
  %s = If(%c)
    else_branch:
      graph() {
        %q = LeakyRelu(%b) {alpha=0.5}
        return %q
      }
    then_branch:
      graph() {
        %p = Add(%b, %w)
        return %p
      }
  %y, %_ = private.Thing(%s, _, %w) {f=1.5, i=2, n=[1, 2], s='text', ss=['a', 'b'], t=<float[1]>}
  %z = SplitToSequence(%y)
  return %y, %z
}
"""


def test_golden_text() -> None:
    assert ir.dump(ir.parse_text(TEXT)) == EXPECTED


def test_order_of_initializers_and_attributes_does_not_matter() -> None:
    swapped = TEXT.replace(
        "float[3] w = {1,2,3}, int64[1] axes = {0}", "int64[1] axes = {0}, float[3] w = {1,2,3}"
    )
    swapped = swapped.replace("f = 1.5, i = 2", "i = 2, f = 1.5")
    assert swapped != TEXT
    assert ir.dump(ir.parse_text(swapped)) == EXPECTED


def test_nodes_of_one_name_are_told_apart_in_files() -> None:
    model = ir.parse_text(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[1] x, bool c) => (float[1] y) {
          a = Relu(x) b = Neg(a) d = Abs(b) e = Exp(d) f = Tanh(e)
          y = If(c) <then_branch = t () => (float[1] p) { p = Neg(f) },
                     else_branch = s () => (float[1] q) { r = Abs(f) q = Exp(r) }>
        }"""
    )
    # As a rewrite leaves them, where several nodes take the place of one.
    given = {"a": "one", "b": "one", "e": "two", "f": "one", "p": "one", "r": "two", "q": "two"}
    for node in ir.all_nodes(model):
        node.name = given.get(node.outputs[0].name or "", "")
    rw = Rewriter(model)  # only a model that changed is written anew
    rw.insert_after(model.graph.inputs[0], lambda v: rw.op("Ceil", v))
    proto = ir.to_proto(model)
    assert [n.name for n in proto.graph.node] == ["", "one", "", "", "two", "", ""]
    branches = {a.name: [n.name for n in a.g.node] for a in proto.graph.node[-1].attribute}
    assert branches == {"then_branch": ["one"], "else_branch": ["two", ""]}
    # The model itself keeps them.
    assert [n.name for n in model.graph][1:3] == ["one", "one"]


def test_defaults_of_inputs_are_marked() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[1] x, float[1] w) => (float[1] y) <float[1] w = {1}> { y = Add(x, w) }"""
    assert "  default %w: float[1]\n" in ir.dump(ir.parse_text(text))
