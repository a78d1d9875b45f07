"""The output-size formulas agree with torch for random geometries, and options of type bool refuse numbers."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import trinn.layers as tnn
from trinn.layers import conv_output_size, conv_transpose_output_size

SIZE, TAPS, NUMBER = st.integers(1, 12), st.integers(1, 5), st.integers(1, 4)
PAIR = st.tuples(NUMBER, NUMBER) | NUMBER
PADDING = st.tuples(st.integers(0, 4), st.integers(0, 4)) | st.integers(0, 4)


def agree(ours: Any, torchs: Any) -> None:
    """Assert equal sizes, or the same exception type from both."""
    try:
        expected = tuple(torchs().shape[2:])
    except Exception as error:
        with pytest.raises(type(error)):
            ours()
    else:
        assert ours() == expected


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.tuples(SIZE, SIZE), st.tuples(TAPS, TAPS), PAIR, PADDING | st.sampled_from(["valid", "same", "full"]), PAIR)
def test_convolution(size: Any, kernel: Any, stride: Any, padding: Any, dilation: Any) -> None:
    x, w = torch.zeros(1, 1, *size).double(), torch.zeros(1, 1, *kernel).double()  # float32 raises in fewer cases on a CPU
    agree(
        lambda: conv_output_size(size, kernel, stride, padding, dilation),
        lambda: F.conv2d(x, w, None, stride, padding, dilation),
    )


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.tuples(SIZE, SIZE), st.tuples(TAPS, TAPS), PAIR, PADDING, PADDING, PAIR)
def test_transposed_convolution(size: Any, kernel: Any, stride: Any, padding: Any, output_padding: Any, dilation: Any) -> None:
    x, w = torch.zeros(1, 1, *size).double(), torch.zeros(1, 1, *kernel).double()  # float32 raises in fewer cases on a CPU
    agree(
        lambda: conv_transpose_output_size(size, kernel, stride, padding, output_padding, dilation),
        lambda: F.conv_transpose2d(x, w, None, stride, padding, output_padding, 1, dilation),
    )


@settings(deadline=None, derandomize=True, max_examples=100)
@given(SIZE, TAPS, PAIR, st.integers(0, 2))
def test_pooling(size: int, kernel: int, stride: Any, padding: int) -> None:
    assume(padding <= kernel // 2)
    x = torch.zeros(1, 1, size, size)
    agree(lambda: conv_output_size(size, kernel, stride, padding), lambda: F.max_pool2d(x, kernel, stride, padding))


def test_a_number_applies_to_both_axes() -> None:
    assert conv_output_size(8, 3, padding=1) == conv_output_size((8, 8), (3, 3), padding=(1, 1)) == (8, 8)
    assert conv_output_size(8, (5, 3), padding=(2, 1)) == (8, 8)
    assert conv_output_size(2**40, 2, stride=2) == (2**39, 2**39)
    assert conv_transpose_output_size(4, 2, stride=2) == conv_transpose_output_size((4, 4), (2, 2), (2, 2)) == (8, 8)


def test_default_dilation() -> None:
    """The default dilation is 1."""
    for size, kernel, stride, padding in ((32, 5, 1, 0), (224, 11, 4, 2), (27, 5, 1, 2), (13, 3, 2, 1)):
        expected = (size + 2 * padding - kernel) // stride + 1
        assert conv_output_size(size, kernel, stride, padding) == (expected, expected)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((4, 5), r"padded input size per channel: \(4 x 4\). Kernel size: \(5 x 5\)"),
        ((4, 3, 0), "non-positive stride"),
        ((4, 3, 1, -1), "negative padding"),
        ((4, 3, 1, 0, 0), "dilation should be greater than zero"),
        ((4, 0), "kernel size should be greater than zero"),
        ((4, 3, 2, "same"), "not supported for strided"),
        ((4, 3, 1, "full"), "Invalid padding string"),
        (((4, 4, 4), 3), "tuple of 2 ints"),
    ],
)
def test_errors(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        conv_output_size(*arguments)


def test_transposed_errors() -> None:
    with pytest.raises(RuntimeError, match="Output size is too small"):
        conv_transpose_output_size(1, 2, padding=1)
    with pytest.raises(RuntimeError, match="output padding must be smaller"):
        conv_transpose_output_size(4, 2, stride=2, output_padding=2)
    with pytest.raises(TypeError, match="size must be an int"):
        conv_transpose_output_size(4.0, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "option", "more"),
    [
        ("max_pool2d", "ceil_mode", {"kernel_size": 2}),
        ("avg_pool2d", "ceil_mode", {"kernel_size": 2}),
        ("avg_pool2d", "count_include_pad", {"kernel_size": 2}),
        ("interpolate", "align_corners", {"size": 3, "mode": "bilinear"}),
    ],
)
def test_options_require_a_bool(name: str, option: str, more: dict[str, Any]) -> None:
    """A number raises TypeError, as in torch."""
    x = torch.zeros(1, 2, 6, 6)
    for library in (F, tnn):
        with pytest.raises(TypeError, match=option if library is tnn else ""):
            getattr(library, name)(x, **more | {option: 1})
