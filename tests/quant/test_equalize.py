from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphopt
from graphopt import ir, targets
from graphopt.measure import Trial
from graphopt.quant.channels import Channels
from graphopt.quant.equalize import (
    Extent,
    equalize,
    find_factors,
    observe_extents,
    weight_factors,
)
from graphopt.quant.prepare import activation_params, quantize_weight
from graphopt.quant.units import Units
from graphopt.rewrite import Rewriter
from graphopt.targets import Format, Scheme
from graphopt.testing import assert_equivalent

Array = np.ndarray[Any, Any]

RNG = np.random.default_rng(0)
SIZES = np.array([1, 0.5, 0.1, 0.02, 1, 0.3, 0.05, 0.01], np.float32)


def per_tensor() -> Scheme:
    scheme = targets.get("cpu-x64").scheme
    assert scheme is not None
    return dataclasses.replace(scheme, weight=Format("int8", symmetric=True))


def net(middle: str = "r = Relu(c)", *, sizes: Array = SIZES) -> ir.Model:
    """Two convolutions, of which the first has channels of different sizes."""
    import onnx

    text = f"""<ir_version: 8, opset_import: ["": 17]> g (float[N,3,8,8] x) => (float[] y) {{
        c = Conv<pads=[1,1,1,1]>(x, w, b) {middle} d = Conv<pads=[1,1,1,1]>(r, v)
        p = GlobalAveragePool(d) f = Flatten(p) y = Gemm(f, u) }}"""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(size=(8, 3, 3, 3)) * sizes.reshape(-1, 1, 1, 1),
        "b": rng.normal(size=8) * sizes,
        "v": rng.normal(size=(6, 8, 3, 3)) / sizes.reshape(1, -1, 1, 1),
        "u": rng.normal(size=(6, 4)),
        "lo": np.array(0),
        "hi": np.array(2),
    }
    for name, data in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(data.astype(np.float32), name))
    model = ir.load(proto)
    Rewriter(model).remove_initializers()
    ir.infer_shapes(model)
    return model


def samples(count: int = 4) -> list[dict[str, Array]]:
    return [{"x": RNG.normal(size=(8, 3, 8, 8)).astype(np.float32)} for _ in range(count)]


def value(model: ir.Model, name: str) -> ir.Value:
    return next(v for n in model.graph for v in n.outputs if v.name == name)


def constants(model: ir.Model) -> dict[str, Array]:
    found = {
        n.outputs[0].name or "": ir.array(n.inputs[1]) for n in model.graph if len(n.inputs) > 1
    }
    return {name: data for name, data in found.items() if data is not None}


def test_extents() -> None:
    extent = Extent(np.array([-1.0, 0.0]), np.array([3.0, 0.5]), (0.5, 1.0))
    assert extent.range(np.ones(2)) == (-0.5, 3.0)
    assert extent.range(np.array([4.0, 0.25])) == (-0.125, 2.0)
    np.testing.assert_allclose(extent.relative, [1, 0.5 / 3.5])
    model = net()
    channels, units = Channels(model), Units(model, per_tensor())
    data = samples()
    found = observe_extents(channels, units, data)
    names = {v.name for v in found}
    assert "r" in names
    assert "y" not in names
    seen = found[value(model, "r")]
    assert (seen.low == 0).all()
    assert seen.high.shape == (8,)
    assert 0 < seen.kept[1] <= 1


def test_without_samples_weights_get_ranges_alike() -> None:
    model = net()
    before = ir.clone(model)
    channels = Channels(model)
    factors = weight_factors(channels)
    assert (factors[~channels.free] == 1).all()
    assert channels.fold(Rewriter(model), factors) is None
    assert_equivalent(before, model)
    found = constants(model)
    out = np.abs(found["c"]).max(axis=(1, 2, 3))
    into = np.abs(found["d"]).max(axis=(0, 2, 3))
    np.testing.assert_allclose(out / out.max(), into / into.max(), rtol=1e-3)
    # What was a hundred times as large as others is so no more.
    assert out.max() / out.min() < 5 < SIZES.max() / SIZES.min()
    again = weight_factors(Channels(model))
    np.testing.assert_allclose(again, 1, rtol=1e-2)


