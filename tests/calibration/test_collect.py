"""Collecting: the right values, the same results wherever it runs, clear errors, bounded memory."""

from __future__ import annotations

import concurrent.futures
import itertools
import multiprocessing
import signal
import sys
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from graphopt import ir
from graphopt.calibration import (
    ChannelStats,
    Histogram,
    MinMax,
    MovingAverage,
    Observer,
    collect,
    from_batches,
    open_executor,
    worker,
)
from graphopt.calibration.cache import data_digest
from graphopt.calibration.executors import Processes
from graphopt.calibration.watched import model_digest, putting_out
from graphopt.errors import CalibrationError, ConfigError, ExportError

module = sys.modules[collect.__module__]  # the package has the function under its name

HEADER = '<ir_version: 10, opset_import: ["": 21]>\n'
NET = (
    HEADER
    + """
g (float[N, 3] x, bool flag) => (float[N, 2] y)
<float[3, 4] w = {1, -2, 3, -4, 5, -6, 7, -8, 9, -1, 2, -3},
 float[4, 2] v = {1, 2, 3, 4, 5, 6, 7, 8}>
{
  a = MatMul (x, w)
  b = Relu (a)
  c = If (flag) <
    then_branch = t () => (float[N, 4] p) { p = Neg (b) },
    else_branch = e () => (float[N, 4] q) { inner = Abs (b) q = Neg (inner) }
  >
  y = MatMul (b, v)
  unused = Exp (y)
}
"""
)
SEQUENCES = (
    HEADER
    + """
g (float[N, L, 4] x) => (float[N, L, 4] y)
{
  t = Transpose <perm = [0, 2, 1]> (x)
  s = MatMul (x, t)
  p = Softmax (s)
  y = MatMul (p, x)
}
"""
)


def net() -> ir.Model:
    return ir.parse_text(NET)


