from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from graphopt import ir
from graphopt.calibration import collect
from graphopt.calibration.gram import BatchRanges, Gram, Patches
from graphopt.errors import CalibrationError
from graphopt.runtime import open_session

Array = np.ndarray[Any, Any]


def batches(*shapes: tuple[int, ...], seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=s).astype(np.float32) for s in shapes]


def seen(observer: Any, data: list[Array]) -> Any:
    for array in data:
        observer.update(array)
    return observer


def test_rows_of_batches_of_any_length() -> None:
    data = batches((2, 5, 3), (1, 7, 3))
    rows = np.concatenate([a.reshape(-1, 3) for a in data]).astype(np.float64)
    gram = seen(Gram(), data)
    assert gram.count == 17
    np.testing.assert_allclose(gram.moments(), rows.T @ rows / 17, rtol=1e-5)
    np.testing.assert_allclose(gram.mean[0], rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(gram.squares[0], (rows**2).sum(0), rtol=1e-5)
    np.testing.assert_array_equal(gram.peak[0], np.abs(rows).max(0))
    peaks = gram.moments(peaks=0.5) - gram.moments()
    np.testing.assert_allclose(peaks, np.diag(0.5 * gram.peak[0] ** 2), atol=1e-12)


def test_the_axis_that_is_summed_over() -> None:
    (array,) = batches((4, 6))
    np.testing.assert_allclose(
        seen(Gram(axis=0), [array]).products, seen(Gram(), [array.T.copy()]).products
    )


@pytest.mark.parametrize(
    ("kernel", "strides", "pads", "dilations", "groups", "shape"),
    [
        ((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, (2, 4, 6, 5)),
        ((3, 2), (2, 1), (0, 1, 1, 0), (1, 2), 2, (1, 4, 7, 6)),
        ((2, 2), (1, 1), (0, 0, 0, 0), (1, 1), 4, (1, 4, 5, 5)),
        ((3,), (2,), (1, 0), (2,), 1, (2, 2, 9)),
    ],
)
def test_patches_are_what_a_convolution_multiplies(
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    groups: int,
    shape: tuple[int, ...],
) -> None:
    (x,) = batches(shape)
    patches = Patches(kernel, strides, pads, dilations, groups)
    assert Patches.parse(patches.text) == patches
    cut = patches.cut(x, 10**6)
    w = batches((2 * groups, shape[1] // groups, *kernel), seed=1)[0]
    lists = ", ".join(
        f"{k}=[{','.join(map(str, v))}]"
        for k, v in (("strides", strides), ("pads", pads), ("dilations", dilations))
    )
    model = ir.parse_text(
        f"""<ir_version: 8, opset_import: ["": 17]>
        g (float{list(shape)} x, float{list(w.shape)} w) => (float y)
        {{ y = Conv<group={groups}, {lists}>(x, w) }}"""
    )
    with open_session(model, optimize=False) as session:
        want = np.moveaxis(session.run({"x": x, "w": w})["y"], 1, -1)
    flat = w.reshape(groups, 2, -1)
    got = np.einsum("rgc,goc->rgo", cut, flat).reshape(want.shape)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_groups_have_matrices_of_their_own() -> None:
    (x,) = batches((3, 4, 2, 2))
    gram = seen(Gram(patches=Patches((1, 1), groups=2)), [x])
    assert gram.products.shape == (2, 2, 2)
    rows = np.moveaxis(x, 1, -1).reshape(-1, 4)
    np.testing.assert_allclose(gram.products[1], rows[:, 2:].T @ rows[:, 2:], rtol=1e-5)


def test_rows_are_bounded_and_spread() -> None:
    x = np.eye(4, dtype=np.float32)[np.arange(100) // 25]
    gram = seen(Gram(rows=4), [x])
    assert gram.count == 4
    assert gram.sum[0].tolist() == [1, 1, 1, 1]  # one of each quarter
    image = np.arange(64, dtype=np.float32).reshape(1, 1, 8, 8)
    assert seen(Gram(patches=Patches((1, 1)), rows=5), [image]).count == 5


def test_wide_inputs_keep_squares_only() -> None:
    gram = seen(Gram(limit=3), batches((5, 4), (2, 4)))
    assert gram.products.size == 0
    assert gram.moments() is None
    assert gram.squares.shape == (1, 4)


@pytest.mark.parametrize("make", [Gram, BatchRanges])
def test_merging_is_observing_on(make: Any) -> None:
    data = batches((3, 4), (2, 4), (6, 4))
    whole = seen(make(), data)
    first, second = seen(make(), data[:1]), seen(make(), data[1:])
    first.merge(pickle.loads(pickle.dumps(second)))
    first.merge(make())
    for name, value in vars(whole).items():
        np.testing.assert_allclose(getattr(first, name), value) if isinstance(
            value, np.ndarray
        ) else None
    empty = make()
    empty.merge(first)
    before = {k: np.copy(v) for k, v in vars(first).items() if isinstance(v, np.ndarray)}
    empty.update(data[0])
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(first, name), value)


def test_ranges_of_the_first_batches() -> None:
    data = batches((2, 3, 4), (1, 5, 4), (1, 2, 4))
    ranges = seen(BatchRanges(keep=2), data)
    np.testing.assert_array_equal(ranges.min, [a.reshape(-1, 4).min(0) for a in data[:2]])
    np.testing.assert_array_equal(ranges.max, [a.reshape(-1, 4).max(0) for a in data[:2]])
    by_channel = seen(BatchRanges(axis=1), [data[0]])
    np.testing.assert_array_equal(by_channel.max[0], data[0].max(axis=(0, 2)))


@pytest.mark.parametrize(
    ("observer", "arrays", "message"),
    [
        (Gram(), [(2, 3), (2, 4)], "has [1, 4] groups and columns, it had [1, 3] before"),
        (Gram(axis=2), [(2, 3)], "has no axis 2"),
        (Gram(patches=Patches((3, 3))), [(1, 2, 5)], "which a kernel [3, 3] in 1 groups"),
        (Gram(patches=Patches((1,), groups=2)), [(1, 3, 5)], "in 2 groups does not fit"),
        (Gram(patches=Patches((3,))), [(1, 2, 2)], "smaller than the kernel"),
        (BatchRanges(), [(2, 3), (2, 4)], "has 4 channels, it had 3 before"),
        (BatchRanges(axis=3), [(2, 3)], "has no axis 3"),
    ],
)
def test_shapes_that_do_not_fit(observer: Any, arrays: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(CalibrationError) as e:
        seen(observer, batches(*arrays))
    assert message in str(e.value)


@pytest.mark.parametrize("make", [Gram, BatchRanges])
def test_numbers_that_are_none(make: Any) -> None:
    with pytest.raises(CalibrationError, match="NaN"):
        make().update(np.array([[np.nan]], np.float32))
    empty = make()
    empty.update(np.empty((0, 3), np.float32))
    assert getattr(empty, "count", 0) == 0


def test_configurations_are_checked() -> None:
    for wrong in (lambda: Gram(rows=0), lambda: Gram(limit=-1), lambda: BatchRanges(keep=0)):
        with pytest.raises(CalibrationError, match="not"):
            wrong()
    with pytest.raises(CalibrationError, match="same configuration"):
        Gram().merge(Gram(axis=0))
    with pytest.raises(CalibrationError, match="same configuration"):
        BatchRanges().merge(BatchRanges(keep=3))


def test_collected_and_cached(tmp_path: Any) -> None:
    model = ir.parse_text(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N,2,4,4] x) => (float[N,2,4,4] y) { h = Relu(x) y = Neg(h) }"""
    )
    data = [{"x": a} for a in batches((2, 2, 4, 4), (1, 2, 4, 4))]
    watch = {"h": [Gram(patches=Patches((3, 3), pads=(1, 1, 1, 1))), BatchRanges(axis=1)]}
    first, again = (collect(model, watch, data, cache=tmp_path)["h"] for _ in range(2))
    assert len(list(tmp_path.iterdir())) == 1
    for a, b in zip(first, again, strict=True):
        assert vars(a).keys() == vars(b).keys()
        for name in vars(a):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_patches_of_an_image_come_from_all_its_columns() -> None:
    """Equal steps through 8 images of 32 x 32 would see the first column alone."""
    x = np.zeros((8, 1, 32, 32), np.float32)
    x[:, :, :, 16:] = 1
    gram = Gram(patches=Patches(kernel=(1, 1)), rows=256)
    gram.update(x)
    assert gram.count == 256
    assert 0.4 < gram.mean.item() < 0.6


def test_products_beyond_float32() -> None:
    for data in ([np.full((2, 2), 1e30, np.float32)] * 2, [np.eye(2, dtype=np.float32) * 1e30]):
        gram = seen(Gram(), data)
        gram.merge(seen(Gram(), batches((3, 2))))
        assert gram.moments() is None
        assert np.isfinite(gram.mean).all()
