"""torch.compile(model, backend="trinn"): the operators of a graph on trinn's kernels, fused where possible.

TorchDynamo traces a model of torch's or trinn's layers. It passes a graph to the backend, with one node per call of a layer, a
function or a method. Then

    1. each call of a torch function becomes a call of trinn's function, if there is one and it accepts the arguments: the
       backend tries it with fake tensors;
    2. successive calls become one call, by FUSIONS, if the values between them have no other users and no call in between
       writes to memory that they read;
    3. Inductor compiles the graph, with trinn's operators as opaque calls. Where Inductor cannot run, AOTAutograd runs alone.

Only this file uses private parts of torch's compiler: torch._dynamo.lookup_backend and allow_in_graph,
torch._inductor.compile_fx.compile_fx, list_mode_options and cpp_builder.get_cpp_compiler, torch._guards.CompileContext, the
hint of a SymInt, and two entries of a node's meta: "example_value" (fake tensors) and "grapharg" (real tensors). torch 2.11 to
2.13 have all of them.
"""

import inspect
import itertools
import operator
import re
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.amp.autocast_mode import _enter_autocast, _exit_autocast
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols, statically_known_true
from torch.fx.node import map_arg
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trinn import layers
from trinn.kernels.runtime import interpreter

from .activation import IN_PLACE, TEXTS, activated, description
from .fused_functional import FUSIONS
from .pad2d import pad2d
from .patched import FUNCTIONS, pad
from .scale_add import is_addable, is_channel_scale

Operator = Callable[..., Any]


def _mean(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    """torch.mean over the pixels of an image (N, C, H, W)."""
    axes = [d % 4 for d in dim] if isinstance(dim, (tuple, list)) else []
    if input.dim() != 4 or sorted(axes) != [2, 3] or dtype is not None:
        raise NotImplementedError("mean: trinn computes it over the pixels of (N, C, H, W) only")
    y = layers.adaptive_avg_pool2d(input, 1)
    return y if keepdim else y.flatten(1)


# The functions of trinn with a twin in torch.nn.functional, and those for additions and products.
_OURS: set[Any] = {ours for name, ours in vars(layers).items() if inspect.isfunction(ours) and hasattr(F, name)} | {
    pad2d, layers.add, layers.add_, layers.channel_scale,
}  # fmt: skip
_FUSED: set[Any] = set(FUSIONS.values())
# For each replaceable function of a graph, its replacement.
_TAKEN: dict[Any, Any] = (
    FUNCTIONS
    | {function: function for function in _OURS | _FUSED}
    | {F.pad: pad, torch._C._nn.pad: pad, F.upsample: layers.interpolate, torch.mean: _mean, Tensor.mean: _mean}
)
_IDLE = {torch._C._log_api_usage_once}  # without effect on other calls
_CONCATENATIONS = {torch.cat, torch.concat, torch.concatenate, torch.stack}
_DROPOUTS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout}
# Additions and products; True if they write the result to their first operand.
_ADDITIONS: dict[Any, bool] = dict.fromkeys((operator.add, torch.add, Tensor.add, layers.add), False)
_ADDITIONS |= dict.fromkeys((operator.iadd, Tensor.add_, layers.add_), True)
_PRODUCTS: dict[Any, bool] = dict.fromkeys((operator.mul, torch.mul, torch.multiply, Tensor.mul, Tensor.multiply), False)
_PRODUCTS |= dict.fromkeys((operator.imul, Tensor.mul_, Tensor.multiply_), True)
_NOT_LEFT = {*_OURS, *_FUSED, *_CONCATENATIONS, pad, _mean, operator.getitem}

# A call of trinn's function is one node of a graph. TorchDynamo does not trace into it.
for _each in _OURS | _FUSED:
    torch._dynamo.allow_in_graph(_each)


