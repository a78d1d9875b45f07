"""Output strides equal torch's for every operator, every layout of images and filters, and axes of size 1."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import trinn.layers as tnn
from tests.support.check import randn
from tests.support.operator_cases import CASES, TORCH_CASES
from tests.support.record import OperatorCase
from trinn.kernels.runtime.launch import intercepted

LAST = torch.channels_last

# Copies of an image or of filters in other memory layouts.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "channels_last": lambda x: x.to(memory_format=LAST),
    "channels_last, strides of size-1 axes too": lambda x: torch.empty(x.shape, dtype=x.dtype, memory_format=LAST).copy_(x),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "transposed, channels_last": lambda x: x.transpose(2, 3).contiguous(memory_format=LAST).transpose(2, 3),
    "channels before images": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "images innermost": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "reversed": lambda x: x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "every second row": lambda x: torch.cat([x, x], 2)[:, :, ::2],
    "some channels": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "some channels, channels_last": lambda x: torch.cat([x, x], 1).contiguous(memory_format=LAST)[:, : x.shape[1]],
    "every second channel, channels_last": lambda x: torch.cat([x, x], 1).contiguous(memory_format=LAST)[:, ::2],
    "some columns, channels_last": lambda x: torch.cat([x, x], 3).contiguous(memory_format=LAST)[..., : x.shape[3]],
    "every second image, channels_last": lambda x: torch.cat([x, x]).contiguous(memory_format=LAST)[::2],
    "expanded images": lambda x: x[:1].expand(x.shape),
    "expanded images, channels_last": lambda x: x[:1].contiguous(memory_format=LAST).expand(x.shape),
    "expanded channels": lambda x: x[:, :1].expand(x.shape),
    "expanded rows": lambda x: x[:, :, :1].expand(x.shape),
    "expanded": lambda x: x[:1, :1, :1, :1].expand(x.shape),
}


def _shrunk(tensor: Tensor, shape: torch.Size, ones: tuple[int, ...]) -> Tensor:
    """Shrink `tensor` to fit an image of shape `shape`, reduced to size 1 along the axes in `ones`.

    Images are sliced. Filters, parameters and statistics keep one channel if the image does.
    """
    if tensor.shape == shape:
        return tensor[tuple(slice(0, 1 if one else None) for one in ones)].contiguous()
    if tensor.shape == (*shape[:2], 1, 1):  # a scale of each channel of each image
        return tensor[: 1 if ones[0] else None, : 1 if ones[1] else None].contiguous()
    if ones[1] and shape[1] in tensor.shape:  # filters, parameters or statistics
        return tensor.narrow(tensor.shape.index(shape[1]), 0, 1).contiguous()
    return tensor


def calls(name: str) -> Iterator[tuple[str, list[Tensor]]]:
    """Yield arguments with each layout of the image, of the last 4D tensor or of all, and each choice of axes of size 1."""
    case = CASES[name]
    dtype = torch.float64 if case.float64_strides else torch.float32
    given = [t.to("cpu", dtype if t.is_floating_point() else t.dtype) for t in (*case.tensors(), *case.others())]
    images = [i for i, t in enumerate(given) if t.dim() == 4 and t.is_floating_point()]
    for ones in product((0, 1), repeat=given[0].dim()):
        tensors = [_shrunk(t, given[0].shape, ones) for t in given]
        for chosen in {(0,), (images[-1],), tuple(images)} if images else ():
            for layout, copied in LAYOUTS.items():
                yield (
                    f"{layout}, tensors {chosen}, shape {list(tensors[0].shape)}",
                    [copied(t) if i in chosen else t for i, t in enumerate(tensors)],
                )


# These operators of torch give an axis of one element another stride than its other elementwise operators do; products with a
# scale, a stride that depends on the strides of the scale's axes of one element.
ANY_STRIDE_OF_ONE = (
    "relu6", "hardtanh", "hardsigmoid", "prelu", "batch norm, addition, PReLU", "channel_scale", "layer scale, addition",
)  # fmt: skip


def strides(case: OperatorCase, tensors: list[Tensor], of_one: bool) -> Any:
    """The strides of the results, or the type of an exception; with `of_one`, also of axes of one element."""
    try:
        result = case.function(*tensors)
    except Exception as error:
        return type(error)
    results = result if isinstance(result, tuple) else (result,)
    return [[s if of_one or n > 1 else 0 for n, s in zip(y.shape, y.stride(), strict=True)] for y in results]


@pytest.mark.parametrize("name", [name for name in CASES if len(CASES[name].shapes[0]) == 4])
def test_strides(name: str) -> None:
    computed, of_one = 0, not name.startswith(ANY_STRIDE_OF_ONE)
    for call, tensors in calls(name):
        with intercepted(lambda *_: None, "sm_90"):  # strides do not depend on values
            got = strides(CASES[name], tensors, of_one)
        expected = strides(TORCH_CASES[name], tensors, of_one)
        assert got == expected, f"{call}: {got}, torch has {expected}"
        computed += isinstance(expected, list)
    assert computed >= 4 * len(LAYOUTS)


def test_a_sequence_with_an_added_last_axis() -> None:
    """docs/differences.md: with an added last axis, torch's result is channels_last, and trinn's is contiguous."""
    x = randn(2, 4, 3).transpose(1, 2)
    for library in (tnn, F):
        assert library.batch_norm(x, None, None, training=True).is_contiguous()
    ours, torchs = (library.batch_norm(x[..., None], None, None, training=True) for library in (tnn, F))
    assert ours.is_contiguous() and torchs.is_contiguous(memory_format=LAST)
