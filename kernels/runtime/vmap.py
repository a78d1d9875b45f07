"""Rules for torch.vmap: one launch over more images, channels or groups in place of many launches.

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


# The rule of an operator. Of several MergedAxes, a call uses the first that allows all mapped arguments; without one, the
# operator runs once per element of the mapped axis.
Vmap = str | tuple[MergedAxes, ...]
FIRST_AXIS = "first axis"  # merge the mapped axis into the first axis of every argument and result
ELEMENTWISE = "elementwise"  # any shape: the mapped axis is an additional axis


def register_vmap(library: torch.library.Library, operator: Any, rule: Vmap) -> None:
    """Register the rule of an operator with torch."""
    torch.library.register_vmap(f"{library.ns}::{operator.__name__}", _rule(operator.default, rule), lib=library)


def _rule(op: Any, vmap: Vmap) -> Callable[..., Any]:
    """The rule of an operator, a function of its arguments and their mapped axes, for torch.library.register_vmap."""
    parameters = op._schema.arguments
    tensors = [place for place, p in enumerate(parameters) if "Tensor" in str(p.type)]
    written = [place for place in tensors if parameters[place].is_write]
    first_axis = (MergedAxes((0,) * len(tensors), (0,) * len(op._schema.returns)),)
    entries = first_axis if isinstance(vmap, str) else vmap
    groups = next((place for place, p in enumerate(parameters) if p.name == "groups"), None)

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any, **options: Any) -> tuple[Any, Any]:
        # Add the omitted arguments: their default is None.
        omitted = [None] * (len(parameters) - len(args) - len(options))
        given, in_dims = [*args, *omitted], (*in_dims, *omitted)
        mapped = [place for place in tensors if in_dims[place] is not None]
        for place in written:
            if place not in mapped:
                raise RuntimeError(
                    f"vmap: {op.name()} writes over its {parameters[place].name}, which is not mapped while "
                    "another argument is; for a batch norm, call torch.func.replace_all_batch_norm_modules_ first"
                )
        # Move the mapped axis of each argument to the front.
        for place in mapped:
            given[place] = given[place].movedim(in_dims[place], 0)
        if vmap == ELEMENTWISE:
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
