"""Layers that a forward calls one after the other, joined: what `convert(..., fuse=True)` does to a model.

A module whose forward calls layers in a row, `self.relu(self.bn(self.conv(x)))`, gets a subclass of its class in which such
calls are one call of `in_a_row`, and which is otherwise the same. `in_a_row` does what the calls did: it looks at the layers
that are there when it is called, joins those that layers/fused.py can join, and calls the others. Children, names and values
stay.

What is found: in nn.Sequential, and in subclasses that leave its forward as it is, children in a row. In other classes, the
source of their methods is read, and what is joined in it are

    calls within calls       F.relu(self.bn(self.conv(x)))
    statements in a row      x = self.conv(x); x = self.bn(x); return self.relu(x)        if nothing else sees what is between
    the tail of a block      y = self.bn(y); ...; y += x; y = self.relu(y)                if what stands between leaves y alone

of layers that are attributes, and of F.relu and torch.relu. All other statements, branches, loops and side effects stay in
place; but the batch norm of a tail is called after what it is added to is computed. Methods are left as they are whose source
is not there or is not what runs, that are decorated, or that use super(), nested functions, try, or generators. Lazy layers
are found once they have their sizes and `convert` is called again.
"""

import __future__

import ast
import copy
import copyreg
import functools
import inspect
import operator
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from trinn.layers.batchnorm2d import BatchNorm1d, BatchNorm2d
from trinn.layers.classes import Layer, Unannounced, become, replaced
from trinn.layers.conv2d import Conv2d
from trinn.layers.fused import bn_add_relu, bn_relu, conv_bn_relu, conv_relu, conv_relu_max_pool, linear_relu
from trinn.layers.linear import Linear
from trinn.layers.pool2d import MaxPool2d
from trinn.layers.relu import ReLU

# The names of a module's children, and which of KINDS they are.
Children = tuple[tuple[str, "Layer | None"], ...]

KINDS: tuple[Layer, ...] = (Conv2d, BatchNorm2d, BatchNorm1d, Linear, ReLU, MaxPool2d)
# What is joined; the first that fits.
JOINED: dict[tuple[Layer | None, ...], Callable[..., Tensor]] = {
    (Conv2d, BatchNorm2d, ReLU): conv_bn_relu,
    (Conv2d, BatchNorm2d): lambda conv, bn, input: conv_bn_relu(conv, bn, None, input),
    (Conv2d, ReLU, MaxPool2d): conv_relu_max_pool,
    (Conv2d, ReLU): conv_relu,
    (BatchNorm2d, ReLU): bn_relu,
    (BatchNorm1d, ReLU): bn_relu,
    (Linear, ReLU): linear_relu,
}
_RELU = ReLU()  # for one that is a function


def in_a_row(layers: Sequence[Any], input: Any) -> Any:
    """What the last of the layers makes of what the one before makes of ... the input.

    Args:
        layers: modules or functions, or pairs of F.relu and its `inplace`.
    """
    kinds = [kind_of(layer) for layer in layers]
    start = 0
    while start < len(layers):
        stop = joined_until(kinds, start) if isinstance(input, Tensor) else start  # not what torch.fx traces
        if stop > start:
            run = [layer if isinstance(layer, nn.Module) else _RELU for layer in layers[start:stop]]
            input, start = JOINED[tuple(kinds[start:stop])](*run, input), stop
        else:
            input, start = _called(layers[start], input), start + 1
    return input


def with_residual(norm: Any, relu: Any, in_place: bool, input: Any, residual: Any) -> Any:
    """relu(norm(input) + residual), the sum being written over the first of the two or not."""
    if isinstance(norm, BatchNorm2d) and kind_of(relu) is ReLU and isinstance(input, Tensor) and isinstance(residual, Tensor):
        if (residual.shape, residual.dtype, residual.device) == (input.shape, input.dtype, input.device):
            return bn_add_relu(norm, relu if isinstance(relu, ReLU) else _RELU, input, residual)
    return _called(relu, (operator.iadd if in_place else operator.add)(norm(input), residual))


# By the names that rewritten methods know them by.
CALLED = {f"trinn_{function.__name__}": function for function in (in_a_row, with_residual)}