def test_a_channel_without_weights() -> None:
    sizes = SIZES.copy()
    model = net(sizes=sizes)
    (conv, *_) = [n for n in model.graph if n.op_type == "Conv"]
    dead = np.array(ir.array(conv.inputs[1]))
    dead[2] = 0
    rw = Rewriter(model)
    rw.set_input(conv, 1, rw.const(dead))
    factors = weight_factors(Channels(model))
    assert np.isfinite(factors).all()
    assert (factors > 0).all()
    data = samples()
    found = equalize(Units(model, per_tensor()), Trial(model, data[:1]), data)
    assert np.isfinite(found.factors).all()


@pytest.mark.parametrize("middle", ["r = Relu(c)", "e = Relu(c) r = Add(e, c)"])
def test_noise_falls_and_numbers_stay(middle: str) -> None:
    model = net(middle)
    before, data = ir.clone(model), samples()
    trial = Trial(model, data[:2])
    noise = quantized_noise(model, data, trial)
    found = equalize(Units(model, per_tensor()), trial, data)
    ir.verify(model)
    assert found.after < found.before / 10
    assert_equivalent(before, model)
    assert quantized_noise(model, data, trial) < noise / 5


def test_nothing_is_gained_where_channels_are_alike() -> None:
    model = net(sizes=np.ones(8, np.float32))
    data = samples()
    channels, units, trial = Channels(model), Units(model, per_tensor()), Trial(model, data[:2])
    extents = observe_extents(channels, units, data)
    found = find_factors(channels, units, trial, extents)
    assert found.after <= found.before
    again = find_factors(channels, units, trial, extents, sweeps=2)
    assert again.after <= again.before


def test_nothing_to_do() -> None:
    model = net("s = Sigmoid(c) r = Exp(s)")
    channels, data = Channels(model), samples(1)
    units = Units(model, per_tensor(), skip=("*",))
    found = find_factors(channels, units, Trial(model, data), {})
    assert (found.factors == 1).all()
    assert (found.before, found.after, found.chosen) == (0, 0, {})


def test_clips_cut_nothing_new() -> None:
    """A bound stays where the largest channel needs it, and samples compute what they did."""
    model = net("r = Clip(c, lo, hi)")
    data = samples()
    before = ir.clone(model)
    frozen = equalize(
        Units(ir.clone(model), per_tensor()), Trial(model, data[:1]), data, clips=False
    )
    units = Units(model, per_tensor())
    found = equalize(units, Trial(model, data[:2]), data)
    assert "r" in found.chosen
    assert "r" not in frozen.chosen
    assert found.after < found.before / 2
    assert Trial(before, data).noise(model) < found.after / 10


def quantized_noise(model: ir.Model, data: list[dict[str, Array]], trial: Trial) -> float:
    """Noise at the outputs with all that has a kernel on integers."""
    from graphopt.calibration import MinMax, collect
    from graphopt.quant.emit import emit_static

    copy = ir.clone(model)
    units = Units(copy, per_tensor())
    watch = {v.name or "": MinMax() for v in units.tensors() if ir.const(v) is None}
    seen = collect(copy, watch, data)
    ranges = {name: (one[0].min, one[0].max) for name, one in seen.items()}  # type: ignore[attr-defined]
    params = activation_params(units, ranges)
    weights = {u.name: quantize_weight(u, units, params) for u in units if u.weight is not None}
    rw = Rewriter(copy)
    emit_static(rw, units, {u.name for u in units}, params, weights)
    rw.remove_initializers()
    return trial.noise(copy)


def test_a_depthwise_net_in_8_bits(models_dir: Path) -> None:
    """The trained MobileNet with one scale per tensor: quieter than it was."""
    model = graphopt.optimize(models_dir / "digits_mobilenet.onnx", "O2", oracle="off").model
    ir.infer_shapes(model)
    with np.load(models_dir / "digits_calib.npz") as found:
        images = found["image"]
    with np.load(models_dir / "digits_test.npz") as found:
        test = [{"image": found["image"]}]
    data = [{"image": images[i : i + 32]} for i in range(0, len(images), 32)]
    original = ir.clone(model)
    equalized = equalize(Units(model, per_tensor()), Trial(model, data[:1]), data)
    assert equalized.after < 0.75 * equalized.before
    judge = Trial(original, test)
    assert judge.quality(model).sqnr_db > 45
    assert -10 * np.log10(quantized_noise(model, data, judge)) > 25
