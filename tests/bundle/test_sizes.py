from __future__ import annotations

import pytest

from graphopt import TargetError, ir
from graphopt.bundle import Shapes, choose_sizes


def choose(model: ir.Model, shapes: Shapes, *, everything: bool = True) -> list[str]:
    return choose_sizes(model, shapes, all_of_them=everything, target="toy")


def test_shapes_and_symbols(model: ir.Model) -> None:
    assert choose(model, {"x": (2, 3, 8, 9), "s": (-1, 7)}) == ["N=2", "H=8", "W=9", "s[1]=7"]
    assert choose(model, {"H": 8, "W": 9, "s": (2, 7)}) == ["H=8", "W=9", "N=2", "s[1]=7"]


def test_the_batch_is_one_where_nothing_else_is_open(model: ir.Model, plain: ir.Model) -> None:
    assert choose(plain, {}) == ["N=1"]
    assert choose(model, {"H": 8, "W": 9, "s": (0, 7)}) == ["H=8", "W=9", "s[1]=7", "N=1"]


def test_nothing_is_fixed_that_need_not_be(model: ir.Model) -> None:
    assert choose(model, {}, everything=False) == []
    assert choose(model, {"N": 4}, everything=False) == ["N=4"]


def test_what_is_missing_is_asked_for(model: ir.Model) -> None:
    with pytest.raises(TargetError) as caught:
        choose(model, {})
    assert str(caught.value) == (
        "toy needs the size of every dimension, and these are open: x:N,3,H,W, s:N,?; "
        "give --shape x:N,3,H,W --shape s:N,?"
    )
    with pytest.raises(TargetError, match=r"give --dim N=SIZE --dim W=SIZE"):
        choose(model, {"s": (-1, 7), "H": 3})


@pytest.mark.parametrize(
    ("shapes", "why"),
    [
        ({"z": (1, 2)}, "there is no input 'z'; there are: x, s"),
        ({"x": (1, 2)}, "has 4 dimensions, not 2"),
        ({"x": (1, 4, 8, 8)}, "dimension 1 of input 'x' is 3, not 4"),
        ({"M": 4}, "no input has a dimension 'M'; there are: H, N, W"),
        ({"Hx": 4}, "did you mean 'H'"),
        ({"N": 0}, "dimension 'N' cannot have the size 0"),
        ({"N": 4, "x": (1, 3, 8, 8)}, "cannot have both sizes 4 and 1"),
    ],
)
def test_what_does_not_fit(model: ir.Model, shapes: Shapes, why: str) -> None:
    with pytest.raises(TargetError, match=why):
        choose(model, shapes)


def test_inputs_without_a_rank() -> None:
    model = ir.parse_text(
        '<ir_version: 8, opset_import: ["": 17]> g (float x) => (float y) { y = Relu(x) }'
    )
    model.graph.inputs[0].shape = None
    with pytest.raises(TargetError, match="no known rank"):
        choose(model, {})
    with pytest.raises(TargetError, match="declared without a rank"):
        choose(model, {"x": (1,)})
