"""torch.compile(model, backend="trinn"): a graph's operators on trinn's kernels, fused where they stand in a row.

TorchDynamo reads the Python of a model and hands over a graph, in which each call of a layer, a function or a method is one
node, in a model of torch's layers or of trinn's. Then

    1. a call that trinn has a function for becomes a call of that function, if it takes the arguments: a call on fake tensors
       shows whether it does;
    2. calls in a row become one call, by FUSIONS, if nothing else uses a value between them and no call that stands
       between them writes what they read;
    3. Inductor compiles the graph and calls trinn's operators as they are; where it cannot, AOTAutograd does that alone.

This is the only file that needs the private parts of torch's compiler: torch._dynamo.lookup_backend and allow_in_graph,
torch._inductor.compile_fx.compile_fx, list_mode_options and cpp_builder.get_cpp_compiler, torch._guards.CompileContext, and of
a node's meta "example_value" (fake tensors) and "grapharg" (real ones). torch 2.11 to 2.13 have them all.
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

from .fused_functional import FUSIONS
from .pad2d import pad2d
from .patched import FUNCTIONS, pad

Operator = Callable[..., Any]


def _mean(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    """torch.mean over the pixels of images."""
    axes = [d % 4 for d in dim] if isinstance(dim, (tuple, list)) else []
    if input.dim() != 4 or sorted(axes) != [2, 3] or dtype is not None:
        raise NotImplementedError("mean: trinn has that over the pixels of (N, C, H, W)")
    y = layers.adaptive_avg_pool2d(input, 1)
    return y if keepdim else y.flatten(1)


# What calls in a graph become.
_OURS: set[Any] = {ours for name, ours in vars(layers).items() if inspect.isfunction(ours) and hasattr(F, name)} | {pad2d}
_JOINED: set[Any] = set(FUSIONS.values())
_TAKEN: dict[Any, Any] = (
    FUNCTIONS
    | {function: function for function in _OURS | _JOINED}
    | {F.pad: pad, torch._C._nn.pad: pad, F.upsample: layers.interpolate, torch.mean: _mean, Tensor.mean: _mean}
)
_IDLE = {torch._C._log_api_usage_once}  # does nothing that another call sees
_DROPOUTS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout}
# Additions, and whether they write the sum over their first operand.
_ADDITIONS: dict[Any, bool] = {
    f: f in (operator.iadd, Tensor.add_) for f in (operator.add, torch.add, Tensor.add, operator.iadd, Tensor.add_)
}

# Calls of trinn's functions are nodes of a graph, and not what they are made of.
for _each in _OURS | _JOINED:
    torch._dynamo.allow_in_graph(_each)


def compile_backend(
    graph: GraphModule, inputs: Sequence[Any], *, mode: str | None = None, options: dict[str, Any] | None = None
) -> Callable[..., Any]:
    """What torch.compile calls with a graph; `mode` and `options` are Inductor's.

    As `torch.compile(model, backend="trinn")` where trinn is installed, and `backend=trinn.compile_backend` where it is not.
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
        warnings.warn(f"trinn: {why}, so that what is not trinn's runs by aot_eager and not by Inductor", stacklevel=2)
    return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)  # type: ignore[arg-type]


_said: set[str] = set()


def _no_inductor() -> str | None:
    """Why Inductor is not to compile here."""
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
    """What became of a graph's calls: how many are `taken` by trinn, how many `fused`, how many `left`, and why."""

    def __init__(self) -> None:
        self.taken: Counter[str] = Counter()
        self.fused: Counter[str] = Counter()
        self.left: Counter[tuple[str, str]] = Counter()
        self.rest = ""  # what compiles the others
        self.tensors: list[Any] = []  # that the graph reads, weakly
        self.named: dict[str, torch.Size] = {}  # the shapes of parameters and buffers
        self.trace: Any = torch._guards.CompileContext.current_trace_id()

    def replaces(self, other: "Summary") -> bool:
        """Whether TorchDynamo began anew with a graph."""
        if self.trace is None or other.trace is None or self.trace.compile_id != other.trace.compile_id:
            return False
        return self.trace.attempt > other.trace.attempt


_summaries: list[Summary] = []
compile_backend.reset = _summaries.clear  # type: ignore[attr-defined]  # which torch._dynamo.reset calls


def summaries_of(model: nn.Module) -> list[Summary]:
    """The summaries of the graphs that compute a model.

    A graph reads the model's parameters. Models of one class may share a graph: then their names and shapes are compared.
    """
    its = {n: t for n, t in (*model.named_parameters(), *model.named_buffers()) if not is_lazy(t)}
    shapes = {name.removeprefix("_orig_mod.").replace(".", "_"): tensor.shape for name, tensor in its.items()}
    found = [summary for summary in _summaries if {id(t) for t in its.values()} & {id(tensor()) for tensor in summary.tensors}]
    return found or [summary for summary in _summaries if summary.named and summary.named.items() <= shapes.items()]


