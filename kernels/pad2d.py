"""Padding an image with its own pixels: by reflection, by replication of the edge, or circular.

    forward    y[n, c, p, q]  = x[n, c, h(p), w(q)]
    backward   dx[n, c, h, w] = sum of dy[n, c, p, q] over all (p, q) with h(p) = h and w(q) = w

                 h(p), with i = p - near          the p with h(p) = h
    reflect      i or -i or 2 (H - 1) - i         h and its reflections in both edges
    replicate    i, at least 0, at most H - 1     h; at an edge, also all p beyond it
    circular     i modulo H                       h and its copies at h - H and h + H

The backward is a gather over these p and q. Zero padding needs no kernel: a convolution reads zeros past its edges.
"""

import triton.language as tl
from torch import Tensor

from .device.function import device_function
from .device.indexing import inside
from .gather2d import gather2d
from .runtime.allocate import empty
from .runtime.layout import Ints, is_channels_last
from .runtime.op import op
from .runtime.vmap import FIRST_AXIS


@device_function
def _reflected(i, position, axis, DTYPE: tl.constexpr):
    """h(p)."""
    size, _out_size, near, _scale = axis
    return (size - 1) - tl.abs((size - 1) - tl.abs(position - near)), True, 1


@device_function
def _replicated(i, position, axis, DTYPE: tl.constexpr):
    """h(p)."""
    size, _out_size, near, _scale = axis
    return tl.minimum(tl.maximum(position - near, 0), size - 1), True, 1


@device_function
def _wrapped(i, position, axis, DTYPE: tl.constexpr):
    """h(p)."""
    size, _out_size, near, _scale = axis
    return (position - near + size) % size, True, 1


@device_function
def _copy(i, position, before, after, axis):
    """Copy i of a pixel in y: the pixel itself, its copy `before`, its copy `after`. Skips duplicates and copies outside y."""
    _size, out_size, near, _scale = axis
    copy = tl.where(i == 0, position, tl.where(i == 1, before, after))
    return copy + near, inside(copy + near, out_size) & ((i == 0) | (copy != position)), 1


@device_function
def _reflected_reader(i, position, axis, DTYPE: tl.constexpr):
    """Output i among the p with h(p) = position."""
    return _copy(i, position, -position, 2 * (axis[0] - 1) - position, axis)


@device_function
def _replicated_reader(i, position, axis, DTYPE: tl.constexpr):
    """Output i among the p with h(p) = position."""
    size, out_size, near, _scale = axis
    reader = tl.where(position == 0, 0, position + near) + i
    last = tl.where(position == size - 1, out_size - 1, position + near)
    return reader, inside(reader, out_size) & (reader <= last), 1


@device_function
def _wrapped_reader(i, position, axis, DTYPE: tl.constexpr):
    """Output i among the p with h(p) = position."""
    return _copy(i, position, position - axis[0], position + axis[0], axis)


SOURCES = {"reflect": _reflected, "replicate": _replicated, "circular": _wrapped}
READERS = {"reflect": _reflected_reader, "replicate": _replicated_reader, "circular": _wrapped_reader}


def _empty_forward(x: Tensor, padding: Ints, mode: str) -> Tensor:
    left, right, top, bottom = padding
    # torch's circular padding is always contiguous.
    channels_last = is_channels_last(x) and mode != "circular"
    return empty(x, (*x.shape[:2], x.shape[2] + top + bottom, x.shape[3] + left + right), channels_last)


def _empty_backward(dy: Tensor, padding: Ints, mode: str) -> Tensor:
    left, right, top, bottom = padding
    return empty(dy, (*dy.shape[:2], dy.shape[2] - top - bottom, dy.shape[3] - left - right), is_channels_last(dy))


@op(fake=_empty_forward, vmap=FIRST_AXIS)
def pad2d_forward(x: Tensor, padding: Ints, mode: str) -> Tensor:
    """An image with a border of its own pixels.

    Args:
        x: (N, C, H, W), any strides.
        padding: (left, right, top, bottom), in pixels: less than the size for "reflect", at most the size for "circular".
            Negative padding crops, except for "circular".
        mode: "reflect", "replicate" or "circular".

    Returns:
        (N, C, H + top + bottom, W + left + right), channels_last if `x` is, except for "circular".
    """
    y = _empty_forward(x, padding, mode)
    gather2d(x, y, _axes(x, y, padding), (1, 1), SOURCES[mode], mode="copy")
    return y


@op(fake=_empty_backward, vmap=FIRST_AXIS)
def pad2d_backward(dy: Tensor, padding: Ints, mode: str) -> Tensor:
    """Gradient of pad2d_forward: each pixel gets the sum of `dy` over its copies. `dy` has the padded size, any strides."""
    dx = _empty_backward(dy, padding, mode)
    left, right, top, bottom = padding
    readers = _most_readers(dx.shape[2], top, bottom, mode), _most_readers(dx.shape[3], left, right, mode)
    gather2d(dy, dx, _axes(dx, dy, padding), readers, READERS[mode])
    return dx


def _axes(x: Tensor, y: Tensor, padding: Ints) -> list[tuple[int, int, int]]:
    return [(x.shape[2], y.shape[2], padding[2]), (x.shape[3], y.shape[3], padding[0])]


def _most_readers(size: int, near: int, far: int, mode: str) -> int:
    """Largest number of outputs of an axis with a copy of the same pixel."""
    near, far = max(near, 0), max(far, 0)
    if mode != "replicate":
        return 3 if near or far else 1
    return 1 + (near + far if size == 1 else max(near, far))
