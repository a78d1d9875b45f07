"""The record of layers/fused.py."""

from collections.abc import Mapping
from typing import Any

import trinn.layers as tnn
from tests.support.record import IMAGE, Mutant, Operator, OperatorCase, called


def calls(nn: Any) -> Mapping[str, OperatorCase]:
    def conv() -> Any:
        return nn.Conv2d(5, 3, 3, padding=1)

    filters = (3, 5, 3, 3), (3,)
    return {
        "conv2d, ReLU": OperatorCase(called(nn.ConvReLU2d(conv(), nn.ReLU())), (IMAGE, *filters)),
        "conv2d, ReLU, max pool": OperatorCase(
            called(nn.ConvReLUMaxPool2d(conv(), nn.ReLU(), nn.MaxPool2d(2))), (IMAGE, *filters)
        ),
        "conv2d, batch norm, ReLU": OperatorCase(
            called(nn.ConvBNReLU2d(conv(), nn.BatchNorm2d(3, track_running_stats=False), nn.ReLU())),
            (IMAGE, *filters, (3,), (3,)),
            per_image=False,
            fake_cuda=False,
        ),
        "batch norm, addition, ReLU": OperatorCase(
            called(nn.BNAddReLU2d(nn.BatchNorm2d(5, track_running_stats=False), nn.ReLU())),
            (IMAGE, IMAGE, (5,), (5,)),
            per_image=False,
        ),
        "linear, ReLU": OperatorCase(called(nn.LinearReLU(nn.Linear(37, 19), nn.ReLU())), ((3, 37), (19, 37), (19,))),
    }


def programs(nn: Any) -> Mapping[str, OperatorCase]:
    def conv() -> Any:
        return nn.Conv2d(16, 32, 3, padding=1)

    image, filters = (4, 16, 64, 64), ((32, 16, 3, 3), (32,))
    return {
        "linear, ReLU": OperatorCase(
            called(nn.LinearReLU(nn.Linear(400, 120), nn.ReLU())), ((128, 400), (120, 400), (120,)), programs=6
        ),
        "batch norm, addition, ReLU": OperatorCase(
            called(nn.BNAddReLU2d(nn.BatchNorm2d(16, track_running_stats=False), nn.ReLU())),
            (image, image, (16,), (16,)),
            programs=4,
        ),
        "conv2d, ReLU, max pool": OperatorCase(
            called(nn.ConvReLUMaxPool2d(conv(), nn.ReLU(), nn.MaxPool2d(2))), (image, *filters), programs=7
        ),
        "conv2d, batch norm, ReLU": OperatorCase(
            called(nn.ConvBNReLU2d(conv(), nn.BatchNorm2d(32, track_running_stats=False), nn.ReLU())),
            (image, *filters, (32,), (32,)),
            programs=9,
        ),
    }


MUTANTS = (
    Mutant("overhanging windows are pooled in a tile", "kernels/conv2d/fused.py", " and tuple(pooled) == (size[0] // window[0], size[1] // window[1])", "", "fused"),
    Mutant("pooling in a tile ignores padding", "kernels/conv2d/fused.py", "max(*window_padding, 0) == 0 and ", "", "fused"),
    Mutant("modules with hooks are fused", "layers/fused.py", "and not module._forward_pre_hooks and not module._forward_hooks", "", "fuse"),
    Mutant("fused evaluation loses gradients", "layers/fused_functional.py", "wanted = torch.is_grad_enabled() and any(v is not None", "wanted = False and any(v is not None", "fused"),
    Mutant("any layer accepts a marked result", "layers/fused.py", "if place < len(layers) and layers[place] is module:", "if place < len(layers):", "fuse"),
    Mutant("a patched class is fused", "layers/fused.py", "_methods(kind) == _PLAIN_METHODS[cls]", "True", "fuse"),
)  # fmt: skip
OPERATOR = Operator(
    calls=calls,
    programs=programs,
    fused_modules={
        "BNAddReLU2d": lambda: tnn.BNAddReLU2d(tnn.BatchNorm2d(4), tnn.ReLU()),
        "BNReLU2d": lambda: tnn.BNReLU2d(tnn.BatchNorm2d(4), tnn.ReLU()),
        "ConvBNReLU2d": lambda: tnn.ConvBNReLU2d(tnn.Conv2d(4, 4, 1), tnn.BatchNorm2d(4), tnn.ReLU()),
        "ConvReLU2d": lambda: tnn.ConvReLU2d(tnn.Conv2d(4, 4, 1), tnn.ReLU()),
        "ConvReLUMaxPool2d": lambda: tnn.ConvReLUMaxPool2d(tnn.Conv2d(4, 4, 1), tnn.ReLU(), tnn.MaxPool2d(2)),
        "LinearReLU": lambda: tnn.LinearReLU(tnn.Linear(6, 6), tnn.ReLU()),
    },
    mutants=MUTANTS,
)