def compile_backend(
    graph: GraphModule, inputs: Sequence[Any], *, mode: str | None = None, options: dict[str, Any] | None = None
) -> Callable[..., Any]:
    """The backend function of torch.compile: returns the compiled graph.

    If trinn is installed, use `torch.compile(model, backend="trinn")`; else `backend=trinn.compile_backend`.

    Args:
        graph: from TorchDynamo. It is changed in place.
        inputs: example inputs of the graph.
        mode, options: as in torch.compile with Inductor.
    """
    summary = rewrite(graph, inputs)
    summary.rest, why = "aot_eager", _no_inductor()
    _summaries[:] = [other for other in _summaries if not summary.replaces(other)] + [summary]
    if why is None:
        from torch._inductor import list_mode_options
        from torch._inductor.compile_fx import compile_fx

        summary.rest = "Inductor"
        patches = {**(list_mode_options(mode) if mode else {}), **(options or {})}
        return compile_fx(graph, inputs, config_patches=patches)  # type: ignore[return-value]
    if why not in _said:
        _said.add(why)
        warnings.warn(f"trinn: {why}, so the operators left to torch run on aot_eager instead of Inductor", stacklevel=2)
    return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)  # type: ignore[arg-type]


_said: set[str] = set()


def _no_inductor() -> str | None:
    """The reason not to use Inductor; None if it can run."""
    if interpreter.INTERPRETED:
        return "kernels are interpreted"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "Inductor finds no C++ compiler"
    return None


class Summary:
    """Counts of a graph's calls: `taken` by trinn, `fused`, and `left` to torch, with the reason.

    `elements` counts the elements of all floating-point results under three keys: results of "trinn", also of calls that were
    then fused; results of a "concatenation" left to torch; results of other calls left to "torch". Views do not count.
    """

    def __init__(self) -> None:
        self.taken: Counter[str] = Counter()
        self.fused: Counter[str] = Counter()
        self.left: Counter[tuple[str, str]] = Counter()
        self.elements: Counter[str] = Counter()
        self.rest = ""  # the compiler of the calls left to torch
        self.tensors: list[Any] = []  # weak references to the inputs of the graph
        self.named: dict[str, torch.Size] = {}  # shapes of parameters and buffers
        self.trace: Any = torch._guards.CompileContext.current_trace_id()

    def replaces(self, other: "Summary") -> bool:
        """Whether TorchDynamo discarded the other graph and restarted its trace."""
        if self.trace is None or other.trace is None or self.trace.compile_id != other.trace.compile_id:
            return False
        return self.trace.attempt > other.trace.attempt


_summaries: list[Summary] = []
compile_backend.reset = _summaries.clear  # type: ignore[attr-defined]  # torch._dynamo.reset calls it


def summaries_of(model: nn.Module) -> list[Summary]:
    """The summaries of a model's graphs.

    These are the graphs with the model's parameters among their inputs. Models of one class may share a graph; without a match,
    compare the names and shapes of the parameters.
    """
    its = {n: t for n, t in (*model.named_parameters(), *model.named_buffers()) if not is_lazy(t)}
    shapes = {name.removeprefix("_orig_mod.").replace(".", "_"): tensor.shape for name, tensor in its.items()}
    found = [summary for summary in _summaries if {id(t) for t in its.values()} & {id(tensor()) for tensor in summary.tensors}]
    return found or [summary for summary in _summaries if summary.named and summary.named.items() <= shapes.items()]


def rewrite(graph: GraphModule, inputs: Sequence[Any] = ()) -> Summary:
    """Replace the operators of a graph by trinn's, in place, also in the subgraphs that it calls, as in checkpointing."""
    summary = Summary()
    given = list(inputs)
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            given.append(getattr(node.meta.get("grapharg"), "example", None))
            name = re.sub("^L_[a-z]+_|(modules|parameters|buffers)_|_$", "", str(node.target))
            if isinstance(given[-1], Tensor) and "self_" in str(node.target):
                summary.named[name] = node.meta["example_value"].shape
    summary.tensors = [weakref.ref(t) for t in given if isinstance(t, Tensor) and not isinstance(t, FakeTensor)]
    with torch.no_grad(), _ending_autocasts() as autocasts:
        _Rewriting(graph, inputs, summary, autocasts).run()
    return summary


@contextmanager
def _ending_autocasts() -> Iterator[dict[Any, Any]]:
    """A dictionary of entered autocasts. At the end, exit those still in it."""
    entered: dict[Any, Any] = {}
    try:
        yield entered
    finally:
        for context in reversed(entered.values()):
            _exit_autocast(context)


