"""Draws the parts of a random call: sizes, options, and tensors with values of many kinds in many memory layouts."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.check import DEVICE, DTYPES, randn
from trinn.kernels.runtime.interpreter import INTERPRETED

with contextlib.suppress(ImportError):  # only tests/fuzz.py draws; the other tests run without hypothesis
    import hypothesis
    from hypothesis import strategies as st


class DrawnCase(NamedTuple):
    """A call of trinn and of torch with the same tensors."""

    ours: Callable[..., Any]
    torchs: Callable[..., Any]
    tensors: list[Tensor | None]
    options: dict[str, Any]
    condition: float = 1.0  # condition number of the sums: the size of the addends relative to the sum
    moves: bool = False  # each result is a copy of an input value, so results are exact
    subnormal: bool = False  # outputs are subnormal
    more_nan: tuple[str, ...] = ()  # results with more NaN than torch, by docs/differences.md
    fewer_nan: tuple[str, ...] = ()  # results with fewer NaN than torch


class Drawing:
    """Draws the parts of a case."""

    def __init__(self, data: "st.DataObject") -> None:
        self.data = data
        self.dtype = self.one_of(*DTYPES)
        self.count = 0
        self.layouts: tuple[str, ...] = ("contiguous", "channels_last", "transposed", "sliced", "offset", "expanded", "one")

    def number(self, least: int, most: int) -> int:
        return self.data.draw(st.integers(least, most))

    def one_of(self, *choices: Any) -> Any:
        return self.data.draw(st.sampled_from(choices))

    def real(self, least: float, most: float) -> float:
        return self.data.draw(st.floats(least, most))

    def assume(self, condition: bool) -> None:
        """Discard the case if the condition is false."""
        hypothesis.assume(condition)

    def seldom(self) -> bool:
        return self.number(0, 7) == 7

    def pair(self, least: int, most: int) -> Any:
        """A number or a pair."""
        first = self.number(least, most)
        return first if self.number(0, 1) else (first, self.number(least, most))

    def tensor(self, shape: tuple[int, ...], values: str = "normal") -> Tensor:
        """A tensor of this shape with values of one kind, in a drawn layout."""
        self.count += 1
        tensor = values_of(values, shape, self.dtype, self.count)
        return laid_out(tensor, self.one_of(*self.layouts))

    def image(self, values: str = "normal", channels: int | None = None) -> Tensor:
        """(N, C, H, W), sometimes with N = 0 or without N."""
        shape = self.number(1, 3), channels or self.number(1, 5), self.number(1, 9), self.number(1, 9)
        if self.seldom():
            shape = (0, *shape[1:])
        return self.tensor(shape[1:] if self.seldom() else shape, values)

    def values_to_move(self) -> str:
        """Any kind of values, for operators that only move values."""
        # The interpreter flushes subnormal bfloat16 to 0.
        kinds = ("subnormal",) if not (INTERPRETED and self.dtype == torch.bfloat16) else ()
        return self.one_of("normal", "ties", "zeros", "NaN", "infinities", "huge", *kinds)

    def values_to_average(self) -> str:
        """A kind of values for averaging operators."""
        kinds = () if INTERPRETED and self.dtype == torch.bfloat16 else ("subnormal",)
        return self.one_of("normal", "ties", "zeros", "NaN", "infinities", *kinds)

    def values_to_sum(self) -> str:
        """A kind of values for summing operators."""
        return self.one_of("normal", "ties", "zeros", "NaN", "infinities")


def values_of(kind: str, shape: tuple[int, ...], dtype: torch.dtype, number: int) -> Tensor:
    tensor = randn(*shape, dtype=dtype, seed=number)
    if kind == "ties":
        return tensor.round()
    chosen = randn(*shape, seed=number + 50) > 1
    if kind == "zeros":
        return torch.where(chosen, torch.tensor(-0.0, dtype=dtype, device=DEVICE), (tensor > 0).to(dtype))
    if kind == "NaN":
        return tensor.masked_fill(chosen, float("nan"))
    if kind == "infinities":
        return torch.where(chosen, tensor.sign() * float("inf"), tensor)
    if kind == "subnormal":
        return tensor * torch.finfo(dtype).tiny
    if kind == "huge":
        return tensor * (torch.finfo(dtype).max / 8)
    return tensor


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout."""
    if layout == "channels_last" and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "transposed" and tensor.dim() > 1:
        return tensor.mT.contiguous().mT
    if layout == "sliced":
        return torch.stack([tensor, tensor + 1], dim=-1)[..., 0]
    if layout == "offset":
        return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)
    if layout == "expanded" and tensor.dim() > 1 and tensor.shape[0] > 0:
        return tensor[:1].expand(tensor.shape)
    if layout == "one" and tensor.numel() > 0:
        return tensor.flatten()[0].clone().expand(tensor.shape)
    if layout == "inside NaN" and tensor.dim() == 4:  # aligned for TMA
        around = F.pad(tensor, (2, 1, 1, 2, 8, 16, 1, 1), value=float("nan")).contiguous(memory_format=torch.channels_last)
        return around[1:-1, 8:-16, 1:-2, 2:-1]
    if layout == "images innermost":
        return tensor.movedim(0, -1).contiguous().movedim(-1, 0)
    return tensor