def kind_of(layer: Any) -> Layer | None:
    """Which of KINDS a layer or a function is."""
    function = layer[0] if isinstance(layer, tuple) else layer
    if function is F.relu or function is torch.relu:
        return ReLU
    return next((kind for kind in KINDS if isinstance(function, kind)), None)


def joined_until(kinds: Sequence[Layer | None], start: int) -> int:
    """Where what can be joined from `start` on ends; `start` itself if nothing can."""
    return next((start + len(run) for run in JOINED if tuple(kinds[start : start + len(run)]) == run), start)


def _called(layer: Any, input: Any) -> Any:
    return layer[0](input, inplace=layer[1]) if isinstance(layer, tuple) else layer(input)


def fuse(model: nn.Module) -> None:
    """Give the modules that call layers in a row subclasses that join them."""
    for module in model.modules():
        if not is_parametrized(module):
            children = tuple((name, kind_of(child)) for name, child in module._modules.items())

            def fused(cls: Layer, children: Children = children) -> Layer:
                was: Any = unfused(cls)
                return _fused(was, children) or was

            become(module, replaced(type(module), fused))


def unfused(cls: Layer) -> Layer:
    return vars(cls).get("_unfused", cls)


def joins_of(module: nn.Module) -> tuple[tuple[str, ...], ...]:
    """What a module's forward joins of the children that it has now: their names, and "+" before a residual's ReLU."""
    cls: Any = type(module)
    rows = [tuple(module._modules)] if cls.forward is _sequential else getattr(cls, "_joins", ())
    found: list[tuple[str, ...]] = []
    for names in rows:
        kinds = [kind_of(module._modules.get(name, F.relu)) for name in names]
        if "+" not in names:
            found += _runs(names, kinds)
        elif kinds[0] is BatchNorm2d and kinds[-1] is ReLU:
            found.append(names)
    return tuple(found)


