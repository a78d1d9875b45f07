"""Addition and scaling of channels: layouts, dtypes, special values, in place, derivatives, errors."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import trinn.layers as tnn
from tests.support.cases import named
from tests.support.check import DEVICE, DTYPES, check, raises_like, randn
from trinn.kernels.runtime.settings import settings
from trinn.layers.scale_add import apply_channel_scale

Pair = tuple[Tensor, Tensor]
LAST = torch.channels_last


def image(*shape: int, seed: int = 0, channels_last: bool = False) -> Tensor:
    x = randn(*shape, seed=seed)
    return x.contiguous(memory_format=LAST) if channels_last else x


SUMS: dict[str, Callable[[], Pair]] = {
    "past a block": lambda: (randn(257), randn(257, seed=1)),
    "no axis": lambda: (randn(), randn(seed=1)),
    "empty": lambda: (randn(2, 0, 3), randn(2, 0, 3)),
    "channels_last": lambda: (image(2, 3, 4, 5, channels_last=True), image(2, 3, 4, 5, seed=1, channels_last=True)),
    "contiguous and channels_last": lambda: (image(2, 3, 4, 5), image(2, 3, 4, 5, seed=1, channels_last=True)),
    "channels_last and contiguous": lambda: (image(2, 3, 4, 5, channels_last=True), image(2, 3, 4, 5, seed=1)),
    "one channel": lambda: (image(2, 1, 4, 5, channels_last=True), randn(2, 4, 5, 1, seed=1).permute(0, 3, 1, 2)),
    "transposed": lambda: (randn(4, 5), randn(5, 4, seed=1).mT),
    "expanded": lambda: (randn(3, 1, 4).expand(3, 5, 4), randn(3, 5, 4, seed=1)),
    "sliced": lambda: (randn(3, 8)[:, ::2], randn(3, 4, 2, seed=1)[..., 0]),
    "itself": lambda: (randn(7, 5),) * 2,
}
SCALED: dict[str, Callable[[], Pair]] = {
    "of each image": lambda: (randn(3, 5, 4, 6), randn(3, 5, 1, 1, seed=1)),
    "of all images": lambda: (randn(3, 5, 4, 6), randn(5, 1, 1, seed=1)),
    "of all images, four axes": lambda: (randn(3, 5, 4, 6), randn(1, 5, 1, 1, seed=1)),
    "of features": lambda: (randn(3, 4, 6, 5), randn(5, seed=1)),
    "channels_last": lambda: (image(3, 5, 4, 6, channels_last=True), randn(3, 5, 1, 1, seed=1)),
    "channels_last, past a tile": lambda: (image(2, 70, 7, 7, channels_last=True), randn(70, 1, 1, seed=1)),
    "channels_last, in splits": lambda: (image(1, 3, 61, 53, channels_last=True), randn(1, 3, 1, 1, seed=1)),
    "small planes": lambda: (randn(4, 37, 7, 7), randn(4, 37, 1, 1, seed=1)),
    "large planes, in splits": lambda: (randn(2, 1, 41, 83), randn(2, 1, 1, 1, seed=1)),
    "one pixel": lambda: (randn(3, 5, 1, 1), randn(3, 5, 1, 1, seed=1)),
    "transposed planes": lambda: (randn(2, 3, 5, 4).mT, randn(3, 2, 1, 1, seed=1).transpose(0, 1)),
    "images innermost": lambda: (randn(3, 4, 6, 5).permute(3, 1, 0, 2), randn(5, 4, 1, 1, seed=1)),
    "expanded": lambda: (randn(1, 3, 1, 5).expand(2, 3, 4, 5), randn(2, 1, 1, 1, seed=1).expand(2, 3, 1, 1)),
    "no image": lambda: (randn(0, 5, 4, 6), randn(5, 1, 1, seed=1)),
    "no pixel": lambda: (randn(2, 5, 0, 6), randn(2, 5, 1, 1, seed=1)),
}


@pytest.mark.parametrize("case", named(SUMS))
def test_sums(case: Callable[[], Pair]) -> None:
    check(tnn.add, torch.add, *case())


@pytest.mark.parametrize("case", named(SCALED))
def test_scaled(case: Callable[[], Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with planes in splits."""
    x, scale = case()
    check(tnn.channel_scale, torch.mul, x, scale)
    monkeypatch.setattr(settings, "wanted_programs", 8)
    monkeypatch.setattr(settings, "interpreted_block", 16)
    check(tnn.channel_scale, torch.mul, x, scale)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype: torch.dtype) -> None:
    x, other, scale = (randn(*shape, dtype=dtype, seed=i) for i, shape in enumerate(((2, 3, 5, 4), (2, 3, 5, 4), (2, 3, 1, 1))))
    check(tnn.add, torch.add, x, other)
    check(tnn.channel_scale, torch.mul, x, scale)
    check(tnn.channel_scale, lambda x, s, r: torch.addcmul(r, x, s), x, scale, other)


@pytest.mark.parametrize("of_x", DTYPES)
@pytest.mark.parametrize("of_other", DTYPES)
def test_mixed_dtypes(of_other: torch.dtype, of_x: torch.dtype) -> None:
    """The results have the wider dtype; each gradient has the dtype of its tensor."""
    x, other, scale = randn(2, 3, 5, 4, dtype=of_x), randn(2, 3, 5, 4, dtype=of_other, seed=1), randn(3, 1, 1, dtype=of_other)
    results = []
    for add, multiply in ((tnn.add, tnn.channel_scale), (torch.add, torch.mul)):
        leaves = [t.detach().clone().requires_grad_() for t in (x, other, scale)]
        y = add(leaves[0], leaves[1]), multiply(leaves[0], leaves[2])
        results.append((*y, *torch.autograd.grad([v.sum() for v in y], leaves)))
    narrow = min((of_x, of_other), key=lambda dtype: dtype.itemsize)
    tolerance = 4 * torch.finfo(torch.bfloat16 if torch.bfloat16 in (of_x, of_other) else narrow).eps
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint8])
def test_integers(dtype: torch.dtype) -> None:
    """They wrap around, as in torch."""
    x = torch.arange(-300, 300, 7, device=DEVICE).to(dtype)
    assert torch.equal(tnn.add(x, x.flip(0)), x + x.flip(0)) and torch.equal(tnn.add_(x.clone(), x), x + x)