def samples(count: int = 20, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    flag = np.array(True)
    return [
        {"x": rng.normal(size=(rng.integers(1, 6), 3)).astype(np.float32), "flag": flag}
        for _ in range(count)
    ]


def watch(*names: str) -> dict[str, list[Observer]]:
    return {n: [Histogram(), MovingAverage(0.1), ChannelStats(-1)] for n in names}


def digest(found: Mapping[str, list[Observer]]) -> list[Any]:
    """All that observers remember, bit for bit."""
    return [
        (name, type(o).__name__, key, v.tobytes() if isinstance(v, np.ndarray) else repr(v))
        for name, observers in found.items()
        for o in observers
        for key, v in vars(o).items()
    ]


def test_values_are_those_of_the_model() -> None:
    data = samples(5)
    found = collect(net(), watch("x", "w", "a", "b", "c", "y"), data)
    x = np.concatenate([d["x"] for d in data])
    weights = {v.name: v.const_value.numpy() for v in net().graph.initializers.values()}
    a = np.concatenate([d["x"] @ weights["w"] for d in data])
    b = np.maximum(a, 0)
    values = {"x": x, "w": weights["w"], "a": a, "b": b, "c": -b, "y": b @ weights["v"]}
    assert list(found) == list(values)
    for name, value in values.items():
        histogram, average, stats = found[name]
        assert isinstance(histogram, Histogram)
        assert isinstance(average, MovingAverage)
        assert isinstance(stats, ChannelStats)
        assert histogram.count == average.count == value.size
        assert_allclose([histogram.min, histogram.max], [value.min(), value.max()], rtol=1e-6)
        assert_allclose(stats.mean, value.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_observers_and_model_are_left_alone() -> None:
    model, observer = net(), Histogram()
    before = ir.to_bytes(model)
    found = collect(model, {"a": observer, "x": observer}, samples(3))
    assert observer.count == 0
    assert len({id(o) for each in found.values() for o in each} | {id(observer)}) == 3
    assert ir.to_bytes(model) == before


def test_only_what_is_needed_is_computed() -> None:
    part = putting_out(net(), ["b"])
    assert [n.op_type for n in part.graph] == ["MatMul", "Relu"]
    assert list(part.graph.initializers) == ["w"]
    assert [v.name for v in part.graph.inputs] == ["x", "flag"]
    kept = putting_out(net(), ["c"])
    assert [n.op_type for n in kept.graph] == ["MatMul", "Relu", "If"]


def test_inputs_alone_need_no_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "open_observed", None)
    found = collect(net(), {"x": MinMax(), "v": MinMax()}, samples(3))
    assert [o.count for (o,) in found.values()] == [sum(d["x"].size for d in samples(3)), 8]


def test_an_initializer_that_is_an_input_is_seen_as_it_is() -> None:
    text = HEADER + "g (float[N] x, float[1] k) => (float[N] y) <float[1] k = {3}> {y = Mul(x, k)}"
    model = ir.parse_text(text)
    found = collect(model, {"k": MinMax(), "y": MinMax()}, [{"x": np.ones(2, np.float32)}])
    assert [(o.min, o.max) for (o,) in found.values()] == [(3, 3), (3, 3)]


def test_shapes_may_vary() -> None:
    rng = np.random.default_rng(0)
    data = [{"x": rng.normal(size=(1, n, 4)).astype(np.float32)} for n in (3, 9, 1, 5)]
    found = collect(ir.parse_text(SEQUENCES), {"s": Histogram(), "p": ChannelStats(0)}, data)
    assert [o.count for (o,) in found.values()] == [9 + 81 + 1 + 25] * 2


@pytest.fixture(scope="module")
def reference() -> list[Any]:
    with open_executor("serial") as executor:
        return digest(collect(net(), watch("x", "a", "y"), samples(60), executor=executor))


@pytest.mark.parametrize("spec", ["threads:1", "threads:3", "processes:2"])
def test_results_do_not_depend_on_the_executor(spec: str, reference: list[Any]) -> None:
    with open_executor(spec) as executor:
        found = collect(net(), watch("x", "a", "y"), samples(60), executor=executor)
    assert digest(found) == reference


def test_default_executor(reference: list[Any]) -> None:
    assert digest(collect(net(), watch("x", "a", "y"), samples(60))) == reference


class Disorderly(concurrent.futures.Executor):
    """Runs tasks late, out of order and twice, and now and then loses the model."""

    def __init__(self) -> None:
        self.waiting: list[tuple[concurrent.futures.Future[Any], Any]] = []
        self.lost = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self.waiting.append((future, lambda: fn(*args, **kwargs)))
        if len(self.waiting) > 2 or self.lost:
            self.drain()
        return future

    def drain(self) -> None:
        for future, run in reversed(self.waiting):
            run()
            future.set_result(run())
        self.waiting = []


def test_results_do_not_depend_on_order_and_repetition(
    reference: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "workers", lambda executor: 2)
    executor = Disorderly()
    original = executor.submit

    def flush(fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        future = original(fn, *args, **kwargs)
        if len(args[0].batches) < 8:  # the last one
            executor.drain()
        return future

    monkeypatch.setattr(executor, "submit", flush)
    found = collect(net(), watch("x", "a", "y"), samples(60), executor=executor)
    assert digest(found) == reference


def test_workers_without_the_file_are_sent_the_model(
    reference: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bool] = []

    class Remote(concurrent.futures.Executor):
        def submit(self, fn: Any, task: worker.Task) -> Any:  # type: ignore[override]
            future: concurrent.futures.Future[Any] = concurrent.futures.Future()
            sent.append(task.model is not None)
            plan = task.plan
            hidden = worker.Plan(
                plan.key + "remote", Path("nowhere.onnx"), plan.inputs, plan.outputs, plan.sizes,
                plan.budget,
            )  # fmt: skip
            future.set_result(fn(worker.Task(hidden, task.batches, task.model)))
            return future

    monkeypatch.setattr(module, "workers", lambda executor: 0)
    found = collect(net(), watch("x", "a", "y"), samples(60), executor=Remote())
    assert digest(found) == reference
    assert sent.count(True) == 1  # afterwards it has the model


def test_a_window_of_tasks_is_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    read, done = 0, 0

    class Counted(concurrent.futures.Executor):
        def submit(self, fn: Any, task: worker.Task) -> Any:  # type: ignore[override]
            nonlocal done
            future: concurrent.futures.Future[Any] = concurrent.futures.Future()
            assert read - done <= 4 * 8 + 1
            future.set_result(fn(task))
            done += len(task.batches)
            return future

    def batches() -> Iterator[tuple[str, dict[str, Any]]]:
        nonlocal read
        for i in range(300):
            read += 1
            yield f"{i}", {"x": np.full((1, 3), i, np.float32), "flag": np.array(True)}

    data = from_batches(samples(1), net())
    monkeypatch.setattr(data, "_batches", batches)
    monkeypatch.setattr(module, "workers", lambda executor: 3)
    (found,) = collect(net(), {"x": MinMax()}, data, executor=Counted())["x"]
    assert found.count == 900
    assert done == 300


def test_memory_does_not_depend_on_the_number_of_samples() -> None:
    class Many:
        def __init__(self, count: int) -> None:
            self.count = count

        def __len__(self) -> int:
            return self.count

        def __iter__(self) -> Iterator[dict[str, Any]]:
            rng = np.random.default_rng(0)
            for _ in range(self.count):
                x = rng.normal(size=(20_000, 3)).astype(np.float32)
                yield {"x": x, "flag": np.array(True)}

    peaks = []
    for count in (40, 200):
        tracemalloc.start()
        with open_executor("serial") as executor:
            collect(net(), watch("a", "b"), from_batches(Many(count), net()), executor=executor)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_outputs_beyond_the_budget_come_in_several_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[list[str]] = []
    run = worker.Session.run

    def recorded(self: Any, feeds: Any, *, outputs: Any = None, timeout: Any = None) -> Any:
        wanted.append(list(outputs))
        return run(self, feeds, outputs=outputs, timeout=timeout)

    monkeypatch.setattr(worker.Session, "run", recorded)
    monkeypatch.setattr(module, "_BUDGET", 200 * 4 * 4 + 200 * 2 * 4)
    data = [{"x": np.ones((200, 3), np.float32), "flag": np.array(True)}] * 3
    found = collect(net(), {n: MinMax() for n in ("a", "b", "y")}, data)
    assert wanted == [["a"], ["b", "y"]] * 3
    assert [o.count for (o,) in found.values()] == [2400, 2400, 1200]


def test_limit() -> None:
    data = samples(20)
    found = collect(net(), {"x": MinMax()}, data, limit=3)
    assert found["x"][0].count == sum(d["x"].size for d in data[:3])
    with pytest.raises(CalibrationError, match="a limit of 0 batches"):
        collect(net(), {"x": MinMax()}, data, limit=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("inner", "%inner is inside of a subgraph"),
        ("zz", "the model has no value %zz$"),
        ("unusd", r"no value %unusd; did you mean %unused\?"),
    ],
)
def test_values_that_are_not_there(name: str, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        collect(net(), {name: MinMax()}, samples(1))


def test_an_overflow_names_value_and_sample() -> None:
    data = samples(12)
    data[10]["x"][0, 0] = 3e38
    for spec in ("serial", "threads:2", "processes:1"):
        with (
            open_executor(spec) as executor,
            pytest.raises(CalibrationError, match=r"^data, batch 10: %a holds -?inf$"),
        ):
            collect(net(), {"a": Histogram()}, data, executor=executor)


def test_a_nan_in_the_data_names_the_sample() -> None:
    data = samples(12)
    data[7]["x"][0, 1] = np.nan
    with pytest.raises(CalibrationError, match=r"data, batch 7: input 'x' is nan at \[0, 1\]"):
        collect(net(), {"a": Histogram()}, data)


def test_a_batch_that_does_not_run_is_named() -> None:
    text = HEADER + "g (float[N] x, float[M] z) => (float[K] y) {y = Add(x, z)}"
    data = [{"x": np.ones(n, np.float32), "z": np.ones(3, np.float32)} for n in (3, 3, 2)]
    with pytest.raises(CalibrationError, match="data, batch 2: the model does not run on it: "):
        collect(ir.parse_text(text), {"y": MinMax()}, data)


def test_what_is_no_tensor_is_refused() -> None:
    body = "{s = SequenceConstruct(x) i = Constant<value_int=0>() y = SequenceAt(s, i)}"
    text = HEADER + "g (float[N] x) => (float[N] y) " + body
    with pytest.raises(CalibrationError, match="batch 0: %s is no tensor"):
        collect(ir.parse_text(text), {"s": MinMax()}, [{"x": np.ones(2, np.float32)}])


class Murderous:
    """Data that kill a worker process whenever they come to certain batches."""

    def __init__(self, pool: Any, batches: list[int]) -> None:
        self.pool, self.batches = pool, batches

    def __len__(self) -> int:
        return 60

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for i, batch in enumerate(samples(60)):
            if i in self.batches:
                pool = self.pool() if callable(self.pool) else self.pool
                for process in list(pool._processes.values())[:1]:
                    process.kill()
                    process.join()
            yield batch


def test_a_killed_process_changes_nothing(reference: list[Any]) -> None:
    with open_executor("processes:2") as executor:
        assert isinstance(executor, Processes)
        first = executor._pool
        data = from_batches(Murderous(lambda: executor._pool, [30]), net())
        found = collect(net(), watch("x", "a", "y"), data, executor=executor)
        assert executor._pool is not first
    assert digest(found) == reference


def test_processes_that_die_again_and_again_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_executor("processes:1") as executor:
        assert isinstance(executor, Processes)
        submit, started = executor.submit, []

        def killing(*args: Any) -> Any:
            future = submit(*args)
            for process in executor._pool._processes.values():
                started.append(process.pid)
                process.kill()
            return future

        monkeypatch.setattr(executor, "submit", killing)
        with pytest.raises(CalibrationError, match="a worker process ended while it was observing"):
            collect(net(), watch("x", "a", "y"), samples(60), executor=executor)
        assert len(set(started)) == 4


def test_a_pool_that_cannot_be_mended_is_an_error() -> None:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        data = from_batches(Murderous(pool, [20]), net())
        with pytest.raises(CalibrationError, match=r"ended while .*; use fewer workers"):
            collect(net(), watch("x", "a", "y"), data, executor=pool)


def test_an_executor_that_was_shut_down_is_an_error() -> None:
    with open_executor("threads:1") as executor:
        pass
    with pytest.raises(CalibrationError, match=r"the executor takes no tasks: .* after shutdown"):
        collect(net(), {"a": MinMax()}, samples(3), executor=executor)


@pytest.mark.slow
def test_dask(reference: list[Any]) -> None:
    pytest.importorskip("distributed")
    with open_executor("dask:local:2") as executor:
        found = collect(net(), watch("x", "a", "y"), samples(60), executor=executor)
        assert digest(found) == reference
        address = executor._client.scheduler.address  # type: ignore[attr-defined]
        with open_executor(f"dask:{address}") as other:
            again = collect(net(), watch("x", "a", "y"), samples(60), executor=other)
    assert digest(again) == reference


def test_an_address_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("graphopt.calibration.executors._PATIENCE", 0.3)
    for address in ("tcp://127.0.0.1:9", "nonsense://x"):
        with (
            pytest.raises(ConfigError, match=f"no Dask scheduler answers at {address}"),
            open_executor(f"dask:{address}"),
        ):
            pass


def test_dask_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(ConfigError, match=r"needs Dask: pip install 'graphopt\[dask\]'"),
        open_executor("dask:local:2"),
    ):
        pass


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "the executor '' is none of serial, threads:N,"),
        ("gpu:2", "is none of"),
        ("dask", "is none of"),
        ("dask:", "is none of"),
        ("threads", "'threads' lacks a number of workers"),
        ("threads:0", "lacks a number"),
        ("processes:many", "lacks a number"),
        ("dask:local:x", "lacks a number"),
    ],
)
def test_specifications_that_mean_nothing(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message), open_executor(spec):
        pass