def rewrite(graph: GraphModule, inputs: Sequence[Any] = ()) -> Summary:
    """Have a graph's operators computed by trinn, in place, also in graphs that are called in it, as for checkpointing."""
    summary = Summary()
    given = list(inputs)
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            given.append(getattr(node.meta.get("grapharg"), "example", None))
            name = re.sub("^L_[a-z]+_|(modules|parameters|buffers)_|_$", "", str(node.target))
            if isinstance(given[-1], Tensor) and "self_" in str(node.target):
                summary.named[name] = node.meta["example_value"].shape
    summary.tensors = [weakref.ref(t) for t in given if isinstance(t, Tensor) and not isinstance(t, FakeTensor)]
    with torch.no_grad(), _autocast_given_back() as autocasts:
        _Rewriting(graph, inputs, summary, autocasts).run()
    return summary


@contextmanager
def _autocast_given_back() -> Iterator[dict[Any, Any]]:
    """Autocasts that are entered are left in the end."""
    entered: dict[Any, Any] = {}
    try:
        yield entered
    finally:
        for context in reversed(entered.values()):
            _exit_autocast(context)


class _Effects(TorchDispatchMode):
    """The storages that are read and written within."""

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
        """Whether two calls cannot change places."""
        return bool(self.writes & (other.reads | other.writes) or self.reads & other.writes)


def _storage(tensor: Tensor) -> int:
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else id(tensor)


