"""One entry for every kind of source; torch modules by a stand-in for torch."""

from __future__ import annotations

import contextlib
import logging
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir
import pytest
from onnx import parser

import graphopt
from graphopt import FrontendError, frontends, ir

TEXT = '<ir_version: 8, opset_import: ["": 17]> g (float[4] x) => (float[4] y) { y = Neg(x) }'


def test_other_sources_go_to_the_ir(tmp_path: Path) -> None:
    proto = parser.parse_model(TEXT)
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    for source in (path, str(path), proto, proto.SerializeToString(), onnx_ir.from_proto(proto)):
        assert (
            ir.dump(frontends.load(source))
            == ir.dump(graphopt.load(source))
            == ir.dump(ir.load(proto))
        )


def test_torch_is_not_imported_to_find_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with pytest.raises(FrontendError, match="cannot load object: expected a path, bytes"):
        frontends.load(object())
    assert "torch" not in sys.modules


@pytest.mark.parametrize("half", [None, types.ModuleType("torch")])
def test_torch_that_is_not_really_there(half: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", half)
    assert not frontends.torch.is_torch_module(object())


# A stand-in for torch ---------------------------------------------------------------------------


class Module:
    """What of ``torch.nn.Module`` the frontend uses."""

    def __init__(self, *parts: Module) -> None:
        self.parts, self.training = parts, True

    def modules(self) -> Iterator[Module]:
        yield self
        for part in self.parts:
            yield from part.modules()

    def eval(self) -> None:
        for part in self.modules():
            part.training = False


class Tensor:
    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def dim(self) -> int:
        return len(self.shape)


class Torch(types.ModuleType):
    """Records the calls of ``torch.onnx.export``; each is answered by the next of ``answers``."""

    def __init__(self) -> None:
        super().__init__("torch")
        self.nn = types.SimpleNamespace(Module=Module)
        self.Tensor = Tensor
        self.export = types.SimpleNamespace(Dim=lambda name: name)
        self.onnx = types.SimpleNamespace(export=self._export)
        self.no_grad = contextlib.nullcontext
        self.calls: list[tuple[Any, ...]] = []
        self.answers: list[Any] = []
        self.training: list[bool] = []

    def _export(
        self,
        module: Module,
        args: Any,
        *,
        kwargs: Any,
        dynamo: bool,
        dynamic_shapes: Any,
        verbose: bool,
    ) -> Any:
        self.calls.append((args, kwargs, dynamic_shapes))
        self.training += [m.training for m in module.modules()]
        print("exporting")
        warnings.warn("of torch", UserWarning, stacklevel=1)
        logging.getLogger("torch").error("of torch")
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, BaseException):
            raise answer
        return types.SimpleNamespace(model=onnx_ir.from_onnx_text(TEXT))


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Torch:
    module = Torch()
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


def test_tuple_of_inputs(torch: Torch) -> None:
    x, y = Tensor(2, 3), Tensor(2)
    model = frontends.load(Module(), inputs=(x, y))
    assert [n.op_type for n in model.graph] == ["Neg"]
    assert torch.calls == [((x, y), None, ({0: "batch"}, {0: "batch"}))]


def test_one_input_without_a_tuple(torch: Torch) -> None:
    x = Tensor(2, 3)
    frontends.load(Module(), inputs=x)
    assert torch.calls == [((x,), None, ({0: "batch"},))]


def test_inputs_by_name(torch: Torch) -> None:
    x = Tensor(2, 3)
    frontends.load(Module(), inputs={"x": x})
    assert torch.calls == [((), {"x": x}, {"x": {0: "batch"}})]


@pytest.mark.parametrize("inputs", [(Tensor(),), (Tensor(2), 3)], ids=["scalar", "no tensor"])
def test_inputs_without_a_batch_keep_their_shapes(torch: Torch, inputs: Any) -> None:
    frontends.load(Module(), inputs=inputs)
    assert torch.calls == [(inputs, None, None)]


def test_a_batch_that_cannot_be_dynamic(torch: Torch) -> None:
    torch.answers = [ValueError("batch was specialized to 2")]
    x = Tensor(2, 3)
    frontends.load(Module(), inputs=(x,))
    assert [c[2] for c in torch.calls] == [({0: "batch"},), None]


def test_modules_are_exported_in_evaluation_mode_and_restored(torch: Torch) -> None:
    frozen, plain = Module(), Module()
    module = Module(frozen, plain)
    frozen.training = False
    for answers in ([], [ValueError(), ValueError()]):
        torch.answers = list(answers)
        with contextlib.suppress(FrontendError):
            frontends.load(module, inputs=(Tensor(2),))
        assert (module.training, frozen.training, plain.training) == (True, False, True)
    assert not any(torch.training)


def test_the_exporter_is_quiet(
    torch: Torch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    frontends.load(Module(), inputs=(Tensor(2),))
    assert capsys.readouterr() == ("", "")
    assert caplog.records == []
    logging.getLogger("mine").error("still heard")
    assert [r.message for r in caplog.records] == ["still heard"]


def test_no_inputs(torch: Torch) -> None:
    with pytest.raises(FrontendError, match=r"needs example inputs: load\(module, inputs=\(x,\)\)"):
        frontends.load(Module())
    assert torch.calls == []


def test_a_module_that_cannot_be_exported(torch: Torch) -> None:
    cause = ValueError("\x1b[96mdata-dependent\x1b[0m branch\nand where it is")
    outer = RuntimeError("This is step 1/3")
    outer.__cause__ = cause
    torch.answers = [outer, outer]
    with pytest.raises(FrontendError) as caught:
        frontends.load(Module(), inputs=(Tensor(2),))
    assert str(caught.value) == "torch cannot export Module: data-dependent branch"
    torch.answers = [ValueError(), ValueError()]
    with pytest.raises(FrontendError, match="torch cannot export Module: ValueError"):
        frontends.load(Module(), inputs=(Tensor(2),))


def test_a_package_that_the_exporter_needs(torch: Torch) -> None:
    missing = ModuleNotFoundError("No module named 'onnxscript'")
    torch.answers = [missing, missing]
    with pytest.raises(
        FrontendError, match="torch's exporter needs a package: No module named 'onnxscript'"
    ):
        frontends.load(Module(), inputs=(Tensor(2),))
