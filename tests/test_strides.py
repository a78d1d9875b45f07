"""The strides of every operator's outputs are torch's, for images and filters of every layout and with axes of one element."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import trinn.layers as tnn
from tests.check import randn
from tests.every import EVERY, TORCHS, Every
from trinn.kernels.runtime.observe import intercepted

LAST = torch.channels_last

# Copies of an image, or of filters, that lie in memory in another way.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "channels_last": lambda x: x.to(memory_format=LAST),
    "channels_last, also where it is contiguous": lambda x: torch.empty(x.shape, dtype=x.dtype, memory_format=LAST).copy_(x),
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
# Where torch's float64 has strides of its own, of a loop over groups: docs/differences.md.
FLOAT32 = ("conv2d, depthwise", "conv_transpose2d, depthwise")


def _one(tensor: Tensor, shape: torch.Size, ones: tuple[int, ...]) -> Tensor:
    """A tensor with as many channels, or of such an image's size, as an image that has one element along some axes."""
    if tensor.shape == shape:
        return tensor[tuple(slice(0, 1 if one else None) for one in ones)].contiguous()
    if ones[1] and shape[1] in tensor.shape:  # filters, parameters or statistics
        return tensor.narrow(tensor.shape.index(shape[1]), 0, 1).contiguous()
    return tensor


def calls(name: str) -> Iterator[tuple[str, list[Tensor]]]:
    """Arguments for each layout of the image, of what else has four axes, or of all, and each choice of axes of one element."""
    case, dtype = EVERY[name], torch.float32 if name in FLOAT32 else torch.float64
    given = [t.to("cpu", dtype if t.is_floating_point() else t.dtype) for t in (*case.tensors(), *case.others())]
    places = [i for i, t in enumerate(given) if t.dim() == 4 and t.is_floating_point()]
    for ones in product((0, 1), repeat=given[0].dim()):
        tensors = [_one(t, given[0].shape, ones) for t in given]
        for laid in {(0,), (places[-1],), tuple(places)} if places else ():
            for layout, place in LAYOUTS.items():
                yield (
                    f"{layout}, tensors {laid}, shape {list(tensors[0].shape)}",
                    [place(t) if i in laid else t for i, t in enumerate(tensors)],
                )


def strides(case: Every, tensors: list[Tensor]) -> Any:
    try:
        result = case.function(*tensors)
    except Exception as error:
        return type(error)
    return [y.stride() for y in (result if isinstance(result, tuple) else (result,))]


@pytest.mark.parametrize("name", [name for name in EVERY if len(EVERY[name].shapes[0]) == 4])
def test_strides(name: str) -> None:
    computed = 0
    for what, tensors in calls(name):
        with intercepted(lambda *_: None, "sm_90"):  # where outputs lie does not depend on what is in them
            got = strides(EVERY[name], tensors)
        expected = strides(TORCHS[name], tensors)
        assert got == expected, f"{what}: {got}, torch has {expected}"
        computed += isinstance(expected, list)
    assert computed >= 4 * len(LAYOUTS)


def test_a_sequence_with_a_last_axis() -> None:
    """docs/differences.md: only torch tells it from a sequence."""
    x = randn(2, 4, 3).transpose(1, 2)
    for library in (tnn, F):
        assert library.batch_norm(x, None, None, training=True).is_contiguous()
    ours, torchs = (library.batch_norm(x[..., None], None, None, training=True) for library in (tnn, F))
    assert ours.is_contiguous() and torchs.is_contiguous(memory_format=LAST)
