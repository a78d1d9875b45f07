"""torch.vmap's rule for every operator: one launch over more images, channels or groups in place of many launches.

If only images are mapped, the rule merges the mapped axis into the batch. If filters, statistics or other vectors with one
element per channel are mapped, it merges the axis into the channels, and multiplies the groups of a convolution. A linear layer
with mapped weights runs once per element of the axis. One launch would have to be a grouped convolution, in the precision of
convolutions: torch has separate TF32 flags for them and for linear layers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Dims = tuple[int | None, ...]


class MergedAxes(NamedTuple):
    """For each argument and result, the axis to merge the mapped axis into; None if the argument cannot be mapped."""

    arguments: Dims
    results: tuple[int, ...]


# Operators whose rule merges the mapped axis into the first axis of every argument and result.
FIRST_AXIS = (
    "antialias2d_backward", "antialias2d_forward", "avg_pool2d_backward", "avg_pool2d_forward", "batchnorm2d_fold",
    "bilinear2d_backward", "bilinear2d_forward", "max_pool2d_backward", "max_pool2d_forward", "max_pool2d_pick",
    "max_unpool2d_add", "max_unpool2d_backward", "max_unpool2d_forward", "nearest2d_backward", "nearest2d_forward",
    "pad2d_backward", "pad2d_forward",
)  # fmt: skip
# Operators on any shape: the mapped axis is an additional axis.
ELEMENTWISE = ("relu_", "relu_backward", "relu_forward")
# All other operators, with the axes of their tensor arguments. A rule uses the first entry that allows all mapped arguments.
MERGED_AXES: dict[str, tuple[MergedAxes, ...]] = {
    "batchnorm2d_backward": (MergedAxes((1, 1, 0, 0, 0, 1, None), (1,)),),
    "batchnorm2d_forward": (MergedAxes((1, 0, 0, 0, 0, 1), (1,)),),
    "batchnorm2d_merge": (MergedAxes((1, 1, None), (0, 0)),),
    "batchnorm2d_relu_sums": (MergedAxes((1, 1, 1, 0, 0), (1, 1)),),
    "batchnorm2d_statistics": (MergedAxes((1,), (0, 0)),),
    "batchnorm2d_sums": (MergedAxes((1, 1, 0, 0), (1,)),),
    "batchnorm2d_update": (),
    "channel_sum": (MergedAxes((1,), (0,)),),
    "conv2d_affine": (MergedAxes((0, None, None, None), (0,)), MergedAxes((1, 0, 0, 0), (1,))),
    "conv2d_dgrad": (MergedAxes((0, None, None), (0,)), MergedAxes((1, 0, 0), (1,))),
    "conv2d_fprop": (MergedAxes((0, None, None), (0,)), MergedAxes((1, 0, 0), (1,))),
    "conv2d_relu_max_pool2d": (MergedAxes((0, None, None), (0, 0)), MergedAxes((1, 0, 0), (1, 1))),
    "conv2d_statistics": (MergedAxes((1, 0, 0), (1, 0, 0)),),
    "conv2d_wgrad": (MergedAxes((1, 1), (0,)),),
    "linear_dgrad": (MergedAxes((0, None), (0,)),),
    "linear_fprop": (MergedAxes((0, None, None), (0,)),),
    "linear_wgrad": (),
}


def register_vmap(library: torch.library.Library) -> None:
    """Register the rule of every operator in the tables."""
    for name in (*FIRST_AXIS, *ELEMENTWISE, *MERGED_AXES):
        torch.library.register_vmap(f"{library.ns}::{name}", _rule(name), lib=library)


def _rule(name: str) -> Callable[..., Any]:
    """The rule of an operator, a function of its arguments and their mapped axes, for torch.library.register_vmap."""
    op = getattr(torch.ops.trinn, name).default
    parameters = op._schema.arguments
    tensors = [place for place, p in enumerate(parameters) if "Tensor" in str(p.type)]
    written = [place for place in tensors if parameters[place].is_write]
    entries = MERGED_AXES[name] if name in MERGED_AXES else (MergedAxes((0,) * len(tensors), (0,) * len(op._schema.returns)),)
    groups = next((place for place, p in enumerate(parameters) if p.name == "groups"), None)

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any, **options: Any) -> tuple[Any, Any]:
        # Add the omitted arguments: their default is None.
        omitted = [None] * (len(parameters) - len(args) - len(options))
        given, in_dims = [*args, *omitted], (*in_dims, *omitted)
        mapped = [place for place in tensors if in_dims[place] is not None]
        for place in written:
            if place not in mapped:
                raise RuntimeError(
                    f"vmap: {name} writes over its {parameters[place].name}, which is not mapped while another argument is; "
                    "for a batch norm, call torch.func.replace_all_batch_norm_modules_ first"
                )
        # Move the mapped axis of each argument to the front.
        for place in mapped:
            given[place] = given[place].movedim(in_dims[place], 0)
        if name in ELEMENTWISE:
            return _leading(op(*_expanded(given, tensors, mapped, info.batch_size)))
        # Find an entry for the mapped arguments. Without one, run the operator once per element of the mapped axis.
        for entry in entries:
            axes: dict[int, Any] = dict(zip(tensors, entry.arguments, strict=True))
            if all(axes[place] is not None for place in mapped):
                break
        else:
            return _leading(_one_by_one(op, given, mapped, info.batch_size, options))
        # Merge the mapped axis into the axes of the entry. All its arguments need the axis, so expand the ones without it.
        merged = [place for place in tensors if axes[place] is not None]
        given = _expanded(given, merged, mapped, info.batch_size)
        for place in merged:
            if given[place] is not None:
                given[place] = given[place].movedim(0, axes[place]).flatten(axes[place], axes[place] + 1)
        if groups is not None and axes[tensors[1]] is not None:
            given[groups] *= info.batch_size
        results = op(*given, **options)
        if isinstance(results, Tensor):
            return _split_off(results, entry.results[0], info.batch_size), entry.results[0]
        split = tuple(_split_off(y, axis, info.batch_size) for y, axis in zip(results, entry.results, strict=True))
        return split, entry.results

    return rule


def _expanded(given: list[Any], places: list[int], mapped: list[int], size: int) -> list[Any]:
    """The arguments, with the mapped axis first in all tensors at `places`: it is expanded where it was missing."""
    return [
        a.expand(size, *a.shape) if place in places and place not in mapped and a is not None else a
        for place, a in enumerate(given)
    ]


def _split_off(y: Tensor, axis: int, size: int) -> Tensor:
    """Split the mapped axis off a merged axis. An unsafe view, since autograd forbids in-place writes to a Function's views."""
    shape = *y.shape[:axis], size, y.shape[axis] // size, *y.shape[axis + 1 :]
    return torch.ops.aten._unsafe_view(y, shape)


def _one_by_one(op: Any, given: list[Any], mapped: list[int], size: int, options: dict[str, Any]) -> Any:
    """Stack the results of one call per element of the mapped axis."""
    each = [op(*(a[i] if place in mapped else a for place, a in enumerate(given)), **options) for i in range(size)]
    if isinstance(each[0], Tensor):
        return torch.stack(each)
    return tuple(map(torch.stack, zip(*each, strict=True))) if each[0] is not None else None


def _leading(results: Any) -> tuple[Any, Any]:
    """Results with the mapped axis first, and its position."""
    return results, None if results is None else (0,) * len(results) if isinstance(results, tuple) else 0