class _Effects(TorchDispatchMode):
    """The storages that the code within this context reads and writes."""

    def __init__(self, *calls: "_Effects") -> None:
        super().__init__()
        self.reads: set[int] = set().union(*(effects.reads for effects in calls))
        self.writes: set[int] = set().union(*(effects.writes for effects in calls))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for place, parameter in enumerate(func._schema.arguments):
            value = args[place] if place < len(args) else kwargs.get(parameter.name)
            for tensor in tree_leaves(value):
                if isinstance(tensor, Tensor):
                    self.reads.add(_storage(tensor))
                    if parameter.alias_info is not None and parameter.alias_info.is_write:
                        self.writes.add(_storage(tensor))
        return func(*args, **kwargs)

    def meets(self, other: "_Effects") -> bool:
        """Whether the order of the two calls matters."""
        return bool(self.writes & (other.reads | other.writes) or self.reads & other.writes)


def _storage(tensor: Tensor) -> int:
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else id(tensor)


class _Rewriting:
    """Replacement and fusion of the calls of one graph."""

    def __init__(self, module: GraphModule, inputs: Sequence[Any], summary: Summary, autocasts: dict[Any, Any]) -> None:
        self.module, self.graph, self.summary, self.autocasts = module, module.graph, summary, autocasts
        self.effects: dict[Node, _Effects | None] = {}
        placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
        self.given = dict(zip(placeholders, inputs, strict=False))
        values = tree_leaves([node.meta.get("example_value") for node in self.graph.nodes])
        self.fake_mode = next((value.fake_mode for value in values if isinstance(value, FakeTensor)), nullcontext())

    def run(self) -> None:
        for node in list(self.graph.nodes):
            if node.op in ("call_function", "call_method"):
                self._take(node)
        self._take_arithmetic()
        for node in list(self.graph.nodes):
            if node.target in _OURS and node.users:  # an earlier fusion may have erased it
                self._fuse(node)
        for node in self.graph.nodes:
            if node.op in ("call_function", "call_method"):
                self._count(node)
        self.graph.lint()
        self.module.recompile()

    def _take(self, node: Node) -> None:
        """Replace a call by trinn's function, if there is one and it accepts the arguments. Remove an inactive dropout."""
        function = _function(node)
        if function is _enter_autocast:
            self.autocasts[node] = _enter_autocast(*node.args)
        elif function is _exit_autocast:
            _exit_autocast(self.autocasts.pop(node.args[0]))
        elif function in _DROPOUTS:
            bound = _bound(function, node)
            if not (bound.arguments["training"] and bound.arguments["p"]):
                node.replace_all_uses_with(bound.arguments["input"])
                self.graph.erase_node(node)
        elif function in _TAKEN:
            self._try(node, _TAKEN[function])
        else:
            for body in self._bodies(node):
                _Rewriting(body, (), self.summary, self.autocasts).run()

    def _take_arithmetic(self) -> None:
        """Replace additions of two tensors and scalings of channels, except those beside a call left to torch.

        Inductor can compute them together with such a call.
        """
        taken = [node for node in self.graph.nodes if self._arithmetic(node) is not None]
        while beside := [n for n in taken if any(self._is_left(o) and o not in taken for o in self._neighbours(n))]:
            taken = [node for node in taken if node not in beside]
        for node in taken:
            ours, node.args = self._arithmetic(node)  # type: ignore[misc]
            if ours is layers.channel_scale:
                self._move_channels(node)
            self._try(node, ours)

    def _arithmetic(self, node: Node) -> tuple[Operator, tuple[Node, ...]] | None:
        """trinn's function and its arguments for an addition or a product; None if there is none."""
        function, operands = _function(node), node.args
        in_place = _ADDITIONS.get(function, _PRODUCTS.get(function))
        if in_place is None or node.kwargs or len(operands) != 2 or not all(isinstance(each, Node) for each in operands):
            return None
        a, b = map(self._value, operands)
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
            return None
        if in_place and torch.promote_types(a.dtype, b.dtype) != a.dtype:
            return None
        if function in _ADDITIONS:
            same = a.dim() == b.dim() and all(statically_known_true(n == m) for n, m in zip(a.shape, b.shape, strict=True))
            return (layers.add_ if in_place else layers.add, operands) if same and is_addable(a, b) else None  # type: ignore
        if is_channel_scale(a, b) and (not in_place or self._is_its_own(operands[0], node)):  # type: ignore[arg-type]
            return layers.channel_scale, operands  # type: ignore[return-value]
        return (layers.channel_scale, operands[::-1]) if not in_place and is_channel_scale(b, a) else None  # type: ignore

    def _neighbours(self, node: Node) -> list[Node]:
        """The nodes that compute the operands of a call, and the nodes that use its result. Views in between are skipped."""
        found: list[Node] = []
        for nearest in (lambda of: of.all_input_nodes, lambda of: list(of.users)):
            pending = nearest(node)
            while pending:
                other, *pending = pending
                if other.op.startswith("call") and _storages([other]) and self._is_view(other):
                    pending += nearest(other)
                else:
                    found.append(other)
        return found

    def _is_left(self, node: Node) -> bool:
        """Whether a call is left to torch and computes; concatenations do not count, since Inductor copies their operands."""
        is_left = node.op.startswith("call") and _function(node) not in _NOT_LEFT
        return is_left and not self._bodies(node) and bool(_storages([node]))

    def _move_channels(self, node: Node) -> None:
        """Scale (N, C, H, W) in place of (N, H, W, C), if the only use of the result is a permutation to (N, C, H, W)."""
        x, scale = node.args
        user = next(iter(node.users))
        if self._value(scale).dim() != 1 or len(node.users) != 1 or _permutation(user) != (0, 3, 1, 2):
            return
        with self.graph.inserting_before(node):
            image = self.graph.call_method("permute", (x, 0, 3, 1, 2))
            of_channels = self.graph.call_method("reshape", (scale, -1, 1, 1))
        image.meta, of_channels.meta = dict(user.meta), dict(scale.meta)  # type: ignore[union-attr]
        with self.fake_mode:
            image.meta["example_value"] = self._value(x).detach().permute(0, 3, 1, 2)
            of_channels.meta["example_value"] = self._value(scale).detach().reshape(-1, 1, 1)
        node.args, node.meta = (image, of_channels), dict(user.meta)
        user.replace_all_uses_with(node)
        self.graph.erase_node(user)

    def _try(self, node: Node, ours: Operator) -> None:
        """Replace a call by `ours`, unless `ours` raises for fake tensors. The exception is then the reason in the summary."""
        try:
            bound = _bound(ours, node)
            args, options = bound.args, bound.kwargs
            if ours in IN_PLACE:
                ours, args = IN_PLACE[ours], (*args, True)  # type: ignore[assignment]
            device = self._value(args[0]).device
            if device.type not in ("cuda", "meta") and not (device.type == "cpu" and interpreter.INTERPRETED):
                raise NotImplementedError(f"trinn's kernels do not run on {device.type}")
            self.effects[node], result = self._called(ours, args, options)
            meta = self._with_strides_of(result, node.meta)
        except Exception as refusal:
            node.meta["trinn"] = str(refusal).partition("\n")[0] or type(refusal).__name__
            return
        node.op, node.target, node.args, node.kwargs = "call_function", ours, args, options
        node.meta |= meta

    def _called(self, function: Operator, args: Any, options: Any) -> tuple[_Effects, Any]:
        """Call a function with fake tensors: the storages that it reads and writes, and its result."""
        args, options = map_arg((args, options), self._value)  # type: ignore[assignment]
        with self.fake_mode:
            args, options = torch.utils._pytree.tree_map_only(Tensor, Tensor.detach, (args, options))
            with _Effects() as effects:
                result = function(*args, **options)
        return effects, result

    def _with_strides_of(self, result: Any, meta: dict[str, Any]) -> dict[str, Any]:
        """New meta of a replaced call: its fake value, in the same storage, with the strides of trinn's result.

        Empty if the strides are equal. On a GPU, torch's float64 convolutions return contiguous tensors, and trinn's keep
        channels_last. A fusion must compare the strides of the actual values.
        """
        value = meta.get("example_value")
        if not isinstance(value, Tensor):
            return {}
        if all(statically_known_true(n == m) for n, m in zip(value.stride(), result.stride(), strict=True)):
            return {}
        with self.fake_mode:
            return {"example_value": value.as_strided(value.shape, result.stride())}

    def _value(self, node: Any) -> Any:
        """The value of a node, with fake tensors."""
        if "example_value" in node.meta:
            return node.meta["example_value"]
        return operator.attrgetter(node.target)(self.module) if node.op == "get_attr" else self.given[node]

    def _bodies(self, node: Node) -> list[GraphModule]:
        """The subgraphs among a call's arguments, as in checkpointing."""
        given = (operator.attrgetter(str(a.target))(self.module) for a in node.all_input_nodes if a.op == "get_attr")
        return [body for body in given if isinstance(body, GraphModule)]

    def _fuse(self, first: Node) -> None:
        """Fuse a call with its successors, by the first entry of FUSIONS that fits."""
        # The run: each value has one user, the next call.
        nodes, run, arguments = [first], [torch.add if first.target in _ADDITIONS else first.target], [first.args[1:]]
        if _ADDITIONS.get(first.target) and not self._is_its_own(first.args[0], first):  # type: ignore[arg-type]
            return
        while len(nodes[-1].users) == 1 and len(nodes) < 4:
            user = next(iter(nodes[-1].users))
            found = self._follows(user, nodes[-1])
            if found is None:
                break
            nodes, run, arguments = [*nodes, user], [*run, found[0]], [*arguments, found[1]]
        # The fused call replaces the last call of the run: its operands exist there.
        for names, function in FUSIONS.items():
            count = len(names)
            if tuple(run[:count]) == names and self._can_move(nodes[:count]):
                last = nodes[count - 1]
                with self.graph.inserting_before(last):
                    by_name = list(zip(names, arguments, strict=False))
                    given = [a for name, a in by_name if name is not torch.add]
                    place = "addend" if names[-2:] == (activated, torch.add) else "residual"
                    options = {place: a[0]} if (a := dict(by_name).get(torch.add)) else {}
                    call = self.graph.call_function(function, (first.args[0], *given), options)
                words = [_name(node if n is activated else n) for n, node in zip(names, nodes, strict=False)]
                call.meta = dict(last.meta) | {"trinn": " + ".join(words), "elements": sum(map(_elements, nodes[:count]))}
                last.replace_all_uses_with(call)
                self.effects[call] = _Effects(*(self._effects(node) for node in nodes[:count]))  # type: ignore[arg-type]
                for node in reversed(nodes[:count]):
                    self.graph.erase_node(node)
                return

    def _follows(self, user: Node, value: Node) -> tuple[Operator, tuple[Any, ...]] | None:
        """The operator of a call that uses `value`, and the other arguments; None if the call cannot be fused."""
        function, operands = _function(user), user.args[:2]
        if function in _ADDITIONS and len(user.args) == 2 and not user.kwargs:
            first = operands[0] is value
            other: Any = operands[1] if first else operands[0]
            if other is value or not (isinstance(other, Node) and self._alike(other, value) and self._alike(user, value, True)):
                return None
            if _ADDITIONS[function] and not first and not self._is_its_own(other, user):
                return None
            return torch.add, (other,)
        if function not in _OURS or user.args[0] is not value or value in user.all_input_nodes[1:]:
            return None
        if function in TEXTS or function is layers.prelu:
            return activated, description(function, user.args[1:])
        if function is layers.max_pool2d:
            return (layers.max_pool2d, user.args[1:-1]) if not user.args[-1] else None
        return function, user.args[1:]

    def _alike(self, a: Node, b: Node, strides: bool = False) -> bool:
        """Whether two values have the same shape, dtype and device and, if `strides`, the same strides."""
        x, y = self._value(a), self._value(b)
        if not (isinstance(x, Tensor) and isinstance(y, Tensor) and x.dim() == y.dim() == 4):
            return False
        pairs = [*zip(x.shape, y.shape, strict=True), *(zip(x.stride(), y.stride(), strict=True) if strides else ())]
        return (x.dtype, x.device) == (y.dtype, y.device) and all(statically_known_true(n == m) for n, m in pairs)

    def _is_its_own(self, value: Node, user: Node) -> bool:
        """Whether `user` may write to the memory of a value: no later call reads the memory.

        All earlier nodes with this memory must be calls with one user each: a chain from the allocation to `user`.
        """
        before = itertools.takewhile(lambda node: node is not user, self.graph.nodes)
        same = [node for node in before if _storages([node]) & _storages([value])]
        return all(node.op.startswith("call") and len(node.users) == 1 for node in same)

    def _can_move(self, nodes: Sequence[Node]) -> bool:
        """Whether the calls can move to the position of the last one: no call in between conflicts with them."""
        moved: list[_Effects] = []
        node = nodes[0]
        while node is not nodes[-1].next:
            effects = self._effects(node)
            if effects is None or node not in nodes and any(effects.meets(other) for other in moved):
                return False
            moved += [effects] if node in nodes else []
            node = node.next
        return True

    def _effects(self, node: Node) -> _Effects | None:
        """The effects of a call; None if they are unknown, or if the call changes a mode for later calls."""
        if node not in self.effects:
            self.effects[node] = self._new_effects(node)
        return self.effects[node]

    def _new_effects(self, node: Node) -> _Effects | None:
        """Find the effects of a call; None as in `_effects`."""
        if node.op in ("placeholder", "get_attr"):
            return _Effects()
        function, value = _function(node), node.meta.get("example_value")
        if self._bodies(node):
            return None
        if function in _IDLE:
            return _Effects()
        leaves = tree_leaves(value)
        if all(isinstance(leaf, (int, torch.SymInt)) for leaf in leaves):  # sizes, and arithmetic of sizes
            return _Effects() if leaves and (node.op == "call_method" or function.__module__ == "_operator") else None
        if not all(isinstance(leaf, (Tensor, int, torch.SymInt)) and not free_unbacked_symbols(leaf) for leaf in leaves):
            return None
        try:
            return self._called(function, node.args, node.kwargs)[0]
        except Exception:
            return None

    def _count(self, node: Node) -> None:
        """Count a call in the summary."""
        if node.target in _FUSED:
            self.summary.fused[node.meta.get("trinn", node.target.__name__)] += 1  # type: ignore[union-attr]
            by = "trinn"
        elif node.target in _OURS or node.target in (pad, _mean):
            self.summary.taken[node.target.__name__.strip("_")] += 1  # type: ignore[union-attr]
            by = "trinn"
        elif node.target is not operator.getitem and not self._bodies(node) and not self._is_view(node):
            function = _function(node)
            self.summary.left[getattr(function, "__name__", str(function)), node.meta.get("trinn", "not in trinn")] += 1
            by = "concatenation" if function in _CONCATENATIONS else "torch"
        else:
            return
        self.summary.elements[by] += _elements(node)

    def _is_view(self, node: Node) -> bool:
        """Whether a call returns no floating-point tensor, or writes nothing and returns only memory of its arguments."""
        if not _storages([node]):
            return True
        effects = self._effects(node)
        return effects is not None and not effects.writes and _storages([node]) <= _storages(node.all_input_nodes)


def _floats(nodes: Iterable[Node]) -> list[Tensor]:
    """The floating-point tensors among the values of nodes."""
    values = tree_leaves([node.meta.get("example_value") for node in nodes])
    return [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]


def _storages(nodes: Iterable[Node]) -> set[int]:
    """The storages of the floating-point tensors among the values of nodes."""
    return {_storage(value) for value in _floats(nodes)}


def _elements(node: Node) -> int:
    """The number of elements of a call's floating-point tensors; for symbolic sizes, those of the traced call."""
    sizes = [value.numel() for value in _floats([node])]
    return node.meta.get("elements") or sum(n.node.hint or 0 if isinstance(n, torch.SymInt) else n for n in sizes)


def _permutation(node: Node) -> tuple[int, ...] | None:
    """The axes of a permutation of 4 axes; None for other calls."""
    if _function(node) not in (Tensor.permute, torch.permute) or node.kwargs:
        return None
    axes = node.args[1:] if len(node.args) > 2 else node.args[1]
    return tuple(axis % 4 for axis in axes) if all(isinstance(axis, int) for axis in axes) else None  # type: ignore


def _name(of: Any) -> str:
    """The name of a function, or of the function that a node calls."""
    return str(getattr(of, "target", of).__name__)


def _function(node: Node) -> Any:
    return getattr(Tensor, node.target, node.target) if node.op == "call_method" else node.target  # type: ignore[arg-type]


def _bound(function: Operator, node: Node) -> inspect.BoundArguments:
    """The arguments of a call, bound to the signature of a function, with its defaults."""
    bound = inspect.signature(function).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    return bound
