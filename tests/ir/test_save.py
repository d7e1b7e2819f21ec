"""Saving is atomic, keeps what is there until the new model is whole, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from graphopt import ExportError, GraphOptError, ir
from graphopt.ir import proto as proto_module
from graphopt.ir import save as _save  # the function; its module is behind it
from graphopt.runtime.session import open_session

save_module = sys.modules[_save.__module__]

Unprivileged = Callable[[], contextlib.AbstractContextManager[None]]
TEXT = """<ir_version: 8, opset_import: ["": 17]>
g (float[N,4] x) => (float[N,4] y) <float[4] w = {1,2,3,4}> { y = Add(x, w) }"""


@pytest.fixture
def model() -> ir.Model:
    return ir.parse_text(TEXT)


def other() -> ir.Model:
    return ir.parse_text(TEXT.replace("Add", "Mul"))


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_an_unchanged_model_is_written_as_it_was(model: ir.Model, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    assert ir.save(model, str(path)) == [path]
    assert path.read_bytes() == ir.to_proto(model).SerializeToString(deterministic=True)
    assert files(tmp_path) == ["m.onnx"]


def test_a_changed_model_runs(model: ir.Model, tmp_path: Path) -> None:
    model.graph[0].replace_input_with(1, model.graph.inputs[0])
    path = tmp_path / "m.onnx"
    ir.save(model, path)
    out = open_session(path).run({"x": np.ones((1, 4), np.float32)})
    assert out["y"].tolist() == [[2.0] * 4]


def test_in_place(model: ir.Model, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    ir.save(other(), path)
    ir.save(model, path)
    assert ir.dump(ir.load(path)) == ir.dump(model)
    assert files(tmp_path) == ["m.onnx"]


# Destinations -----------------------------------------------------------------------------------


def test_through_a_symbolic_link(model: ir.Model, tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link.onnx"
    real.mkdir()
    ir.save(other(), real / "m.onnx")
    link.symlink_to(real / "m.onnx")
    assert ir.save(model, link, external_data=False) == [real / "m.onnx"]
    assert link.is_symlink()
    assert ir.dump(ir.load(real / "m.onnx")) == ir.dump(model)


def test_through_a_link_to_nothing_yet(model: ir.Model, tmp_path: Path) -> None:
    (tmp_path / "link.onnx").symlink_to(tmp_path / "m.onnx")
    ir.save(model, tmp_path / "link.onnx")
    assert (tmp_path / "m.onnx").is_file()
    assert (tmp_path / "link.onnx").is_symlink()


def test_permissions_are_kept(model: ir.Model, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    ir.save(other(), path)
    path.chmod(0o640)
    ir.save(model, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_new_files_follow_the_umask(model: ir.Model, tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        ir.save(model, tmp_path / "m.onnx")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "m.onnx").stat().st_mode) == 0o640


def test_names_with_special_characters(model: ir.Model, tmp_path: Path) -> None:
    path = tmp_path / "a [b]*?.onnx"
    leftover = tmp_path / f".{path.name}.1.{_dead_process()}.graphopt-tmp"
    leftover.write_bytes(b"")
    for _ in range(3):
        ir.save(model, path, external_data=False)
    assert files(tmp_path) == [path.name]


def test_a_folder(model: ir.Model, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is a directory"):
        ir.save(model, tmp_path)


def test_a_folder_that_does_not_exist(model: ir.Model, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"m\.onnx cannot be written: No such file or directory"):
        ir.save(model, tmp_path / "none" / "m.onnx")


def test_what_is_no_regular_file(model: ir.Model, tmp_path: Path) -> None:
    """Replacing /dev/null by a file would be a surprise to the whole machine."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ExportError, match="pipe is not a regular file"):
        ir.save(model, tmp_path / "pipe")
    with pytest.raises(ExportError, match="/dev/null is not a regular file"):
        ir.save(model, "/dev/null")
    assert not Path("/dev/null").is_file()


def test_a_folder_that_may_not_be_written(
    model: ir.Model, shared_path: Path, unprivileged: Unprivileged
) -> None:
    path = shared_path / "m.onnx"
    ir.save(other(), path)
    before = path.read_bytes()
    shared_path.chmod(0o555)
    with (
        unprivileged(),
        pytest.raises(ExportError, match=r"m\.onnx cannot be written: Permission denied"),
    ):
        ir.save(model, path)
    shared_path.chmod(0)
    with (
        unprivileged(),
        pytest.raises(ExportError, match=r"m\.onnx cannot be written: Permission denied"),
    ):
        ir.save(model, path)
    shared_path.chmod(0o755)
    assert path.read_bytes() == before
    assert files(shared_path) == ["m.onnx"]


# Failures on the way ----------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("external", [True, False])
@pytest.mark.parametrize("nth", [1, 2])
def test_interrupted_at_the_end_of_writing(
    error: BaseException, external: bool, nth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    ir.save(big(0), path, external_data=external)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    count = 0
    real = os.fsync

    def fsync(fd: int) -> None:
        nonlocal count
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return real(fd)
        count += 1
        if count == (nth if external else 1):
            raise error
        return real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    expected = ExportError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        ir.save(big(1), path, external_data=external)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def big(seed: int, tensors: int = 3, size: int = 1 << 16) -> ir.Model:
    """A model of a few random weights, each of ``size`` float32."""
    rng = np.random.default_rng(seed)
    weights = [f"w{i}" for i in range(tensors)]
    lines = " ".join(f"t{i} = Add(x, {w})" for i, w in enumerate(weights))
    text = f'<ir_version: 8, opset_import: ["": 17]> g (float[{size}] x) => (float[{size}] y)'
    proto = parser.parse_model(
        f"{text} {{ {lines} y = Sum({', '.join(f't{i}' for i in range(tensors))}) }}"
    )
    for name in weights:
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(rng.normal(size=size).astype(np.float32), name)
        )
    return ir.load(proto)


FULL = """
import resource, sys
from pathlib import Path
from graphopt import ExportError, ir
folder = Path(sys.argv[1])
path = folder / "m.onnx"
old = path.read_bytes()
model = ir.load(folder / "large.onnx")
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
before = sorted(p.name for p in folder.iterdir())
for external in (False, True):
    try:
        ir.save(model, path, external_data=external)
    except ExportError as e:
        print(e)
    assert path.read_bytes() == old
    assert sorted(p.name for p in folder.iterdir()) == before
"""


def test_a_full_disk(tmp_path: Path) -> None:
    ir.save(big(0), tmp_path / "large.onnx", external_data=False)
    ir.save(other(), tmp_path / "m.onnx")
    done = run_python(FULL, tmp_path)
    assert done.splitlines() == [f"{tmp_path / 'm.onnx'} cannot be written: File too large"] * 2


def run_python(code: str, *args: object) -> str:
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, args)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


KILL = """
import os, random, signal, sys, time
from pathlib import Path
import onnx
from graphopt import ir
folder, external = Path(sys.argv[1]), sys.argv[2] == "True"
path = folder / "m.onnx"
models = [ir.load(folder / f"{i}.onnx") for i in (0, 1)]
read = lambda p: [onnx.numpy_helper.to_array(t).tobytes() for t in p.graph.initializer]
whole = [read(onnx.load(folder / f"{i}.onnx")) for i in (0, 1)]
ir.save(models[0], path, external_data=external)
random_ = random.Random(1)
for round_ in range(10):
    child = os.fork()
    if not child:
        while True:
            for model in models:
                ir.save(model, path, external_data=external)
    time.sleep(random_.uniform(0.005, 0.06))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = onnx.load(path)
    values = read(found)
    assert values in whole, "neither the old nor the new model"
ir.save(models[0], path, external_data=external)
print(sorted(p.name for p in folder.iterdir() if p.name.endswith("graphopt-tmp")))
print(sum(p.name.endswith(".data") for p in folder.iterdir()))
"""


@pytest.mark.parametrize("external", [False, True])
def test_killed_at_any_moment(external: bool, tmp_path: Path) -> None:
    for i in (0, 1):
        ir.save(big(i, tensors=8), tmp_path / f"{i}.onnx", external_data=False)
    leftovers, data_files = run_python(KILL, tmp_path, external).splitlines()
    assert leftovers == "[]"
    assert int(data_files) <= 2


