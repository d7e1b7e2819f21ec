"""What passes do with transposed convolutions, which they fit as they do any layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pruning.test_noise import Case
from pruning.test_recover import check
from reconstruct.single import network, normal

from graphopt import PassManager, ir
from graphopt.measure import Trial
from graphopt.reconstruct import layers, rebuild

# Attributes of the transposed convolution, shapes of x and of its weight.
KINDS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
    "1d": ("strides = [3], output_padding = [1]", (3, 9), (8, 6, 4)),
    "2d": ("strides = [2, 2], pads = [1, 1, 0, 0]", (3, 5, 6), (8, 6, 3, 3)),
    "dilated": ("dilations = [2, 1], strides = [1, 2]", (3, 5, 6), (8, 6, 2, 3)),
    "grouped": ("group = 2, strides = [2, 1], output_padding = [1, 0]", (3, 5, 6), (8, 3, 3, 3)),
    "3d": ("strides = [1, 2, 2]", (3, 3, 4, 4), (8, 6, 1, 2, 2)),
}


def net(kind: str) -> ir.Model:
    """A convolution, a transposed one, and another that reads it."""
    attributes, x, shape = KINDS[kind]
    n = len(shape) - 2
    groups = 2 if kind == "grouped" else 1
    ones = (1,) * n
    return network(
        f"""a = Conv(x, u, p) b = Relu(a) c = ConvTranspose<{attributes}>(b, w, q) d = Relu(c)
        y = Conv(d, v)""",
        f"N,{','.join(map(str, x))}",
        u=normal(8, x[0], *ones) / 2, p=normal(8, seed=1),
        w=normal(*shape, seed=2) / 4, q=normal(shape[1] * groups, seed=3),
        v=normal(2, shape[1] * groups, *ones, seed=4) / 2,
    )  # fmt: skip


def batches(kind: str, count: int = 4) -> list[dict[str, Any]]:
    """Samples whose neighbours are alike."""
    found = []
    for seed in range(count):
        x = normal(16, *KINDS[kind][1], seed=seed + 10)
        found.append({"x": x + np.roll(x, 1, -1) + x.mean(axis=1, keepdims=True)})
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_pruned_models_make_up_for_channels(kind: str) -> None:
    case = Case(net(kind), batches(kind))
    read = {r.layer: r.columns.shape for unit in case.units for r in unit.reads}
    assert "c" in read
    left = [unit.levels[len(unit.levels) // 2] for unit in case.units]
    assert all(n < unit.size for n, unit in zip(left, case.units, strict=True))
    fitted, raw, fits = check(case, left)
    assert [(fit.name, fit.reason) for fit in fits] == [("c", None), ("y", None)]
    assert fitted < 0.8 * raw


@pytest.mark.parametrize("kind", KINDS)
def test_fitting_makes_up_for_a_changed_layer_before_it(kind: str) -> None:
    original, data = net(kind), batches(kind)
    model = ir.clone(original)

    def change(problem: Any) -> Any:
        return problem.optimum.round(0) if problem.layer.name == "a" else problem.optimum

    fits = rebuild(original, model, data, change, wanted=lambda layer: layer.name == "a")
    assert [fit.name for fit in fits] == ["a", "c", "y"]
    raw = ir.clone(original)
    rebuild(original, raw, data, change, wanted=lambda layer: layer.name == "a",
            only=lambda layer: layer.name == "a")  # fmt: skip
    trial = Trial(original, data)
    assert trial.noise(model) < 0.8 * trial.noise(raw)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fitted", "plain"),
    [
        (
            "sparsify{min-weights=32 ratio=0.5 ranking=local skip=a,y}",
            "sparsify{min-weights=32 ratio=0.5 method=magnitude skip=a,y}",
        ),
        ("share-weights{entries=4 min-weights=32 skip=u,v}", None),
    ],
    ids=["sparsify", "share-weights"],
)
def test_zeros_and_shared_values_are_fitted(kind: str, fitted: str, plain: str | None) -> None:
    original, data = net(kind), batches(kind)
    trial = Trial(original, data)
    found = PassManager(fitted, data=data, on_mismatch="raise").run(original).model
    other = PassManager(plain or fitted, on_mismatch="raise", data=data if plain else None)
    assert trial.noise(found) < 0.8 * trial.noise(other.run(original).model)
    ir.verify(found)


def test_zeros_are_where_they_were_asked_for() -> None:
    text = "sparsify{code=false min-weights=32 ratio=0.5 ranking=local}"
    found = PassManager(text, data=batches("grouped")).run(net("grouped")).model
    (matrix,) = (layer.matrix() for layer in layers(found) if layer.name == "c")
    assert float((matrix == 0).mean()) == 0.5


def test_all_of_a_transposed_convolution_shares_a_book() -> None:
    """Codes have books for consecutive rows, which are not its outputs."""
    text = "share-weights{entries=4 blocks=2 code=false min-weights=32}"
    result = PassManager(text, data=batches("2d")).run(net("2d"))
    rows = result.report.passes[0].details["shared"]
    (row,) = (each for each in rows if each["constant"] == "w")
    assert row["block"] == 0
    (matrix,) = (layer.matrix() for layer in layers(result.model) if layer.name == "c")
    assert len(np.unique(matrix)) == 4