# The cache.


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sessions opened."""
    opened: list[str] = []
    original = worker.open_observed

    def recorded(model: Any) -> Any:
        opened.append("opened")
        return original(model)

    monkeypatch.setattr(worker, "open_observed", recorded)
    return opened


def test_the_second_time_comes_from_the_cache(tmp_path: Path, runs: list[str]) -> None:
    folder = tmp_path / "new" / "cache"
    first = collect(net(), watch("x", "w", "a"), samples(20), cache=folder)
    again = collect(net(), watch("x", "w", "a"), samples(20), cache=folder)
    assert digest(again) == digest(first)
    assert len(runs) == 1
    assert [f.suffix for f in folder.iterdir()] == [".npz"]
    again["a"][0].merge(first["a"][0])  # what was read can be used like what was collected


def test_whatever_matters_is_part_of_the_key(tmp_path: Path, runs: list[str]) -> None:
    def gather(
        text: str = NET,
        observer: Observer | None = None,
        name: str = "a",
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        model = ir.parse_text(text)
        collect(
            model, {name: observer or MinMax()}, samples(9, seed), cache=tmp_path, limit=limit
        )  # fmt: skip

    gather()
    gather()
    assert len(runs) == 1
    for count, changed in enumerate(
        (
            {"text": NET.replace("{1, -2,", "{1.5, -2,")},
            {"text": NET.replace("Relu", "Abs")},
            {"observer": Histogram()},
            {"observer": MovingAverage(0.1)},
            {"observer": MovingAverage(0.2)},
            {"name": "b"},
            {"seed": 1},
            {"limit": 3},
        ),
        2,
    ):
        gather(**changed)  # type: ignore[arg-type]
        assert len(runs) == count, changed


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "other", "attributes"])
def test_a_damaged_file_is_replaced(tmp_path: Path, runs: list[str], damage: str) -> None:
    first = collect(net(), watch("a"), samples(9), cache=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    if damage == "other":
        np.savez(file, x=np.ones(3))
    elif damage == "attributes":
        np.savez(file, state=np.frombuffer(b'{"a": [{}, {}, {}]}', np.uint8))
    else:
        cut = whole[: len(whole) // 2]
        file.write_bytes({"empty": b"", "cut": cut, "noise": b"PK" + bytes(range(256))}[damage])
    data = from_batches(samples(9), net())
    again = collect(net(), watch("a"), data, cache=tmp_path)
    assert digest(again) == digest(first)
    assert len(runs) == 2
    assert data.remarks == [f"{file.name} in the calibration cache was damaged and is replaced"]
    collect(net(), watch("a"), samples(9), cache=tmp_path)
    assert len(runs) == 2
    assert len(list(tmp_path.iterdir())) == 1


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"the calibration cache .* cannot be written"):
        collect(net(), watch("a"), samples(2), cache=tmp_path / "file" / "cache")


class Listing(MinMax):
    """Has an attribute that no file can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = [1]