def _dead_process() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_leftovers_of_dead_processes_only(model: ir.Model, tmp_path: Path) -> None:
    dead, alive = _dead_process(), os.getppid()
    for name in ("m.onnx", "m.onnx.data", "another.onnx"):
        for pid in (dead, alive):
            (tmp_path / f".{name}.7.{pid}.graphopt-tmp").write_bytes(b"half")
    (tmp_path / ".m.onnx.mine.graphopt-tmp").write_bytes(b"no process in it")
    ir.save(model, tmp_path / "m.onnx")
    assert files(tmp_path) == sorted([
        ".m.onnx.mine.graphopt-tmp",
        f".m.onnx.7.{alive}.graphopt-tmp",
        f".m.onnx.data.7.{alive}.graphopt-tmp",
        f".another.onnx.7.{alive}.graphopt-tmp",
        f".another.onnx.7.{dead}.graphopt-tmp",
        "m.onnx",
    ])  # fmt: skip


@pytest.mark.parametrize("external", [True, False])
def test_two_threads_save_to_one_path(external: bool, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    models = [big(0, tensors=2), big(1, tensors=3)]
    errors: list[BaseException] = []

    def work(model: ir.Model) -> None:
        for _ in range(10):
            try:
                ir.save(model, path, external_data=external)
            except BaseException as e:  # noqa: BLE001, PERF203 - reported below
                errors.append(e)

    threads = [threading.Thread(target=work, args=(m,)) for m in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # With external data one of two that pick the same name for it is told so.
    assert [str(e) for e in errors] == [f"{path} cannot be written: File exists"] * len(errors)
    assert external or not errors
    assert not [n for n in files(tmp_path) if n.endswith("graphopt-tmp")]
    assert weights(ir.load(path)) in [weights(m) for m in models]


def weights(model: ir.Model) -> list[bytes]:
    return [v.const_value.tobytes() for v in model.graph.initializers.values() if v.const_value]


def test_the_name_of_the_data_is_taken_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = tmp_path / "m.onnx", tmp_path / "m.onnx.data"
    real = save_module._write_tensors

    def write(*args: object) -> None:
        real(*args)
        data.write_bytes(b"of somebody else")

    monkeypatch.setattr(save_module, "_write_tensors", write)
    with pytest.raises(ExportError, match="cannot be written: File exists"):
        ir.save(big(0), path, external_data=True)
    assert files(tmp_path) == ["m.onnx.data"]
    assert data.read_bytes() == b"of somebody else"


def test_file_systems_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    path = tmp_path / "m.onnx"
    model = big(0)
    ir.save(model, path, external_data=True)
    assert weights(ir.load(path)) == weights(model)
    assert files(tmp_path) == ["m.onnx", "m.onnx.data"]


# Limits -----------------------------------------------------------------------------------------


def test_above_two_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = big(0)
    limit = 1 << 18
    monkeypatch.setattr(save_module, "PROTOBUF_LIMIT", limit + (1 << 24))
    path = tmp_path / "m.onnx"
    assert ir.save(large, path) == [path, tmp_path / "m.onnx.data"]
    assert ir.dump(ir.load(path)) == ir.dump(large)
    monkeypatch.setattr(save_module, "PROTOBUF_LIMIT", limit)
    with pytest.raises(
        ExportError, match=r"\d+ bytes do not fit into one file: save with external data"
    ):
        ir.save(large, path, external_data=False)
    monkeypatch.setattr(proto_module, "PROTOBUF_LIMIT", limit)
    with pytest.raises(GraphOptError, match=r"\d+ bytes do not fit into one protobuf"):
        ir.to_bytes(large)


def test_an_estimate_that_was_too_small(
    model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TooLarge:
        def SerializeToString(self, **_: object) -> bytes:  # noqa: N802 - protobuf's name
            raise ValueError("Message onnx.ModelProto exceeds maximum protobuf size of 2GB")

    monkeypatch.setattr(save_module, "verbatim", lambda _: None)
    monkeypatch.setattr(save_module, "to_proto", lambda *_, **__: TooLarge())
    with pytest.raises(ExportError, match="does not fit into one protobuf"):
        ir.save(model, tmp_path / "m.onnx")
    assert files(tmp_path) == []


def test_size_estimate(tmp_path: Path) -> None:
    for model in (big(0), ir.parse_text(TEXT)):
        path = tmp_path / "m.onnx"
        ir.save(model, path, external_data=False)
        actual = path.stat().st_size
        assert ir.source_bytes(model) == len(ir.to_bytes(model)) == actual
        assert abs(ir.nbytes(model) - actual) <= 200
