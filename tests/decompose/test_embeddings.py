"""Embedding tables as products."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from reconstruct.single import Array, constant, normal

from graphopt import ir
from graphopt.decompose.embeddings import Embeddings, LowTable, count_reads, tables
from graphopt.decompose.forms import Form
from graphopt.decompose.product import Metric
from graphopt.measure import Trial
from graphopt.pruning.sizes import totals
from graphopt.runtime import open_session

ROWS, COLUMNS = 40, 12


def table(rank: int = COLUMNS, seed: int = 0) -> Array:
    """Rows in a space of few dimensions, and some noise."""
    rows = normal(ROWS, rank, seed=seed) @ normal(rank, COLUMNS, seed=seed + 1)
    return np.asarray(rows + 0.05 * normal(ROWS, COLUMNS, seed=seed + 2), np.float32)


def network(body: str, ids: str = "N,5", opset: int = 17, **constants: Any) -> ir.Model:
    """A model that reads indices and computes y."""
    known = ", ".join(constant(name, data) for name, data in constants.items())
    model = ir.parse_text(f"""
    <ir_version: 8, opset_import: ["": {opset}]>
    m (int64[{ids}] ids) => (float y) <{known}> {{ {body} }}
    """)
    ir.infer_shapes(model)
    return model


BODY = "e = Gather(t, ids) a = MatMul(e, w) y = Relu(a)"


def net(rank: int = COLUMNS) -> ir.Model:
    return network(BODY, t=table(rank), w=normal(COLUMNS, 4, seed=9))


def batches(count: int = 8, low: int = 0, high: int = ROWS) -> list[dict[str, Any]]:
    """Samples that read the first rows most."""
    rng = np.random.default_rng(0)
    draw = (rng.geometric(0.15, size=(count, 6, 5)) - 1) % (high - low) + low
    return [{"ids": ids.astype(np.int64)} for ids in draw]


def run(model: ir.Model, feeds: dict[str, Any]) -> Array:
    with open_session(model) as session:
        return np.asarray(session.run(feeds)["y"])


def test_what_is_a_table() -> None:
    (found,) = tables(net())
    assert (found.name, found.shape, found.indices.name) == ("e", (ROWS, COLUMNS), "ids")
    np.testing.assert_array_equal(found.data, table())
    assert found.why_fixed() is None


@pytest.mark.parametrize(
    "body",
    [
        "y = Gather<axis = 1>(t, ids)",
        "k = Constant<value_ints = [1, 2]>() y = Gather(t, k)",
        "r = Relu(t) y = Gather(r, ids)",
        "y = Gather(v, ids)",
        "y = Gather(b, ids)",
    ],
)
def test_what_is_none(body: str) -> None:
    model = network(body, t=table(), v=normal(6), b=normal(3, 4, 2))
    assert not list(tables(model))


def test_axis_from_the_end() -> None:
    assert len(list(tables(network("y = Gather<axis = -2>(t, ids)", t=table())))) == 1


@pytest.mark.parametrize(
    "body",
    [
        "e = Gather(t, ids) k = Transpose(t) y = MatMul(e, k)",  # tied to the last layer
        "e = Gather(t, ids) f = Gather(t, ids) y = Sub(e, f)",
    ],
)
def test_tied_tables_stay(body: str) -> None:
    model = network(body, t=table())
    found = Embeddings(model, batches())
    assert found.parts == []
    assert set(found.reasons.values()) == {"its rows are used elsewhere, too"}


def test_reasons() -> None:
    body = "e = Gather(t, ids) f = Gather(u, ids) g = Concat<axis = -1>(e, f) y = Relu(g)"
    model = network(body, t=table(), u=normal(ROWS, 1))
    found = Embeddings(model, batches(), skip=["e"])
    assert found.parts == []
    assert found.reasons == {"e": "skip names it", "f": "no form of it is smaller"}


def test_rows_are_counted() -> None:
    body = "e = Gather(t, ids) k = Add(ids, i) f = Gather(u, k) g = Add(e, f) y = Relu(g)"
    head = f"int64 i = {{-3}}, {constant('t', table())}, {constant('u', table(seed=5))}"
    model = ir.parse_text(f"""
    <ir_version: 8, opset_import: ["": 17]>
    m (int64[N,2] ids) => (float y) <{head}> {{ {body} }}
    """)
    ir.infer_shapes(model)
    found = list(tables(model))
    data = [{"ids": np.array([[0, 1], [1, 39]])}, {"ids": np.array([[1, -1]])}]
    counts = count_reads(model, found, data)
    assert {i: n for i, n in enumerate(counts["e"]) if n} == {0: 1, 1: 3, 39: 2}
    assert {i: n for i, n in enumerate(counts["f"]) if n} == {37: 1, 38: 3, 36: 2}
    assert count_reads(model, found, [])["e"].sum() == 0


@pytest.mark.parametrize("rank", [1, 4, 11])
def test_no_product_is_closer(rank: int) -> None:
    reads = np.random.default_rng(0).integers(0, 9, ROWS).astype(float)
    data = table()
    left, right = LowTable(data, reads).factors(rank)
    assert (left.shape, right.shape) == ((ROWS, rank), (rank, COLUMNS))
    metric = Metric(np.diag(reads + 1), data.astype(np.float64), bias=False)
    scaled = data * np.sqrt(reads + 1)[:, None]
    lost = float((np.linalg.svd(scaled, compute_uv=False)[rank:] ** 2).sum())
    assert metric.error(left @ right) == pytest.approx(lost, rel=1e-4)


def test_errors_are_what_is_lost_of_rows_read() -> None:
    reads = np.zeros(ROWS)
    reads[:7] = np.arange(1, 8)
    data = table()
    low = LowTable(data, reads)
    assert low.errors[0] == 1
    assert low.errors[COLUMNS] == 0
    assert (np.diff(low.errors) <= 0).all()
    for rank in (2, 8):
        left, right = low.factors(rank)
        lost = (reads * np.square(left @ right - data).sum(axis=1)).sum()
        energy = (reads * np.square(data).sum(axis=1)).sum()
        assert low.errors[rank] == pytest.approx(lost / energy, rel=1e-3)
    assert low.errors[5] < LowTable(data, np.zeros(ROWS)).errors[5]


@pytest.mark.parametrize("ids", ["N,5", "N,M", "K", ""])
@pytest.mark.parametrize("whole", [True, False])
def test_what_is_written_computes_the_product(ids: str, whole: bool) -> None:
    body = "e = Gather(t, ids) y = Relu(e)"
    model = network(body, ids, t=table())
    shape = {"N,5": (2, 5), "N,M": (2, 3), "K": (4,), "": ()}[ids]
    feeds = {"ids": np.random.default_rng(0).integers(-ROWS, ROWS, shape)}
    found = Embeddings(model, [feeds])
    made = found.applied(model, {"e": Form("output", (5,)), "y": Form("output", (2,))}, whole=whole)
    ir.verify(made)
    left, right = LowTable(table(), count_reads(model, list(tables(model)), [feeds])["e"]).factors(
        5
    )
    expected = np.maximum((left @ right)[feeds["ids"]], 0)
    np.testing.assert_allclose(run(made, feeds), expected, rtol=1e-4, atol=1e-5)
    assert [n.op_type for n in made.graph] == (
        ["Gather", "Relu"] if whole else ["Gather", "MatMul", "Relu"]
    )
    assert ir.dims(made.graph.outputs[0]) == ir.dims(model.graph.outputs[0])
    sizes = {ir.static_shape(v) for v in made.graph.initializers.values()}
    assert sizes == ({(ROWS, COLUMNS)} if whole else {(ROWS, 5), (5, COLUMNS)})
    assert ir.dump(model).count("MatMul") == 0, "the model given was changed"


def test_parts_say_what_is_saved() -> None:
    model = net()
    (part,) = Embeddings(model, batches()).parts
    assert (part.name, part.forms[0]) == ("e", None)
    ranks = [form.ranks[0] for form in part.forms[1:] if form is not None]
    assert ranks == sorted(ranks, reverse=True)
    before = totals(model)
    found = Embeddings(model, batches())
    for i, form in enumerate(part.forms):
        made = model if form is None else found.applied(model, {"e": form})
        for what, after in totals(made).items():
            if what != "macs":
                assert part.saved[what][i] == before[what] - after
    assert part.saved["params"][1] > 0
    assert part.saved["macs"].tolist() == [0, *(-5.0 * COLUMNS * r for r in ranks)]
    assert part.errors[0] == part.noise[0] == 0
    assert (np.diff(part.errors[1:]) > 0).all()
    assert not part.faster.any()


def test_noise_is_about_what_samples_that_nothing_was_fitted_to_show() -> None:
    model, data = net(4), batches(16)
    found = Embeddings(model, data[:12])
    (part,) = found.parts
    trial = Trial(model, data[12:])
    for i, form in enumerate(part.forms[1:], 1):
        assert form is not None
        assert trial.noise(found.applied(model, {"e": form})) == pytest.approx(
            float(part.noise[i]), rel=1.0, abs=1e-4
        )


def test_rows_that_are_read_count_more_than_others() -> None:
    model = net()
    often, seldom = batches(8, 0, 12), batches(8, 12, ROWS)
    form = Form("output", (6,))
    trial = Trial(model, often)
    noise = {
        name: trial.noise(Embeddings(model, data).applied(model, {"e": form}))
        for name, data in (("often", often), ("seldom", seldom))
    }
    assert noise["often"] < 0.5 * noise["seldom"]


def test_a_table_of_few_dimensions_loses_little() -> None:
    model = net(4)
    found = Embeddings(model, batches())
    (part,) = found.parts
    errors = {f.ranks[0]: e for f, e in zip(part.forms, part.errors, strict=True) if f}
    assert errors[4] < 0.01
    assert errors[2] > 0.1


def test_rows_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = np.arange(ROWS, dtype=float)
    once = LowTable(table(), reads)
    monkeypatch.setattr("graphopt.decompose.embeddings._ROWS", 7)
    np.testing.assert_allclose(LowTable(table(), reads).errors, once.errors, atol=1e-12)
