"""Which arithmetic a matrix product uses.

16-bit inputs multiply exactly into a float32 accumulator, float64 stays float64. float32 follows torch's flags, in their
old form (`torch.backends.cudnn.allow_tf32`, `torch.backends.cuda.matmul.allow_tf32`, `set_float32_matmul_precision`) and
their new one (`fp32_precision`): TF32 where the user allows it, else a product of float32 accuracy. Where there are TF32
tensor cores that is three TF32 products (`tf32x3`), elsewhere plain float32 multiplication (`ieee`). Hopper's convolutions in
boxes take six bfloat16 products instead: relayout.py's `planes` splits each float32 into three numbers of 8 bits, whose
products are exact, and which its matrix units read from shared memory in any order.
"""

import torch
import triton.language as tl

from ..runtime.hardware import architecture
from ..runtime.interpreter import INTERPRETED
from .function import device_function

_INTERPRETED = tl.constexpr(INTERPRETED)


def conv_precision(dtype: torch.dtype, device: torch.device) -> str:
    """`input_precision` of a convolution's products: torch allows TF32 here unless told otherwise."""
    return _precision(dtype, device, torch.backends.cudnn.conv.fp32_precision)


def matmul_precision(dtype: torch.dtype, device: torch.device) -> str:
    """`input_precision` of a linear layer's products: torch forbids TF32 here unless told otherwise."""
    return _precision(dtype, device, torch.backends.cuda.matmul.fp32_precision)


def _precision(dtype: torch.dtype, device: torch.device, allowed: str) -> str:
    if dtype != torch.float32 or not has_tf32(architecture(device)):
        return "ieee"
    return "tf32" if allowed == "tf32" else "tf32x3"


def has_tf32(architecture: str) -> bool:
    """NVIDIA's tensor cores from Ampere on."""
    return architecture.startswith("sm_") and int(architecture[3:]) >= 80


def accumulator(dtype: torch.dtype, whole: bool = False) -> tl.dtype:
    """float64 for float64, float32 for all else; int64 for integers whose results are `whole`."""
    if whole and not dtype.is_floating_point:
        return tl.int64
    return tl.float64 if dtype == torch.float64 else tl.float32


@device_function
def dot(a, b, acc, PRECISION: tl.constexpr, APART: tl.constexpr = False):
    """acc + a @ b, where APART by an addition that rounds: a matrix unit cuts off what does not fit its sum, towards zero."""
    if _INTERPRETED:  # NumPy has no bfloat16; widening changes no product
        a = widen(a).to(acc.dtype)
        b = widen(b).to(acc.dtype)
    # With a limit to what is summed inexactly, Triton does not make the product and the addition one.
    LIMIT: tl.constexpr = 1 if APART else 0
    start = None if APART else acc
    product = tl.dot(a, b, start, input_precision=PRECISION, out_dtype=acc.dtype, max_num_imprecise_acc=LIMIT)
    return acc + product if APART else product


# Of two float32, each the sum of three bfloat16 planes, the products that float32 notices, but for that of the first planes.
CROSS_PAIRS = 5


@device_function
def term_pair(number, PAIRS: tl.constexpr):
    """The planes that one of CROSS_PAIRS products is of: 0 1, 1 0, 0 2, 2 0, 1 1; of a single product, the first ones."""
    if PAIRS == 1:
        return 0, 0
    return (0b01_10_00_01_00 >> 2 * number) & 3, (0b01_00_10_00_01 >> 2 * number) & 3


@device_function
def widen(value):
    """A bfloat16 value as float32, any other as it is: NumPy, under the interpreter, has no bfloat16 to compare.

    Its bits are the upper half of a float32's. The interpreter's own conversion loses subnormals.
    """
    if value.dtype == tl.bfloat16:
        value = (value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return value


@device_function
def beats(value, best):
    """Whether a later value wins over the largest so far: it is larger, or NaN."""
    return (value > best) | (value != value)


def lowest(dtype: torch.dtype) -> float | int:
    """The value of a dtype that no other is below."""
    return float("-inf") if dtype.is_floating_point else torch.iinfo(dtype).min


@device_function
def divide(value, by):
    """value / by, two tensors of one dtype, rounded to nearest: Triton's own float32 division is off by up to two units."""
    if value.dtype == tl.float32:
        value = tl.div_rn(value, by)
    else:
        value = value / by
    return value


@device_function
def round_to(value, DTYPE: tl.constexpr):
    """A value as one of DTYPE, an integer of a fraction to the nearest."""
    if DTYPE.is_int() and value.dtype.is_floating():
        value = tl.floor(value + 0.5)
    return value.to(DTYPE)
