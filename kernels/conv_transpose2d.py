"""2-D transposed convolution: the three passes of conv2d with the roles of input and output swapped.

                        conv2d          conv_transpose2d
    forward             fprop           dgrad
    input gradient      dgrad           fprop
    weight gradient     wgrad(x, dy)    wgrad(dy, x)

A transposed convolution is the adjoint of a convolution, and torch's weight (C_in, C_out / groups, R, S) is already the weight
of this convolution. So nothing is flipped or stuffed with zeros, and this file has no kernel.

These functions are no operators: layers/conv_transpose2d.py uses the autograd Functions of layers/conv2d.py, with their roles
swapped as in the table. Only tests call this file.
"""

from torch import Tensor

from .conv2d.passes import conv2d_dgrad, conv2d_fprop, conv2d_wgrad
from .runtime.layout import Ints


def conv_transpose2d_fprop(
    x: Tensor, w: Tensor, b: Tensor | None, size: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Tensor:
    """2-D transposed convolution.

        y[n, k, p, q] = sum_{c, r, s} x[n, c, h, w] * w[c, k, r, s] + b[k]    with p = h * stride - padding + r * dilation

    Args:
        x: (N, C, H, W), any strides.
        w: (C, K / groups, R, S), same dtype as `x`.
        b: (K), or None.
        size: (P, Q); it includes torch's output_padding.
        stride, padding, dilation: in pixels, for height and width.

    Returns:
        (N, K, P, Q), channels_last if `x` or `w` is.
    """
    return conv2d_dgrad(x, w, b, size, stride, padding, dilation, groups)


def conv_transpose2d_dgrad(
    dy: Tensor, w: Tensor, size: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Tensor:
    """Gradient of conv_transpose2d with respect to its input, (N, C, H, W) with (H, W) = `size`."""
    return conv2d_fprop(dy, w, None, size, stride, padding, dilation, groups)


def conv_transpose2d_wgrad(
    x: Tensor, dy: Tensor, size: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Tensor:
    """Gradient of conv_transpose2d with respect to its weight, (C, K / groups, R, S) with (R, S) = `size`."""
    return conv2d_wgrad(dy, x, size, stride, padding, dilation, groups)