def test_observers_that_cannot_be_kept(tmp_path: Path) -> None:
    with pytest.raises(
        CalibrationError, match="%a cannot be kept in a cache: its attribute 'seen'"
    ):
        collect(net(), {"a": Listing()}, samples(2), cache=tmp_path)
    assert collect(net(), {"a": Listing()}, samples(2))["a"][0].count


def test_digests() -> None:
    model = net()
    assert model_digest(model) == model_digest(ir.clone(model)) == model_digest(net())
    data = from_batches(samples(4), model)
    assert data_digest(data) == data_digest(from_batches(samples(4), model))
    assert data_digest(data) != data_digest(from_batches(samples(4)[::-1], model))
    assert data_digest(data, 3) == data_digest(from_batches(samples(3), model))


@pytest.mark.slow
def test_a_sentence_encoder_with_sentences_of_any_length(shared_data: Path) -> None:
    model = ir.load(shared_data / "models" / "minilm_l6.onnx")
    archive = np.load(shared_data / "minilm_calib.npz")
    ids, offsets = archive["token_ids"], archive["offsets"]
    data = []
    for start, end in itertools.pairwise(offsets[:13]):
        row = ids[start:end].astype(np.int64)[None]
        data.append(dict(zip(
            ("input_ids", "attention_mask", "token_type_ids"),
            (row, np.ones_like(row), np.zeros_like(row)), strict=True,
        )))  # fmt: skip
    name = next(n.outputs[0].name for n in model.graph if n.op_type == "Softmax")
    found = collect(model, {name: Histogram()}, data)[name][0]
    assert isinstance(found, Histogram)
    assert 0 <= found.min <= found.max <= 1
    assert len({d["input_ids"].shape for d in data}) > 3


def test_workers_leave_interrupts_to_the_process_that_started_them() -> None:
    with Processes(1) as executor:
        assert executor.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN
