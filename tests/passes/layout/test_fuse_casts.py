from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from graphopt import ir
from graphopt.passes.layout import FuseCasts
from graphopt.passes.layout.fuse_casts import holds
from graphopt.testing import check_pass

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
CODES = {
    "float": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7,
    "bool": 9, "float16": 10, "double": 11, "uint32": 12, "uint64": 13, "bfloat16": 16,
}  # fmt: skip
NUMPY = {name: np.dtype(name) for name in CODES if name not in ("float", "bfloat16")}
NUMPY["float"] = np.dtype(np.float32)
NUMPY["bfloat16"] = np.dtype(ml_dtypes.bfloat16)


def cast_twice(source: str, middle: str, target: str) -> str:
    return f"""
        {HEAD}
        g ({source}[N] x) => ({target}[N] y)
        {{ a = Cast<to={CODES[middle]}>(x) y = Cast<to={CODES[target]}>(a) }}
        """


@pytest.mark.parametrize(
    ("source", "middle", "target"),
    [
        ("int8", "int32", "int64"),
        ("uint8", "int16", "float16"),
        ("int32", "int64", "double"),
        ("bool", "int64", "float"),
        ("bool", "float", "int32"),
        ("float16", "float", "double"),
        ("int32", "int64", "bool"),
        ("float16", "double", "bool"),
    ],
)
def test_one_is_left(source: str, middle: str, target: str) -> None:
    check_pass(
        FuseCasts(),
        cast_twice(source, middle, target),
        f"""
        graph(%x: {source}[N]) {{
          %y = Cast(%x) {{to={CODES[target]}}}
          return %y
        }}
        """,
    )


@pytest.mark.parametrize(
    ("source", "middle"),
    [
        ("float16", "float"),
        ("float", "double"),
        ("int32", "int64"),
        ("int32", "double"),
        ("uint8", "float16"),
        ("bool", "uint8"),
        ("int64", "int64"),
    ],
)
def test_there_and_back(source: str, middle: str) -> None:
    check_pass(
        FuseCasts(),
        cast_twice(source, middle, source),
        f"""
        graph(%x: {source}[N]) {{
          %y = Identity(%x)
          return %y
        }}
        """,
    )


def test_inner_result_used_elsewhere() -> None:
    check_pass(
        FuseCasts(),
        f"""
        {HEAD}
        g (float16[N] x) => (float16[N] y, float[N] z)
        {{ a = Cast<to=1>(x) b = Cast<to=10>(a) y = Relu(b) z = Exp(a) }}
        """,
        """
        graph(%x: float16[N]) {
          %a = Cast(%x) {to=1}
          %y = Relu(%x)
          %z = Exp(%a)
          return %y, %z
        }
        """,
    )


@pytest.mark.parametrize(
    ("source", "middle", "target", "reason"),
    [
        ("float", "float16", "float", "first cast may change"),
        ("float", "int32", "float", "first cast may change"),
        ("int64", "int32", "int64", "first cast may change"),
        ("int32", "float", "int32", "first cast may change"),
        ("uint16", "float16", "uint16", "first cast may change"),
        ("int8", "uint8", "int8", "first cast may change"),
        ("float", "bool", "float", "first cast may change"),
        ("float", "bfloat16", "float", "first cast may change"),
        ("float16", "bfloat16", "float16", "first cast may change"),
        ("int32", "int64", "int8", "second cast may change"),
        ("float16", "float", "int32", "second cast may change"),
        ("float", "double", "float16", "second cast may change"),
    ],
)
def test_declines(
    declined: Callable[[Any], str], source: str, middle: str, target: str, reason: str
) -> None:
    result = check_pass(FuseCasts(), cast_twice(source, middle, target), None)
    assert reason in declined(result)


def test_inner_result_used_elsewhere_and_no_way_back(declined: Callable[[Any], str]) -> None:
    text = f"""
        {HEAD}
        g (int8[N] x) => (int64[N] y, int32[N] z)
        {{ a = Cast<to=6>(x) y = Cast<to=7>(a) z = Neg(a) }}
        """
    assert "something else" in declined(check_pass(FuseCasts(), text, None))


def test_strings(declined: Callable[[Any], str]) -> None:
    text = f"""
        {HEAD}
        g (int64[N] x) => (int64[N] y)
        {{ a = Cast<to=8>(x) y = Cast<to=7>(a) }}
        """
    assert "first cast may change" in declined(check_pass(FuseCasts(), text, None))


def extremes(name: str) -> np.ndarray[Any, Any]:
    dtype = NUMPY[name]
    if dtype.kind == "b":
        return np.array([False, True])
    if dtype.kind in "iu":
        ends = np.iinfo(dtype)
        return np.array([ends.min, ends.max, 0, 1, ends.max // 2 + 2, ends.max - 1], dtype)
    ends = ml_dtypes.finfo(dtype)
    one = np.array(1, dtype)
    return np.array([ends.min, ends.max, ends.smallest_subnormal, one + ends.eps, 0], dtype)


@pytest.mark.parametrize(("wide", "narrow"), list(itertools.product(CODES, CODES)))
def test_every_value_survives(wide: str, narrow: str) -> None:
    """Where one type is said to hold another, extreme values of it come back."""
    values = extremes(narrow)
    with np.errstate(all="ignore"):
        back = values.astype(NUMPY[wide]).astype(values.dtype)
    if holds(ir.DataType(CODES[wide]), ir.DataType(CODES[narrow])):
        np.testing.assert_array_equal(values, back)
        assert (np.sign(values.astype(np.float64)) == np.sign(back.astype(np.float64))).all()
    elif NUMPY[wide].kind != "b" and not (NUMPY[wide].kind in "iu" and NUMPY[narrow].kind in "iu"):
        assert (values != back).any()
