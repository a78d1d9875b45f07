"""The record of layers/pad2d.py."""

import torch
import torch.nn.functional as F

from bench import shapes
from tests.support.record import IMAGE, MEDIUM, ManyElements, Mutant, Operator, case
from trinn.kernels import ops
from trinn.layers.pad2d import pad2d

MUTANTS = (
    Mutant("reflection repeats the edge", "kernels/pad2d.py", "(size - 1) - tl.abs((size - 1) - tl.abs(position - near))", "(size - 1) - tl.abs((size - 1) - tl.abs(position - near + 1) + 1)", "pad2d"),
    Mutant("circular padding is off by one", "kernels/pad2d.py", "return (position - near + size) % size", "return (position - near + size - 1) % size", "pad2d"),
    Mutant("replication repeats the second pixel", "kernels/pad2d.py", "tl.minimum(tl.maximum(position - near, 0), size - 1)", "tl.minimum(tl.maximum(position - near, 1), size - 1)", "pad2d"),
    Mutant("replication: no gradient comes from beyond the far edge", "kernels/pad2d.py", "tl.where(position == size - 1, out_size - 1, position + near)", "position + near", "pad2d"),
)  # fmt: skip
OPERATOR = Operator(
    calls=lambda nn: {
        "pad2d, reflect": case(nn.pad, IMAGE, pad=(2, 1, 3, 0), mode="reflect"),
        "pad2d, replicate": case(nn.pad, IMAGE, pad=(2, 1, -1, 4), mode="replicate"),
        "pad2d, circular": case(nn.pad, IMAGE, pad=(2, 1, 3, 0), mode="circular", fake_cuda=False),
    },
    programs=lambda nn: {"pad2d": case(nn.pad, MEDIUM, pad=(1, 1, 1, 1), mode="reflect", programs=5)},
    patched={"F.pad": lambda x: F.pad(x, (2, 1, 1, 0), mode="reflect")},
    passes={"pad": shapes.pad((2, 3, 8, 8), 2)},
    many_passes={"pad": shapes.pad((2**20, 8, 32, 32), 2)},
    last_image={"pad2d": lambda x: pad2d(x, (1, 2, 3, 0), "reflect")},
    many_elements={
        "pad2d": ManyElements(lambda x: ops.pad2d_forward(x, (1, 2, 3, 1), "reflect"), (2, 8, 8), torch.int8),
        "pad2d backward": ManyElements(lambda x: ops.pad2d_backward(x, (1, 2, 1, 1), "reflect"), (2, 8, 8)),
    },
    mutants=MUTANTS,
)