def test_an_infinite_scale() -> None:
    """Lanes of a tile without a pixel do not count in the gradient of the scale."""
    results = []
    for scaled in (lambda x, s: apply_channel_scale(x, s, None, "sigmoid"), lambda x, s: torch.sigmoid(x * s)):
        x, scale = (
            image(1, 2, 1, 3, channels_last=True).abs(),
            torch.full((1, 2, 1, 1), float("inf"), device=DEVICE, requires_grad=True),
        )
        results.append(torch.autograd.grad(scaled(x, scale).sum(), scale)[0])
    assert torch.equal(*results) and results[0].eq(0).all()


def test_special_values() -> None:
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 1e-40, 3e38], device=DEVICE)
    x, other = values[:, None].expand(7, 7), values.expand(7, 7)
    torch.testing.assert_close(tnn.add(x, other), x + other, rtol=0, atol=0, equal_nan=True)
    planes = x.reshape(7, 7, 1, 1)
    scaled = tnn.channel_scale(planes, other.reshape(7, 7, 1, 1)), planes * other.reshape(7, 7, 1, 1)
    torch.testing.assert_close(*scaled, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(scaled[0].signbit()[1:, 1:], scaled[1].signbit()[1:, 1:])


@pytest.mark.parametrize("of", ["whole", "rows", "itself", "shifted", "expanded"])
def test_in_place(of: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory, the version and the gradients are torch's; torch refuses operands that overlap partly, and trinn adds them."""
    monkeypatch.setattr(settings, "interpreted_block", 1)  # several programs, one after the other
    leaves = [randn(9, 4, seed=i).requires_grad_() for i in range(2)]
    results = []
    for function in (tnn.add_, Tensor.add_):
        x, other = leaves[0] * 1, leaves[1]
        x, other = {
            "whole": (x, other), "rows": (x[1:, ::2], other[1:, ::2]), "itself": (x, x), "shifted": (x[1:], x[:-1].clone()),
            "expanded": (x, other[:1].expand(9, 4)),
        }[of]  # fmt: skip
        before = x._version
        if of == "shifted" and function is tnn.add_:
            other = x._base[:-1] if x._base is not None else other
        y = function(x, other)
        gradients = torch.autograd.grad((y * y).sum(), leaves, allow_unused=True) if of != "shifted" else ()
        results.append((x.detach().clone(), gradients))
        assert y is x and x._version > before
    torch.testing.assert_close(*results)


def test_derivatives() -> None:
    """First and second derivatives, and forward mode, against differences."""
    x, other, scale = (
        randn(*shape, dtype=torch.float64, seed=i).requires_grad_()
        for i, shape in enumerate(((2, 2, 1, 2),) * 2 + ((2, 1, 1),))
    )
    for function, tensors in ((tnn.add, (x, other)), (tnn.channel_scale, (x, scale, other))):
        assert gradcheck(function, tensors, check_forward_ad=True, check_batched_grad=True)
        assert gradgradcheck(function, tensors, check_fwd_over_rev=True)


def test_what_is_refused() -> None:
    x = randn(2, 3, 4, 5)
    for other in (randn(4, 5), x.to(torch.int32), randn(2, 3, 4, 1)):
        with pytest.raises(NotImplementedError, match="one shape and device"):
            tnn.add(x, other)
    for scale in (randn(3), randn(2, 1, 1, 1), randn(2, 3, 1, 5), randn(3, 1, 1).int(), randn(2, 3)):
        with pytest.raises(NotImplementedError, match="channel_scale: expected"):
            tnn.channel_scale(x, scale)
    with pytest.raises(NotImplementedError, match="residual of the shape"):
        tnn.channel_scale(x, randn(3, 1, 1), randn(4, 5))
    raises_like(lambda: tnn.add_(x.clone().requires_grad_(), x), lambda: x.clone().requires_grad_().add_(x))
    raises_like(lambda: tnn.add_(x[:1].expand(2, 3, 4, 5), x), lambda: x[:1].expand(2, 3, 4, 5).add_(x))


def test_layers() -> None:
    """The parameters and results of torchvision's modules."""
    x = randn(2, 6, 5, 4)
    scale = tnn.ChannelScale(6, 0.5).to(DEVICE)
    assert repr(scale) == "ChannelScale(6, value=0.5)" and scale.state_dict()["weight"].shape == (6, 1, 1)
    torch.testing.assert_close(scale(x), 0.5 * x)
    torch.testing.assert_close(scale(x, x), 1.5 * x)
    excitation = tnn.SqueezeExcitation(6, 2, scale_activation=tnn.Hardsigmoid).to(DEVICE)
    assert list(excitation.state_dict()) == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    hidden = torch.relu(torch.nn.functional.conv2d(x.mean((2, 3), keepdim=True), excitation.fc1.weight, excitation.fc1.bias))
    gate = torch.nn.functional.conv2d(hidden, excitation.fc2.weight, excitation.fc2.bias)
    torch.testing.assert_close(excitation(x), x * torch.nn.functional.hardsigmoid(gate))
