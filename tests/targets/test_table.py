"""The targets as data: every fact has a source, names are real, schemes fit each other."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from graphopt import ConfigError, ir
from graphopt.manager.registry import default_registry
from graphopt.targets import TARGETS, Format, IntegerKernel, Target, cpu, get

NEWEST = 26
ALL = list(TARGETS.values())


def by_name(target: Target) -> str:
    return target.name


def exists(operator: str) -> bool:
    domain, _, name = operator.rpartition(".")
    return domain == "com.microsoft" or ir.schema(domain, name, NEWEST) is not None


def test_names() -> None:
    wanted = {"cpu", "cpu-x64", "cpu-x64-avx2", "cpu-arm64", "cuda", "tensorrt", "nnapi", "xnnpack",
              "qnn", "openvino", "web", "portable"}  # fmt: skip
    assert set(TARGETS) == wanted
    assert all(get(name).name == name for name in wanted)
    assert get(get("qnn")) is get("qnn")
    with pytest.raises(ConfigError, match="did you mean 'tensorrt'"):
        get("tensor-rt")


@pytest.mark.parametrize("target", ALL, ids=by_name)
def test_facts_have_sources(target: Target) -> None:
    names = {field.name for field in dataclasses.fields(Target)}
    assert set(target.sources) <= names
    default = Target("name", (), "")
    # What every target has to say where it is known from; and whatever is not the default.
    facts = {"opsets", "domains"} | {
        name
        for name in ("operators", "static_shapes", "max_rank", "dtypes", "external_data", "fp16",
                     "optimize")
        if getattr(target, name) != getattr(default, name)
    }  # fmt: skip
    assert facts <= set(target.sources), facts - set(target.sources)
    assert all(text for text in target.sources.values())
    for each in target.requirements:
        assert each.source, each.name
        assert each.name == each.name.lower()
    assert target.scheme is not None
    assert target.scheme.source
    assert all(kernel.source for kernel in target.scheme.kernels.values())


@pytest.mark.parametrize("target", ALL, ids=by_name)
def test_operators_and_passes_exist(target: Target) -> None:
    assert target.scheme is not None
    mentioned = {
        *(target.operators or ()),
        *target.scheme.kernels,
        *(op for each in target.requirements for op in each.operators),
    }
    assert [op for op in sorted(mentioned) if not exists(op)] == []
    known = default_registry().names()
    fixes = {name for each in target.requirements for name in each.fix.split(", ") if name}
    fixes |= {"fix-shapes", "fold-constants", "convert-opset", "freeze-inputs", "lower-ops"}
    assert fixes <= set(known)


@pytest.mark.parametrize("target", ALL, ids=by_name)
def test_providers(target: Target) -> None:
    assert target.providers[-1] == "CPUExecutionProvider"
    assert set(target.provider_options) <= set(target.providers)
    assert [name for name, _ in target.with_options] == list(target.providers)
    options = dict(target.with_options)
    assert all(isinstance(v, str) for each in options.values() for v in each.values())
    assert all(isinstance(v, str) for v in target.session.values())


@pytest.mark.parametrize("target", ALL, ids=by_name)
def test_kernels_are_consistent(target: Target) -> None:
    """Positions of inputs do not contradict each other, and formats are such that kernels exist."""
    scheme = target.scheme
    assert scheme is not None
    for name, kernel in scheme.kernels.items():
        positions = [kernel.weight, kernel.bias, *kernel.more_weights]
        given = [p for p in positions if p is not None]
        assert len(set(given)) == len(given), name
        assert kernel.bias is None or kernel.bias not in (kernel.activations or ()), name
        assert not (kernel.passes_through and kernel.output), name
    if scheme.drops_relu:
        assert not scheme.activation.symmetric
    if target.name in ("tensorrt", "cuda"):
        assert not scheme.drops_relu
    low, high = scheme.weight.limits
    assert low == -high or scheme.weight.dtype == "uint8"


def test_schemes() -> None:
    """What the reference says about each provider."""
    formats = {
        t.name: (t.scheme.activation.dtype, t.scheme.weight.dtype, t.scheme.weight.granularity)
        for t in ALL
        if t.scheme is not None
    }
    assert formats.pop("cpu") == formats[cpu.host().name]
    assert formats == {
        "cpu-x64": ("uint8", "int8", "channel"),
        "cpu-x64-avx2": ("uint8", "int8", "channel"),
        "cpu-arm64": ("int8", "int8", "channel"),
        "cuda": ("uint8", "int4", "block"),
        "tensorrt": ("int8", "int8", "channel"),
        "nnapi": ("uint8", "int8", "channel"),
        "xnnpack": ("uint8", "uint8", "tensor"),
        "qnn": ("uint8", "int8", "channel"),
        "openvino": ("uint8", "int8", "channel"),
        "web": ("uint8", "int8", "channel"),
        "portable": ("uint8", "uint8", "tensor"),
    }
    biases = {t.name: t.scheme.bias for t in ALL if t.scheme is not None}
    assert [name for name, bias in biases.items() if bias == "float"] == ["tensorrt"]


def test_without_vnni_pairs_of_products_fit_into_16_bits() -> None:
    scheme = get("cpu-x64-avx2").scheme
    assert scheme is not None
    largest = scheme.weight.limits[1]
    assert 2 * 255 * largest <= 2**15 - 1
    vnni = get("cpu-x64").scheme
    assert vnni is not None
    assert vnni.weight.limits == (-127, 127)


@pytest.mark.parametrize(
    ("format_", "limits", "bits"),
    [
        (Format("uint8"), (0, 255), 8),
        (Format("int8"), (-128, 127), 8),
        (Format("int8", symmetric=True), (-127, 127), 8),
        (Format("int8", symmetric=True, levels=128), (-63, 63), 7),
        (Format("uint8", levels=128), (0, 127), 7),
        (Format("int4", symmetric=True), (-7, 7), 4),
        (Format("int16"), (-32768, 32767), 16),
    ],
)
def test_formats(format_: Format, limits: tuple[int, int], bits: int) -> None:
    assert (format_.limits, format_.bits) == (limits, bits)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("flags\t\t: fpu avx2 avx512_vnni", "cpu-x64"),
        ("flags\t\t: fpu avx2 avx_vnni", "cpu-x64"),
        ("flags\t\t: fpu avx2 avx512f", "cpu-x64-avx2"),
        ("", "cpu-x64"),
    ],
)
def test_what_this_machine_is(text: str, name: str) -> None:
    assert cpu._from_cpuinfo(text).name == name


def test_this_machine() -> None:
    assert cpu.host() in (cpu.X64, cpu.X64_AVX2, cpu.ARM64)
    assert get("cpu").scheme is cpu.host().scheme


def test_axis_of_transposed_weights() -> None:
    kernel = IntegerKernel(weight=1, weight_axis=1)
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[2,2] x, float[2,2] w) => (y, z) {
        y = Gemm(x, w)
        z = Gemm <transB=1> (x, w)
    }"""
    assert [kernel.axis(node) for node in ir.parse_text(text).graph] == [1, 0]


def test_page_is_complete(root: Path) -> None:
    page = (root / "docs" / "targets.md").read_text(encoding="utf-8")
    for target in ALL:
        assert f"| `{target.name}` | {target.description} |" in page, target.name
