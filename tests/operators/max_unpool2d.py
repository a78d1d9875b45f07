"""The record of layers/max_unpool2d.py."""

import torch
import torch.nn.functional as F
from torch import Tensor

import trinn.layers as tnn
from bench import shapes
from tests.support.check import DEVICE, randn
from tests.support.drawing import Drawing, DrawnCase
from tests.support.record import LARGER, Arguments, Mutant, Operator, Samples, case


def repeated_indices() -> tuple[Tensor]:
    """Two values have index 3, and two have index 7."""
    return (torch.tensor([0, 3, 3, 7, 9, 20, 7, 24, 23], device=DEVICE).reshape(1, 1, 3, 3).expand(2, 5, 3, 3).contiguous(),)


def pooled_indices(x: Tensor) -> Tensor:
    return F.max_pool2d(randn(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]), 2, return_indices=True)[1].to(x.device)


def every_fourth(x: Tensor) -> Tensor:
    return torch.arange(x.shape[2] * x.shape[3], device=x.device).mul(4).reshape(x.shape[2:]).expand(x.shape).contiguous()


def max_unpool2d(draw: Drawing) -> DrawnCase:
    """Unpooling of the result of a pooling without overlap."""
    kernel = draw.number(1, 3)
    image = draw.image()
    if min(image.shape[-2:]) < kernel:
        kernel = 1
    y, indices = F.max_pool2d(image.contiguous(), kernel, return_indices=True)
    x = y.contiguous(memory_format=torch.channels_last) if y.dim() == 4 and draw.number(0, 1) else y
    size = draw.one_of(None, tuple(image.shape[-2:]), tuple(n + 2 for n in image.shape[-2:]))
    options = {"kernel_size": kernel, "output_size": size}
    return DrawnCase(tnn.max_unpool2d, F.max_unpool2d, [x, indices], options, moves=True)


ARGUMENTS = Arguments({"kernel_size": 2}, {"indices": lambda: torch.arange(50, device=DEVICE).view(10, 5).expand(1, 2, 10, 5)})
MUTANTS = (
    Mutant("unpooling: zeros are not stored", "kernels/max_unpool2d.py", "tl.store(y + at, tl.full((FILL,), 0, tl.int32).to(y.dtype.element_ty), mask=place < out_pixels)", "pass", "max_unpool2d"),
    Mutant("unpooling: the first value is kept", "kernels/max_unpool2d.py", "lane[None, :] > lane[:, None]", "lane[None, :] < lane[:, None]", "max_unpool2d"),
    Mutant("unpooling: positions use the height as the width", "kernels/max_unpool2d.py", "_place, size[1], channels_last", "_place, size[0], channels_last", "max_unpool2d"),
    Mutant("unpooling: second derivatives are not added", "layers/max_unpool2d.py", "return ops.max_unpool2d_add(x, indices, size)", "return ops.max_unpool2d_forward(x, indices, size)", "max_unpool2d"),
)  # fmt: skip
OPERATOR = Operator(
    # Of several values with the same index max_unpool2d keeps one, and its gradient goes to all of them: it is no derivative.
    calls=lambda nn: {
        "max_unpool2d": case(
            nn.max_unpool2d, (2, 5, 3, 3), kernel_size=2, output_size=(5, 5), others=repeated_indices, differentiable=False
        )
    },
    precision=lambda nn: {"max_unpool2d": case(lambda x: nn.max_unpool2d(x, pooled_indices(x), 2), LARGER)},
    programs=lambda nn: {"max_unpool2d": case(lambda x: nn.max_unpool2d(x, every_fourth(x), 2), (4, 16, 32, 32), programs=65)},
    draws=(max_unpool2d,),
    functions={"max_unpool2d": ARGUMENTS},
    modules={"MaxUnpool2d": ARGUMENTS},
    samples={
        "max_unpool2d": Samples(shards=4, differentiable=False),
        "max_unpool2d, no overlap": Samples(variant="grad"),
    },
    patched={"F.max_unpool2d": lambda x: F.max_unpool2d(x[:, :, ::3, ::3], every_fourth(x[:, :, ::3, ::3]) // 4, (2, 2))},
    passes={"unpool": shapes.unpool((2, 3, 8, 8), (16, 16))},
    many_passes={"unpool": shapes.unpool((2**19, 8, 32, 32), (64, 64))},
    last_image={"max_unpool2d": lambda x: tnn.MaxUnpool2d(2)(*tnn.MaxPool2d(2, return_indices=True)(x))},
    mutants=MUTANTS,
)
