"""Precision of matrix products.

16-bit inputs multiply exactly into a float32 accumulator. float64 stays float64. float32 follows torch's flags, the old ones
(`torch.backends.cudnn.allow_tf32`, `torch.backends.cuda.matmul.allow_tf32`, `set_float32_matmul_precision`) and the new one
(`fp32_precision`): TF32 where the user allows it, otherwise a product of float32 accuracy. With TF32 tensor cores this is three
TF32 products (`tf32x3`), elsewhere plain float32 multiplication (`ieee`). Convolutions through TMA use six bfloat16 products
instead (`bf16x6`): relayout.py splits each float32 into three bf16 terms of 8 bits, with the float32 as their sum. Products of
such terms are exact, and wgmma reads 16-bit operands from shared memory in either order of their axes.

Long sums: a published model of the H100's matrix units, compared with it bit by bit (Khattak and Mikaitis, "Accurate Models of
NVIDIA Tensor Cores", arXiv:2512.07004), truncates. An instruction aligns its exact products and the accumulator to the largest
of them, keeps two bits more than float32, truncates the rest, and truncates their sum to float32. These errors point in one
direction, so they grow with the number of instructions. In sums emulated with this model, six bf16 products in one accumulator
exceed twice the error of float32 multiply-adds from 256 numbers on. They stay below it, up to 16384 numbers, if rounding
additions outside the matrix unit add the products of the first terms in blocks of at most 128 numbers (`dot` with APART);
blocks of 256 exceed it. The five other products are small and need no blocks. Three bf16 products, or one TF32 product, exceed
it at any length; `tf32x3`, added block by block, does not. An emulation is no measurement: docs/differences.md has errors
measured on an H200.
"""

import torch
import triton.language as tl

from ..runtime.hardware import architecture_of
from ..runtime.interpreter import INTERPRETED
from .function import device_function

_INTERPRETED = tl.constexpr(INTERPRETED)


def conv_precision(dtype: torch.dtype, device: torch.device) -> str:
    """`input_precision` of a convolution's products. torch allows TF32 here by default."""
    return _precision(dtype, device, torch.backends.cudnn.conv.fp32_precision)


def matmul_precision(dtype: torch.dtype, device: torch.device) -> str:
    """`input_precision` of a linear layer's products. torch forbids TF32 here by default."""
    return _precision(dtype, device, torch.backends.cuda.matmul.fp32_precision)


def _precision(dtype: torch.dtype, device: torch.device, allowed: str) -> str:
    if dtype != torch.float32 or not has_tf32(architecture_of(device)):
        return "ieee"
    return "tf32" if allowed == "tf32" else "tf32x3"


def has_tf32(architecture: str) -> bool:
    """Whether the GPU has TF32 tensor cores: NVIDIA from Ampere on."""
    return architecture.startswith("sm_") and int(architecture[3:]) >= 80


def accumulator(dtype: torch.dtype, whole: bool = False) -> tl.dtype:
    """dtype of the accumulator: float64 for float64, int64 for integers if results are `whole` numbers, otherwise float32."""
    if whole and not dtype.is_floating_point:
        return tl.int64
    return tl.float64 if dtype == torch.float64 else tl.float32


@device_function
def dot(a, b, acc, PRECISION: tl.constexpr, APART: tl.constexpr = False):
    """acc + a @ b. APART adds acc outside the tensor core, with rounding: a tensor core truncates its sum towards zero."""
    if _INTERPRETED:  # NumPy has no bfloat16; widening changes no product
        a = widen(a).to(acc.dtype)
        b = widen(b).to(acc.dtype)
    # Setting max_num_imprecise_acc stops Triton from fusing the addition into the dot.
    LIMIT: tl.constexpr = 1 if APART else 0
    start = None if APART else acc
    product = tl.dot(a, b, start, input_precision=PRECISION, out_dtype=acc.dtype, max_num_imprecise_acc=LIMIT)
    return acc + product if APART else product


# The product of two float32 needs the product of their first bf16 terms and these 5 of the 8 others. The rest is negligible.
CROSS_PAIRS = 5


@device_function
def term_pair(number, PAIRS: tl.constexpr):
    """(term of the first operand, term of the second) in product `number` of PAIRS products.

    The CROSS_PAIRS products are 0 1, 1 0, 0 2, 2 0 and 1 1, packed in two bits per term. A single product is 0 0.
    """
    if PAIRS == 1:
        return 0, 0
    return (0b01_10_00_01_00 >> 2 * number) & 3, (0b01_00_10_00_01 >> 2 * number) & 3


@device_function
def widen(value):
    """bfloat16 converted to float32; any other value unchanged. NumPy, under the interpreter, cannot compare bfloat16.

    The bits of a bfloat16 are the upper half of a float32's. The interpreter's own conversion loses subnormals.
    """
    if value.dtype == tl.bfloat16:
        value = (value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return value


@device_function
def narrow(value, DTYPE: tl.constexpr):
    """The value converted to DTYPE. Under the interpreter also to bfloat16 as on a GPU: to nearest even, with subnormals."""
    if _INTERPRETED and DTYPE == tl.bfloat16:
        bits = value.to(tl.float32).to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        value = tl.where(value != value, 0x7FC0, rounded).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        value = value.to(DTYPE)
    return value


@device_function
def beats(value, best):
    """Whether a later value replaces the maximum so far: it is larger, or NaN."""
    return (value > best) | (value != value)


def lowest(dtype: torch.dtype) -> float | int:
    """The lowest value of a dtype."""
    return float("-inf") if dtype.is_floating_point else torch.iinfo(dtype).min


@device_function
def divide(value, by):
    """value / by in one dtype, rounded to nearest. Triton's own float32 division may be off by two units in the last place."""
    if value.dtype == tl.float32:
        value = tl.div_rn(value, by)
    else:
        value = value / by
    return value


@device_function
def round_to(value, DTYPE: tl.constexpr):
    """The value converted to DTYPE; floating point becomes the nearest integer."""
    if DTYPE.is_int() and value.dtype.is_floating():
        value = tl.floor(value + 0.5)
    return value.to(DTYPE)