class _Rewriting:
    """The rewriting of one graph."""

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
        for node in list(self.graph.nodes):
            if node.target in _OURS:
                self._join(node)
        for node in self.graph.nodes:
            if node.op in ("call_function", "call_method"):
                self._count(node)
        self.graph.lint()
        self.module.recompile()

    def _take(self, node: Node) -> None:
        """Have a call computed by trinn's function, if there is one that takes its arguments."""
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

    def _try(self, node: Node, ours: Operator) -> None:
        try:
            bound = _bound(ours, node)
            args, options = bound.args, bound.kwargs
            if ours is layers.relu_:
                ours, args = layers.relu, (*args, True)
            device = self._value(args[0]).device
            if device.type not in ("cuda", "meta") and not (device.type == "cpu" and interpreter.INTERPRETED):
                raise NotImplementedError(f"on {device.type}, where trinn's kernels do not run")
            self.effects[node], result = self._called(ours, args, options)
            meta = self._with_strides_of(result, node.meta)
        except Exception as refusal:
            node.meta["trinn"] = str(refusal).partition("\n")[0] or type(refusal).__name__
            return
        node.op, node.target, node.args, node.kwargs = "call_function", ours, args, options
        node.meta |= meta

    def _called(self, function: Operator, args: Any, options: Any) -> tuple[_Effects, Any]:
        """What a call reads and writes, and its result, from a call on fake tensors."""
        args, options = map_arg((args, options), self._value)  # type: ignore[assignment]
        with self.fake_mode:
            args, options = torch.utils._pytree.tree_map_only(Tensor, Tensor.detach, (args, options))
            with _Effects() as effects:
                result = function(*args, **options)
        return effects, result

    def _with_strides_of(self, result: Any, meta: dict[str, Any]) -> dict[str, Any]:
        """The fake value of a call, in its own storage, with the strides of trinn's result, if they differ."""
        value = meta.get("example_value")
        if not isinstance(value, Tensor):
            return {}
        if all(statically_known_true(n == m) for n, m in zip(value.stride(), result.stride(), strict=True)):
            return {}
        with self.fake_mode:
            return {"example_value": value.as_strided(value.shape, result.stride())}

    def _value(self, node: Any) -> Any:
        """What stands for a node's value: tensors are fake."""
        if "example_value" in node.meta:
            return node.meta["example_value"]
        return operator.attrgetter(node.target)(self.module) if node.op == "get_attr" else self.given[node]

    def _bodies(self, node: Node) -> list[GraphModule]:
        """The graphs that a call is given, as for checkpointing."""
        given = (operator.attrgetter(str(a.target))(self.module) for a in node.all_input_nodes if a.op == "get_attr")
        return [body for body in given if isinstance(body, GraphModule)]

    def _join(self, first: Node) -> None:
        """Have calls in a row that begin with one computed as one, if that is possible."""
        nodes, run, arguments = [first], [first.target], [first.args[1:]]
        while len(nodes[-1].users) == 1 and len(nodes) < 4:
            user = next(iter(nodes[-1].users))
            found = self._follows(user, nodes[-1])
            if found is None:
                break
            nodes, run, arguments = [*nodes, user], [*run, found[0]], [*arguments, found[1]]
        for names, function in FUSIONS.items():
            count = len(names)
            if tuple(run[:count]) == names and self._can_meet(nodes[:count]):
                last = nodes[count - 1]
                with self.graph.inserting_before(last):
                    given = [a if name is not torch.add else a[0] for name, a in zip(names, arguments, strict=False) if a]
                    call = self.graph.call_function(function, (first.args[0], *given))
                call.meta = dict(last.meta) | {"trinn": " + ".join(name.__name__ for name in names)}
                last.replace_all_uses_with(call)
                self.effects[call] = _Effects(*(self._effects(node) for node in nodes[:count]))  # type: ignore[arg-type]
                for node in reversed(nodes[:count]):
                    self.graph.erase_node(node)
                return

    def _follows(self, user: Node, value: Node) -> tuple[Operator, tuple[Any, ...]] | None:
        """The operator by which a call goes on with a value, and its other arguments; None if it is none that is fused."""
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
        if function is layers.relu:
            return layers.relu, ()
        if function is layers.max_pool2d:
            return (layers.max_pool2d, user.args[1:-1]) if not user.args[-1] else None
        return function, user.args[1:]

    def _alike(self, a: Node, b: Node, strides: bool = False) -> bool:
        """Whether two values are of one shape, dtype and device; and of the same strides, if that is asked."""
        x, y = self._value(a), self._value(b)
        if not (isinstance(x, Tensor) and isinstance(y, Tensor) and x.dim() == y.dim() == 4):
            return False
        pairs = [*zip(x.shape, y.shape, strict=True), *(zip(x.stride(), y.stride(), strict=True) if strides else ())]
        return (x.dtype, x.device) == (y.dtype, y.device) and all(statically_known_true(n == m) for n, m in pairs)

    def _is_its_own(self, value: Node, user: Node) -> bool:
        """Whether only one call sees the memory of a value, and so what that one writes over it.

        What has the memory up to there is then a line of calls, from the one that allocated it on, each with one user.
        """
        before = itertools.takewhile(lambda node: node is not user, self.graph.nodes)
        same = [node for node in before if _storages([node]) & _storages([value])]
        return all(node.op.startswith("call") and len(node.users) == 1 for node in same)

    def _can_meet(self, nodes: Sequence[Node]) -> bool:
        """Whether calls can as well be done where the last of them is."""
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
        """What a call reads and writes; None if that is not known, or if it changes what later calls do."""
        if node not in self.effects:
            self.effects[node] = self._found(node)
        return self.effects[node]

    def _found(self, node: Node) -> _Effects | None:
        if node.op in ("placeholder", "get_attr"):
            return _Effects()
        function, value = _function(node), node.meta.get("example_value")
        if self._bodies(node):
            return None
        if function in _IDLE:
            return _Effects()
        leaves = tree_leaves(value)
        if all(isinstance(leaf, (int, torch.SymInt)) for leaf in leaves):  # what asks for sizes, and what computes with them
            return _Effects() if leaves and (node.op == "call_method" or function.__module__ == "_operator") else None
        if not all(isinstance(leaf, (Tensor, int, torch.SymInt)) and not free_unbacked_symbols(leaf) for leaf in leaves):
            return None
        try:
            return self._called(function, node.args, node.kwargs)[0]
        except Exception:
            return None

    def _count(self, node: Node) -> None:
        """Count a call in the summary."""
        if node.target in _JOINED:
            self.summary.fused[node.meta.get("trinn", node.target.__name__)] += 1  # type: ignore[union-attr]
        elif node.target in _OURS or node.target in (pad, _mean):
            self.summary.taken[node.target.__name__.strip("_")] += 1  # type: ignore[union-attr]
        elif node.target is not operator.getitem and not self._bodies(node) and not self._is_view(node):
            function = _function(node)
            self.summary.left[getattr(function, "__name__", str(function)), node.meta.get("trinn", "trinn has none")] += 1

    def _is_view(self, node: Node) -> bool:
        """Whether a call makes no tensor of numbers, or one out of memory that its arguments have, and writes nothing."""
        if not _storages([node]):
            return True
        effects = self._effects(node)
        return effects is not None and not effects.writes and _storages([node]) <= _storages(node.all_input_nodes)


def _storages(nodes: Iterable[Node]) -> set[int]:
    """What is under the floating-point tensors that are the values of nodes."""
    values = tree_leaves([node.meta.get("example_value") for node in nodes])
    return {_storage(value) for value in values if isinstance(value, Tensor) and value.is_floating_point()}


def _function(node: Node) -> Any:
    return getattr(Tensor, node.target, node.target) if node.op == "call_method" else node.target  # type: ignore[arg-type]


def _bound(function: Operator, node: Node) -> inspect.BoundArguments:
    """A call's arguments as those of a function, all of them."""
    bound = inspect.signature(function).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    return bound
