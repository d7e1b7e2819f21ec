"""Folders of images: the declared preprocessing, and nothing guessed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from graphopt import ir
from graphopt.calibration import Preprocessing, images, load_data
from graphopt.errors import CalibrationError

Image = pytest.importorskip("PIL.Image")

HEADER = '<ir_version: 10, opset_import: ["": 21]>\n'


def model(shape: str = "N, 3, 4, 6", kind: str = "float") -> ir.Model:
    return ir.parse_text(
        f"{HEADER}g ({kind}[{shape}] x) => ({kind}[{shape}] y) {{y = Identity(x)}}"
    )


def picture(height: int = 4, width: int = 6, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(11):
        picture(seed=i).save(tmp_path / f"{i}.png")
    declare(tmp_path, size=[4, 6])
    return tmp_path


def declare(folder: Path, **keys: Any) -> None:
    (folder / "preprocess.json").write_text(json.dumps(keys))


def test_batches(folder: Path) -> None:
    data = load_data(folder, model())
    assert (len(data), data.count) == (1, 11)
    assert data.remarks == [f"{folder}: the last 3 images do not fill a batch"]
    (batch,) = data
    expected = [np.asarray(picture(seed=i), np.float32).transpose(2, 0, 1) / 255 for i in range(8)]
    assert_allclose(batch["x"], expected, rtol=1e-6)
    assert len(list(load_data(folder, model(), batch_size=2))) == 5
    assert len(load_data(folder, model("1, 3, 4, 6"))) == 11


def test_classes_in_folders_of_their_own(tmp_path: Path) -> None:
    for i, name in enumerate(("dog", "cat")):
        (tmp_path / name).mkdir()
        picture(seed=i).save(tmp_path / name / "a.png")
    declare(tmp_path, size=[4, 6], scale=1)
    (batch,) = load_data(tmp_path, model())
    assert_array_equal(batch["x"][0], np.asarray(picture(seed=1), np.float32).transpose(2, 0, 1))


def test_toml(folder: Path) -> None:
    (folder / "preprocess.json").unlink()
    (folder / "preprocess.toml").write_text("size = [4, 6]\nchannels = 'BGR'\nscale = 1\n")
    (batch,) = load_data(folder, model())
    first = np.asarray(picture(seed=0), np.float32).transpose(2, 0, 1)
    assert_array_equal(batch["x"][0], first[::-1])


def test_normalisation_and_layout() -> None:
    how = Preprocessing(
        size=(4, 6), scale=1.0, mean=(127.0,), std=(128.0, 64.0, 32.0), layout="NHWC"
    )
    pixels = np.asarray(picture(), np.float32)
    assert_allclose(how.apply(picture()), (pixels - 127) / [128, 64, 32], rtol=1e-6)
    gray = Preprocessing(size=(4, 6), channels="L").apply(picture())
    assert gray.shape == (1, 4, 6)


def test_stretch() -> None:
    found = Preprocessing(size=(8, 6), scale=1).apply(picture(4, 12))
    wanted = np.asarray(picture(4, 12).resize((6, 8), Image.Resampling.BILINEAR), np.float32)
    assert_array_equal(found, wanted.transpose(2, 0, 1))


def test_crop_as_classifiers_want_it() -> None:
    how = Preprocessing(size=(4, 4), resize="crop", shorter=5, scale=1, interpolation="bicubic")
    found = how.apply(picture(10, 20))
    whole = np.asarray(picture(10, 20).resize((10, 5), Image.Resampling.BICUBIC), np.float32)
    assert_array_equal(found, whole[0:4, 3:7].transpose(2, 0, 1))
    least = Preprocessing(size=(4, 4), resize="crop", scale=1).apply(picture(10, 20))
    whole = np.asarray(picture(10, 20).resize((8, 4), Image.Resampling.BILINEAR), np.float32)
    assert_array_equal(least, whole[:, 2:6].transpose(2, 0, 1))


def test_pad() -> None:
    how = Preprocessing(size=(8, 8), resize="pad", fill=7, scale=1)
    found = how.apply(picture(4, 8))
    assert_array_equal(found[:, 2:6], np.asarray(picture(4, 8), np.float32).transpose(2, 0, 1))
    assert (found[:, :2] == 7).all()
    assert (found[:, 6:] == 7).all()


def test_integer_inputs_take_pixels(folder: Path) -> None:
    declare(folder, size=[4, 6], scale=1)
    (batch,) = load_data(folder, model(kind="uint8"))
    assert batch["x"].dtype == np.uint8
    declare(folder, size=[4, 6])
    with pytest.raises(CalibrationError, match="takes uint8, not float32"):
        list(load_data(folder, model(kind="uint8")))


def test_preprocessing_in_python(folder: Path) -> None:
    (folder / "preprocess.json").unlink()
    (batch,) = load_data(folder, model(), preprocessing=Preprocessing(size=(4, 6), scale=2.0))
    assert batch["x"].max() > 255
    with pytest.raises(CalibrationError, match=r"holds images, and nothing says how .*json there"):
        load_data(folder, model())


def test_pillow_is_an_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images._pillow.cache_clear()
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(CalibrationError, match=r"pip install 'graphopt\[images\]'"):
        load_data(folder, model())


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ("{", "preprocess.json cannot be read: "),
        ("[4, 6]", "preprocess.json is no table"),
        ("{}", "lacks 'size'"),
        ('{"size": [4, 6], "sized": 1}', "there is no key 'sized' but size, resize, "),
        ('{"size": 4}', r"preprocessing: size is \[height, width\]"),
        ('{"size": [4, 0]}', r"size is \[height, width\]"),
        ('{"size": [4, 6.5]}', r"size is \[height, width\]"),
        ('{"size": [4, 6], "resize": "fit"}', "resize is one of stretch, .*, not 'fit'"),
        ('{"size": [4, 6], "channels": "rgb"}', "channels is one of RGB, BGR, L, not 'rgb'"),
        ('{"size": [4, 6], "layout": "CHW"}', "layout is one of NCHW, NHWC"),
        ('{"size": [4, 6], "mean": [1, 2]}', "mean is 1 or 3 numbers"),
        ('{"size": [4, 6], "std": [0]}', "std is 1 or 3 numbers but 0"),
        ('{"size": [4, 6], "channels": "L", "std": [1, 1, 1]}', "std is 1 or 1 numbers"),
        ('{"size": [4, 6], "scale": "1/255"}', "scale is a number"),
        ('{"size": [4, 6], "fill": true}', "fill is an integer"),
        ('{"size": [4, 6], "shorter": "x"}', "shorter is a length"),
    ],
)
def test_declarations_that_are_wrong(folder: Path, declared: str, message: str) -> None:
    (folder / "preprocess.json").write_text(declared)
    with pytest.raises(CalibrationError, match=message):
        load_data(folder, model())


def test_images_that_are_wrong(folder: Path) -> None:
    declare(folder, size=[4, 6], resize="none")
    picture(5, 6).save(folder / "3.png")
    with pytest.raises(CalibrationError, match=r"3\.png is 5 x 6, not 4 x 6, and is not to be"):
        list(load_data(folder, model()))
    whole = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(whole[:-30])
    with pytest.raises(CalibrationError, match=r"2\.png is truncated or not an image: "):
        list(load_data(folder, model()))
    (folder / "1.png").write_text("no image")
    with pytest.raises(CalibrationError, match=r"1\.png is truncated or not an image: "):
        list(load_data(folder, model()))
    how = Preprocessing(size=(4, 6), resize="crop", shorter=3)
    with pytest.raises(CalibrationError, match=r"0\.png becomes 3 x 4, of which 4 x 6 cannot"):
        list(load_data(folder, model(), preprocessing=how))


def test_models_that_images_do_not_fit(folder: Path) -> None:
    with pytest.raises(CalibrationError, match=r"0\.png to 7\.png: input 'x' takes \[N, 3, 4, 5\]"):
        list(load_data(folder, model("N, 3, 4, 5")))
    with pytest.raises(CalibrationError, match="takes 16 images at a time, there are 11"):
        load_data(folder, model("16, 3, 4, 6"))
    two = ir.parse_text(f"{HEADER}g (float[N] a, float[N] b) => (float[N] y) {{y = Add(a, b)}}")
    with pytest.raises(CalibrationError, match="holds images, but the model has the inputs a, b"):
        load_data(folder, two)
