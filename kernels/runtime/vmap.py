"""torch.vmap's rule for every operator: one launch over more images, channels or groups in place of many launches.

If only images are mapped, the rule merges the mapped axis into the batch. If filters, statistics or other vectors with one
element per channel are mapped, it merges the axis into the channels, and multiplies the groups of a convolution. A linear layer
with mapped weights runs once per element of the axis: a grouped convolution would have another precision.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Dims = tuple[int | None, ...]


class BatchFold(NamedTuple):
    """The axis of each argument and result to merge the mapped axis into; None if the argument cannot be mapped."""

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
# All other operators. A rule uses the first fitting entry. Entries list tensor arguments only.
FOLDS: dict[str, tuple[BatchFold, ...]] = {
    "batchnorm2d_backward": (BatchFold((1, 1, 0, 0, 0, 1, None), (1,)),),
    "batchnorm2d_forward": (BatchFold((1, 0, 0, 0, 0, 1), (1,)),),
    "batchnorm2d_merge": (BatchFold((1, 1, None), (0, 0)),),
    "batchnorm2d_relu_sums": (BatchFold((1, 1, 1, 0, 0), (1, 1)),),
    "batchnorm2d_statistics": (BatchFold((1,), (0, 0)),),
    "batchnorm2d_sums": (BatchFold((1, 1, 0, 0), (1,)),),
    "batchnorm2d_update": (),
    "channel_sum": (BatchFold((1,), (0,)),),
    "conv2d_affine": (BatchFold((0, None, None, None), (0,)), BatchFold((1, 0, 0, 0), (1,))),
    "conv2d_dgrad": (BatchFold((0, None, None), (0,)), BatchFold((1, 0, 0), (1,))),
    "conv2d_fprop": (BatchFold((0, None, None), (0,)), BatchFold((1, 0, 0), (1,))),
    "conv2d_relu_max_pool2d": (BatchFold((0, None, None), (0, 0)), BatchFold((1, 0, 0), (1, 1))),
    "conv2d_statistics": (BatchFold((1, 0, 0), (1, 0, 0)),),
    "conv2d_wgrad": (BatchFold((1, 1), (0,)),),
    "linear_dgrad": (BatchFold((0, None), (0,)),),
    "linear_fprop": (BatchFold((0, None, None), (0,)),),
    "linear_wgrad": (),
}


def register_vmap(library: torch.library.Library) -> None:
    """Register the rule of every operator in the tables."""
    for name in (*FIRST_AXIS, *ELEMENTWISE, *FOLDS):
        torch.library.register_vmap(f"{library.ns}::{name}", _rule(name), lib=library)


def _rule(name: str) -> Callable[..., Any]:
    op = getattr(torch.ops.trinn, name).default
    parameters = op._schema.arguments
    tensors = [place for place, p in enumerate(parameters) if "Tensor" in str(p.type)]
    written = [place for place in tensors if parameters[place].is_write]
    folds = FOLDS[name] if name in FOLDS else (BatchFold((0,) * len(tensors), (0,) * len(op._schema.returns)),)
    groups = next((place for place, p in enumerate(parameters) if p.name == "groups"), None)

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any, **options: Any) -> tuple[Any, Any]:
        left_out = len(parameters) - len(args) - len(options)
        given, in_dims = [*args, *left_out * [None]], (*in_dims, *left_out * [None])  # omitted arguments default to None
        mapped = [place for place in tensors if in_dims[place] is not None]
        for place in written:
            if place not in mapped:
                raise RuntimeError(
                    f"vmap: {name} writes over its {parameters[place].name}, which is not mapped while another argument is; "
                    "for a batch norm torch.func.replace_all_batch_norm_modules_ is a way out"
                )
        for place in mapped:
            given[place] = given[place].movedim(in_dims[place], 0)
        if name in ELEMENTWISE:
            return _leading(op(*_expanded(given, tensors, mapped, info.batch_size)))
        for fold in folds:
            axes: dict[int, Any] = dict(zip(tensors, fold.arguments, strict=True))
            if all(axes[place] is not None for place in mapped):
                break
        else:
            return _leading(_one_by_one(op, given, mapped, info.batch_size, options))
        whole = [place for place in tensors if axes[place] is not None]
        given = _expanded(given, whole, mapped, info.batch_size)
        for place in whole:
            if given[place] is not None:
                given[place] = given[place].movedim(0, axes[place]).flatten(axes[place], axes[place] + 1)
        if groups is not None and axes[tensors[1]] is not None:
            given[groups] *= info.batch_size
        results = op(*given, **options)
        if isinstance(results, Tensor):
            return _unfolded(results, fold.results[0], info.batch_size), fold.results[0]
        return tuple(_unfolded(y, axis, info.batch_size) for y, axis in zip(results, fold.results, strict=True)), fold.results

    return rule


def _expanded(given: list[Any], places: list[int], mapped: list[int], size: int) -> list[Any]:
    """The arguments. Those at `places` have the mapped axis first, expanded if they are not mapped."""
    return [
        a.expand(size, *a.shape) if place in places and place not in mapped and a is not None else a
        for place, a in enumerate(given)
    ]


def _unfolded(y: Tensor, axis: int, size: int) -> Tensor:
    """Split the mapped axis off again. Not a view for autograd, which forbids in-place writes to the views of a Function."""
    shape = *y.shape[:axis], size, y.shape[axis] // size, *y.shape[axis + 1 :]
    return torch.ops.aten._unsafe_view(y, shape)


def _one_by_one(op: Any, given: list[Any], mapped: list[int], size: int, options: dict[str, Any]) -> Any:
    each = [op(*(a[i] if place in mapped else a for place, a in enumerate(given)), **options) for i in range(size)]
    if isinstance(each[0], Tensor):
        return torch.stack(each)
    return tuple(map(torch.stack, zip(*each, strict=True))) if each[0] is not None else None


def _leading(results: Any) -> tuple[Any, Any]:
    """Results with the mapped axis first, and its position."""
    return results, None if results is None else (0,) * len(results) if isinstance(results, tuple) else 0
