from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

import trinn.layers as tnn
from tests.cases import named
from tests.check import DEVICE, DTYPES, check, gradients, raises_like, randn
from trinn.kernels import ops
from trinn.layers.pad2d import pad2d

MODES = ("reflect", "replicate", "circular")
CASES = {
    "each edge another width": ((2, 3, 5, 6), (1, 2, 3, 4)),
    "as wide as may be": ((1, 2, 4, 3), (2, 2, 3, 3)),
    "one edge": ((1, 2, 4, 3), (0, 2, 0, 0)),
    "unbatched": ((3, 4, 5), (1, 1, 2, 2)),
    "empty batch": ((0, 3, 4, 5), (1, 1, 2, 2)),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", named(CASES))
def test_equals_torch(case: tuple[tuple[int, ...], tuple[int, int, int, int]], mode: str) -> None:
    check(pad2d, F.pad, randn(*case[0]), pad=case[1], mode=mode)


def test_one_pixel() -> None:
    """Replicating one pixel copies it everywhere; wrapping it around goes once."""
    check(pad2d, F.pad, randn(2, 3, 1, 1), pad=(1, 2, 3, 4), mode="replicate")
    check(pad2d, F.pad, randn(2, 3, 1, 1), pad=(1, 1, 1, 0), mode="circular")
    check(pad2d, F.pad, randn(2, 3, 2, 1), pad=(0, 0, 1, 1), mode="reflect")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype: torch.dtype, mode: str) -> None:
    check(pad2d, F.pad, randn(2, 3, 4, 5, dtype=dtype), pad=(1, 2, 3, 2), mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_layouts(mode: str) -> None:
    for x in (randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last), randn(2, 3, 5, 8).transpose(2, 3)[:, :, ::2]):
        check(pad2d, F.pad, x, pad=(1, 2, 3, 2), mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_gradients(mode: str) -> None:
    """Twice differentiable; the same bits for the same gradient, also where torch's reflection refuses to promise that."""
    x = randn(1, 2, 4, 3, dtype=torch.float64).requires_grad_()
    assert gradcheck(lambda x: pad2d(x, (1, 2, 3, 1), mode), [x], fast_mode=True)
    assert gradgradcheck(lambda x: pad2d(x, (1, 2, 3, 1), mode), [x], fast_mode=True)
    (first,), (again,) = (gradients(pad2d, randn(2, 3, 4, 5), pad=(1, 2, 3, 2), mode=mode) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_fakes_are_exact(memory_format: torch.memory_format) -> None:
    x = randn(2, 4, 5, 6).contiguous(memory_format=memory_format)
    for operator in (ops.pad2d_forward.default, ops.pad2d_backward.default):
        torch.library.opcheck(operator, (x, (1, 1, 1, 0), "reflect"), test_utils=("test_schema", "test_faketensor"))


ERRORS: dict[str, tuple[tuple[int, ...], tuple[int, int, int, int], str]] = {
    "reflection as wide as the image": ((1, 2, 4, 5), (5, 1, 1, 1), "reflect"),
    "wrapping more than once": ((1, 2, 4, 5), (1, 1, 5, 1), "circular"),
    "no rows": ((1, 2, 0, 5), (1, 1, 1, 1), "replicate"),
    "another mode": ((1, 2, 4, 5), (1, 1, 1, 1), "mirror"),
}


@pytest.mark.parametrize("case", named(ERRORS))
def test_errors(case: tuple[Any, ...]) -> None:
    raises_like(F.pad, pad2d, randn(*case[0]), *case[1:])


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("padding", [(2, 1), "same"])
@pytest.mark.parametrize("mode", MODES)
def test_conv2d_pads_with_it(mode: str, padding: Any) -> None:
    ours, torchs = (nn.Conv2d(3, 4, (4, 3), padding=padding, padding_mode=mode).to(DEVICE) for nn in (tnn, torch.nn))
    torchs.load_state_dict(ours.state_dict())
    assert repr(ours) == repr(torchs)
    x = randn(2, 3, 5, 6)
    torch.testing.assert_close(ours(x), torchs(x))
    for got, expected in zip(gradients(ours, x), gradients(torchs, x), strict=True):
        torch.testing.assert_close(got, expected)