@functools.cache
def _fused(cls: Any, children: Children) -> Layer | None:
    """A subclass that joins what a class, with children of such kinds, calls in a row; None where there is nothing to join."""
    members: dict[str, Any] = {}
    joins: list[tuple[str, ...]] = []
    if cls.forward is nn.Sequential.forward:
        joins += _runs([name for name, _ in children], [kind for _, kind in children])
        members["forward"] = _sequential
    elif not cls.__module__.startswith(("torch.", "trinn.layers.")) and not issubclass(cls, torch.jit.ScriptModule):
        for name, method in _methods(cls):
            found = len(joins)
            rewritten = _rewritten(method, dict(children), joins)
            if len(joins) > found:
                members[name] = rewritten
    if not joins:
        return None

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        """As torch's, but for the class, which is made anew where it is loaded."""
        function, args, *rest = super(fused, self).__reduce_ex__(max(int(protocol), 2))  # type: ignore[misc]
        if function is copyreg.__newobj__ and args[0] is fused:  # type: ignore[attr-defined]
            function, args = _new, (cls, children, *args[1:])
        return function, args, *rest

    members |= {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    members |= {"__reduce_ex__": __reduce_ex__, "_unfused": cls, "_joins": tuple(joins)}
    fused: Any = type(cls)(cls.__name__, (Unannounced, cls), members)
    return fused


def _new(cls: Any, children: Children, *args: Any) -> Any:
    """An instance without anything in it yet, as pickle and copy want it."""
    fused: Any = _fused(cls, children) or cls
    return fused.__new__(fused, *args)


def _sequential(self: nn.Sequential, input: Any) -> Any:
    return in_a_row(tuple(self._modules.values()), input)


def _runs(names: Sequence[str], kinds: Sequence[Layer | None]) -> Iterator[tuple[str, ...]]:
    """The names of what is joined of layers in a row."""
    start = 0
    while start < len(kinds):
        stop = joined_until(kinds, start)
        if stop > start:
            yield tuple(names[start:stop])
        start = max(stop, start + 1)


def _methods(cls: Layer) -> Iterator[tuple[str, types.FunctionType]]:
    """The methods of a class and of its bases that are not torch's, by name."""
    seen = set()
    for base in cls.__mro__:
        if base is object or base.__module__.startswith("torch."):
            continue
        for name, member in vars(base).items():
            if name not in seen and not name.startswith("__") and isinstance(member, types.FunctionType):
                yield name, member
            seen.add(name)


ANNOTATIONS = __future__.annotations.compiler_flag
# What may see a variable from elsewhere, or run other statements than the next.
UNTOUCHED = (
    ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.GeneratorExp, ast.Yield, ast.YieldFrom, ast.Await,
    ast.Try, ast.Global, ast.Nonlocal, ast.NamedExpr, ast.Delete,
)  # fmt: skip


def _rewritten(method: types.FunctionType, children: dict[str, Layer | None], joins: list[tuple[str, ...]]) -> Any:
    """A method whose calls in a row are joined, which are noted in `joins`; None where it is not to be touched."""
    function = _source(method)
    if function is None or {"locals", "vars", "dir", "eval", "exec"} & {*method.__code__.co_names}:
        return None
    if any(isinstance(node, UNTOUCHED) or _is_private(node) for statement in function.body for node in ast.walk(statement)):
        return None
    rewriter = _Rewriter(function, method.__globals__, children, joins)
    function.body = [rewriter.visit(statement) for statement in rewriter.block(function.body)]
    # It finds what it calls in variables of a function around it, not in `self`, whose class may change while it is kept.
    around: Any = ast.parse(f"def around({', '.join(CALLED)}): pass").body[0]
    around.body = [function]
    module = ast.fix_missing_locations(ast.Module([around], []))
    code = compile(module, method.__code__.co_filename, "exec", method.__code__.co_flags & ANNOTATIONS, dont_inherit=True)
    for _ in range(2):
        (code,) = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    cells = tuple(types.CellType(CALLED[name]) for name in code.co_freevars)
    rewritten: Any = types.FunctionType(code, method.__globals__, method.__name__, method.__defaults__, cells)
    rewritten.__kwdefaults__ = method.__kwdefaults__
    functools.update_wrapper(rewritten, method)
    del rewritten.__wrapped__
    return rewritten


def _source(method: types.FunctionType) -> ast.FunctionDef | None:
    """What a method was compiled from, without defaults and annotations; None if that is not to be had."""
    code = method.__code__
    if method.__closure__ is not None or hasattr(method, "__wrapped__"):
        return None
    try:
        lines, _ = inspect.findsource(method)
        definitions, codes = _contents("".join(lines), code.co_flags & ANNOTATIONS)
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    function = copy.deepcopy(definitions.get((code.co_name, code.co_firstlineno)))
    if function is None or not any(_same(code, other) for other in codes):
        return None
    arguments = function.args
    arguments.defaults, arguments.kw_defaults, function.returns = [], [None] * len(arguments.kwonlyargs), None
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    if hasattr(function, "type_params"):
        function.type_params = []
    return function


@functools.lru_cache(maxsize=4)
def _contents(source: str, flags: int) -> tuple[dict[tuple[str, int], ast.FunctionDef], list[types.CodeType]]:
    """The definitions in a file, by name and line, and all that is compiled from it."""
    tree = ast.parse(source)
    definitions = {(node.name, node.lineno): node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    codes = [compile(source, "", "exec", flags, dont_inherit=True)]
    for code in codes:  # which grows
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return definitions, codes


def _same(code: types.CodeType, other: types.CodeType) -> bool:
    """Whether a function runs what its file says now."""
    names = "co_name", "co_firstlineno", "co_code", "co_names", "co_varnames"
    constants = ([k for k in each.co_consts if not isinstance(k, types.CodeType)] for each in (code, other))
    return all(getattr(code, name) == getattr(other, name) for name in names) and next(constants) == next(constants)


class _Rewriter(ast.NodeTransformer):
    """Joins in the body of a function: `block` what stands in several statements, `visit` then what stands in one expression.

    A call of a layer is one with a single argument, of an attribute that is a child, or of F.relu or torch.relu.
    """

    def __init__(
        self, function: ast.FunctionDef, names: dict[str, Any], children: dict[str, Layer | None], joins: list[tuple[str, ...]]
    ) -> None:
        arguments = [node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)]
        used = [node for node in ast.walk(function) if isinstance(node, ast.Name)]
        self.me = (function.args.posonlyargs + function.args.args)[0].arg
        self.names, self.children, self.joins = names, children, joins
        self.loads = Counter(node.id for node in used if isinstance(node.ctx, ast.Load))
        self.stores = Counter(arguments + [node.id for node in used if not isinstance(node.ctx, ast.Load)])

    def block(self, statements: list[Any]) -> list[Any]:
        """Statements in a row, those put into the next that do nothing but hand a value to it."""
        done: list[Any] = []
        for statement in statements:
            for part in ("body", "orelse"):
                if isinstance(getattr(statement, part, None), list):
                    setattr(statement, part, self.block(getattr(statement, part)))
            if not self._is_tail(done, statement):
                while done and self._is_next(done[-1], statement):
                    done.pop()
            done.append(statement)
        return done

    def _is_next(self, before: Any, statement: Any) -> bool:
        """Whether a statement goes on with the one before, `y = a(x); y = b(y)`, and now contains it, `y = b(a(x))`."""
        name, call = _assigned(before), _value(statement)
        while self._is_layer(call) and self._is_layer(call.args[0]):
            call = call.args[0]
        if name is None or not self._is_layer(call) or not _is_name(call.args[0], name):
            return False
        if not self._is_layer(before.value) and not (self._kind(call) is ReLU and self._sum(before.value)):
            return False
        if not self._is_last_use(name, statement):
            return False
        call.args[0] = before.value
        return True

    def _is_tail(self, done: list[Any], statement: Any) -> bool:
        """Whether a statement ends `y = bn(y); ...; y += x; y = relu(y)`, and now is `y = relu(bn(y) + x)` in one call."""
        relu = _value(statement)
        if self._kind(relu) is not ReLU:
            return False
        total, user, before, in_place = relu.args[0], statement, list(done), False
        if isinstance(total, ast.Name) and done and _target(done[-1]) == total.id and self._is_last_use(total.id, statement):
            user = before.pop()
            in_place = isinstance(user, ast.AugAssign)
            total = ast.BinOp(ast.Name(total.id, ast.Load()), user.op, user.value) if in_place else user.value
        if not (isinstance(total, ast.BinOp) and isinstance(total.op, ast.Add)):
            return False
        orders = [(total.left, total.right)] if in_place else [(total.left, total.right), (total.right, total.left)]
        for value, residual in orders:
            if isinstance(value, ast.Name) and not _mentions(residual, value.id) and self._is_last_use(value.id, user):
                first = self._norm_of(value.id, before, residual)
                if first is not None:
                    norm = before[first].value
                    statement.value = self._with_residual(norm, relu, in_place, value, residual)
                    before[first].value = norm.args[0]
                    done[:] = [s for s in before if not _is_name(_value(s), _assigned(s))]
                    return True
        return False

    def _norm_of(self, name: str, before: list[Any], residual: Any) -> int | None:
        """Which statement is `name = bn(...)`, if that can as well be done after the others and the residual."""
        for i in range(len(before) - 1, -1, -1):
            if _mentions(before[i], name):
                norm = before[i].value if _assigned(before[i]) == name else None
                return i if self._can_wait(norm, [*before[i + 1 :], residual]) else None
            if not _is_quiet(before[i]):
                return None
        return None

    def _can_wait(self, norm: Any, others: list[Any]) -> bool:
        """Whether a call is that of a batch norm, of which and of whose input others do not know."""
        if self._kind(norm) is not BatchNorm2d:
            return False
        used = [n for other in others for n in ast.walk(other) if isinstance(n, ast.Attribute) and n.attr == norm.func.attr]
        return not used and (self._kind(norm.args[0]) is Conv2d or all(isinstance(other, ast.Name) for other in others))

    def _sum(self, node: Any) -> tuple[Any, Any] | None:
        """The call of the batch norm and the residual in bn(...) + residual."""
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            if self._can_wait(node.left, [node.right]):
                return node.left, node.right
            if isinstance(node.left, ast.Name) and self._can_wait(node.right, [node.left]):
                return node.right, node.left
        return None

    def visit_Call(self, node: ast.Call) -> Any:
        layers: list[Any] = []
        inner: Any = node
        while self._is_layer(inner):
            layers.insert(0, inner)
            inner = inner.args[0]
        found = self._sum(inner) if layers and self._kind(layers[0]) is ReLU else None
        if not layers:
            return self.generic_visit(node)
        if found is not None:
            norm, residual = found
            inner = self._with_residual(norm, layers.pop(0), False, self.visit(norm.args[0]), self.visit(residual))
        else:
            inner = self.visit(inner)
        runs = list(_runs([_shown(call) for call in layers], [self._kind(call) for call in layers]))
        if runs:
            self.joins += runs
            return self._call(in_a_row, node, ast.Tuple([self._callee(call) for call in layers], ast.Load()), inner)
        if layers:
            layers[0].args[0] = inner
        return node if layers else inner

    def _with_residual(self, norm: Any, relu: Any, in_place: bool, value: Any, residual: Any) -> ast.Call:
        self.joins.append((_shown(norm), "+", _shown(relu)))
        return self._call(with_residual, relu, norm.func, self._callee(relu), ast.Constant(in_place), value, residual)

    def _call(self, function: Callable[..., Any], at: Any, *args: Any) -> ast.Call:
        call = ast.Call(ast.Name(f"trinn_{function.__name__}", ast.Load()), [*args], [])
        return ast.copy_location(call, at)

    def _callee(self, call: Any) -> Any:
        """What is called, as `in_a_row` takes it."""
        options = [*call.args[1:], *(keyword.value for keyword in call.keywords)]
        return ast.Tuple([call.func, *options], ast.Load()) if options else call.func

    def _is_last_use(self, name: str, statement: Any) -> bool:
        """Whether nobody asks for the variable's present value after a statement."""
        once = self.loads[name] == self.stores[name] == 1
        return once or isinstance(statement, ast.Return) or _target(statement) == name

    def _is_layer(self, node: Any) -> bool:
        if not isinstance(node, ast.Call) or not node.args or isinstance(node.args[0], ast.Starred):
            return False
        if isinstance(node.func, ast.Attribute) and _is_name(node.func.value, self.me):
            return node.func.attr in self.children and len(node.args) == 1 and not node.keywords
        options = [*node.args[1:], *(keyword.value if keyword.arg == "inplace" else None for keyword in node.keywords)]
        return self._is_relu(node.func) and len(options) <= 1 and all(isinstance(option, ast.Constant) for option in options)

    def _kind(self, node: Any) -> Layer | None:
        """Of a layer that is called."""
        if not self._is_layer(node):
            return None
        return self.children[node.func.attr] if _is_name(getattr(node.func, "value", None), self.me) else ReLU

    def _is_relu(self, node: Any) -> bool:
        """Whether a name is, among those that the function knows, one of F.relu or torch.relu."""
        path: list[str] = []
        while isinstance(node, ast.Attribute):
            path.insert(0, node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or self.stores[node.id] or node.id not in self.names:
            return False
        return kind_of(functools.reduce(lambda found, name: getattr(found, name, None), path, self.names[node.id])) is ReLU


def _assigned(statement: Any) -> str | None:
    """The variable of `name = ...`."""
    return _target(statement) if isinstance(statement, ast.Assign) else None


def _target(statement: Any) -> str | None:
    """The one variable that a statement assigns, also as in `name += ...`."""
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    one = targets[0] if isinstance(statement, (ast.Assign, ast.AugAssign)) and len(targets) == 1 else None
    return one.id if isinstance(one, ast.Name) else None


def _value(statement: Any) -> Any:
    """The value of `name = value` and `return value`."""
    return statement.value if isinstance(statement, (ast.Assign, ast.Return)) else None


def _is_name(node: Any, name: str | None) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _mentions(node: ast.AST, name: str) -> bool:
    return any(_is_name(each, name) for each in ast.walk(node))


def _is_quiet(statement: Any) -> bool:
    """Whether a statement does no more than to give a variable a value, perhaps."""
    if isinstance(statement, ast.If):
        return all(map(_is_quiet, statement.body + statement.orelse))
    return _assigned(statement) is not None


def _is_private(node: ast.AST) -> bool:
    """Whether a name depends on the class that it stands in."""
    name = getattr(node, "attr", getattr(node, "id", ""))
    return name.startswith("__") and not name.endswith("__")


def _shown(call: Any) -> str:
    """The name of a child, or of a function with what it is in."""
    return ast.unparse(call.func).removeprefix("self.")
