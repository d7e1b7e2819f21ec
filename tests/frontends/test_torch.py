"""Modules through the real exporter, where torch is installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt import FrontendError, ir, load
from graphopt.runtime.session import open_session

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.filterwarnings("ignore")


class Net(torch.nn.Module):  # type: ignore[misc,name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(4)
        self.head = torch.nn.Linear(4, 5)

    def forward(self, x: Any) -> Any:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


@pytest.mark.parametrize("batch", [1, 2])
def test_the_batch_becomes_dynamic_and_numbers_agree(batch: int) -> None:
    torch.manual_seed(0)
    net = Net()
    net.norm.eval()
    model = load(net, inputs=(torch.randn(batch, 3, 8, 8),))
    assert (net.training, net.norm.training, net.head.training) == (True, False, True)
    (x,) = ir.inputs(model)
    assert ir.dims(x) == ("batch", 3, 8, 8)
    session = open_session(model)
    net.eval()
    for size in (1, 5):
        data = np.random.default_rng(size).normal(size=(size, 3, 8, 8)).astype(np.float32)
        (got,) = session.run({x.name: data}).values()
        expected = net(torch.from_numpy(data)).detach().numpy()
        np.testing.assert_allclose(got, expected, atol=1e-5)


class Sum(torch.nn.Module):  # type: ignore[misc,name-defined]
    def forward(self, a: Any, b: Any) -> Any:
        return a + b


def test_inputs_by_name_and_of_different_batches() -> None:
    model = load(Sum(), inputs={"a": torch.ones(2, 3), "b": torch.ones(2, 3)})
    assert [(v.name, ir.dims(v)) for v in ir.inputs(model)] == [
        ("a", ("batch", 3)),
        ("b", ("batch", 3)),
    ]
    model = load(Sum(), inputs=(torch.ones(2, 3), torch.ones(3)))
    assert [ir.dims(v) for v in ir.inputs(model)] == [(2, 3), (3,)]


class Branch(torch.nn.Module):  # type: ignore[misc,name-defined]
    def forward(self, x: Any) -> Any:
        return x if x.sum() > 0 else -x


def test_what_cannot_be_exported(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FrontendError, match=r"torch cannot export Branch: .*data-dependent"):
        load(Branch(), inputs=(torch.ones(2, 3),))
    with pytest.raises(FrontendError, match="torch cannot export Sum: missing a required argument"):
        load(Sum(), inputs=())
    assert capfd.readouterr().err == ""
