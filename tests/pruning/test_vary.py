"""Samples with other rows of embedding tables: what stays, and where none are made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt import ir
from graphopt.pruning.vary import tables, varied


def model(rows: int = 1000, index: str = "int64[n,l]", axis: int = 0) -> ir.Model:
    text = (
        '<ir_version: 8, opset_import: ["": 17]>\n'
        f"g ({index} ids, int64[n,l] kinds) => (float[n,l,4] y) <float[1] t = {{0}}, "
        f"float[1] k = {{0}}> {{ a = Gather<axis={axis}>(t, ids) b = Gather(k, kinds) "
        "y = Add(a, b) }"
    )
    found = ir.parse_text(text)
    for name, count in (("t", rows), ("k", 2)):
        value = found.graph.initializers[name]
        table = np.arange(count * 4, dtype=np.float32).reshape(count, 4)
        value.const_value = ir.Tensor(table, name=name)
        value.shape = ir.Shape(table.shape)
    ir.infer_shapes(found)
    return found


def sentences(count: int = 6) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    out = []
    for i in range(count):
        ids = rng.integers(10, 1000, (1, 8 + i))
        ids[0, 0], ids[0, -1] = 1, 2
        out.append({"ids": ids, "kinds": np.zeros_like(ids)})
    return out


def test_half_of_the_ids_are_others() -> None:
    given = sentences()
    found = varied(model(), given)
    assert len(found) == 5 * len(given)
    assert all(one is other for one, other in zip(given, found, strict=False))
    changed = []
    for i, feeds in enumerate(found[len(given) :]):
        source = given[i % len(given)]
        assert feeds["ids"].shape == source["ids"].shape
        assert feeds["ids"].dtype == source["ids"].dtype
        assert feeds["ids"].min() >= 0
        assert feeds["ids"].max() < 1000
        assert feeds["kinds"] is source["kinds"]  # a table of two rows
        changed.append((feeds["ids"] != source["ids"])[0])
        # What all sentences begin and end with stays.
        assert feeds["ids"][0, 0] == 1
        assert feeds["ids"][0, -1] == 2
    inner = np.concatenate([c[1:-1] for c in changed])
    assert 0.3 < inner.mean() < 0.7


def test_the_same_every_time() -> None:
    one, other = varied(model(), sentences()), varied(model(), sentences())
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a["ids"], b["ids"])


@pytest.mark.parametrize("where", [model(rows=255), model(index="int64[n,l]", axis=1)])
def test_no_large_table(where: ir.Model) -> None:
    assert tables(where) == {}
    given = sentences()
    assert varied(where, given) == given


def test_nothing_given() -> None:
    assert tables(model()) == {"ids": 1000}
    assert varied(model(), []) == []
