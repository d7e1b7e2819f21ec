"""Loading a model and writing it out of the IR again must not change what it is or computes."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt import ir
from graphopt.runtime.session import open_session

Feeds = Mapping[str, Any]
Check = Callable[..., ir.Model]


def _inline(value: ir.Value, proto: onnx.TensorProto) -> bool:
    return False


def written(model: ir.Model) -> onnx.ModelProto:
    """The model as the IR has it, not the protobuf it remembers."""
    return ir.to_proto(model, external=_inline)


def interface(proto: onnx.ModelProto) -> tuple[list[bytes], list[bytes]]:
    """Inputs and outputs as declared, in wire format."""
    # Below IR version 4 initializers had to be listed among the inputs.
    listed = {t.name for t in proto.graph.initializer} if proto.ir_version < 4 else set()
    return (
        [
            i.SerializeToString(deterministic=True)
            for i in proto.graph.input
            if i.name not in listed
        ],
        [o.SerializeToString(deterministic=True) for o in proto.graph.output],
    )


def assert_same(a: Any, b: Any) -> None:
    """Equal to the bit, type and shape included; sequences, maps and None too."""
    if isinstance(a, list):
        assert isinstance(b, list)
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, np.ndarray):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tolist() == b.tolist() if a.dtype == object else a.tobytes() == b.tobytes()
    else:
        assert a == b


@pytest.fixture
def roundtrip() -> Check:
    """Load a model; check it word for word, written anew, and run on every one of the feeds."""

    def check(proto: onnx.ModelProto, *feeds: Feeds) -> ir.Model:
        before = proto.SerializeToString(deterministic=True)
        model = ir.load(proto)
        assert ir.opaque(model) is None
        assert ir.to_proto(model).SerializeToString(deterministic=True) == before
        assert proto.SerializeToString(deterministic=True) == before, "the source was modified"
        ir.verify(model)
        anew = written(model)
        assert interface(anew) == interface(proto)
        again = written(ir.load(anew))
        assert again.SerializeToString(deterministic=True) == anew.SerializeToString(
            deterministic=True
        )
        one, two = open_session(proto), open_session(anew)
        for feed in feeds:
            expected, got = one.run(feed), two.run(feed)
            assert expected.keys() == got.keys()
            for name, value in expected.items():
                assert_same(value, got[name])
        return model

    return check


@pytest.fixture
def passes_through() -> Callable[[onnx.ModelProto, str], ir.Model]:
    """Load a model that the IR cannot hold; check that nothing of it is lost."""

    def check(proto: onnx.ModelProto, why: str) -> ir.Model:
        open_session(proto).close()  # a model that ONNX Runtime refuses proves nothing
        model = ir.load(proto)
        reason = ir.opaque(model)
        assert reason is not None
        assert why in reason
        assert ir.remarks(model) == [f"the model is carried through unchanged: {reason}"]
        for same in (model, ir.clone(model)):
            assert ir.to_bytes(same) == proto.SerializeToString(deterministic=True)
            ir.verify(same)
            ir.infer_shapes(same)
        return model

    return check


@pytest.fixture
def unprivileged() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Context in which file permissions count even where the tests run as root."""

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(user)

    return context


@pytest.fixture
def shared_path() -> Iterator[Path]:
    """A folder that other users may enter, unlike ``tmp_path``."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)
