"""Caches in Triton's interpreter: a launch calls less than half as many Python functions, with the same results.

A program on small tiles spends most of its time on types: each operation builds the type, the shape and the constants of its
result again, each launch and each call of a device function looks up all functions of Triton's language. Here these are
computed once, for all kernels of the process, those of the user too.
"""

import dataclasses
import functools
import importlib
import inspect
import sys
from typing import Any

CONSTANTS = 4096  # scalar constants kept; a value that changes in every step would fill the memory


def add_caches() -> None:
    """Replace the interpreter's slowest functions, for a version of Triton in triton_internals.SUPPORTED."""
    core, semantic, interpreter = map(
        importlib.import_module, ("triton.language.core", "triton.language.semantic", "triton.runtime.interpreter")
    )
    builder = interpreter.interpreter_builder
    # The interpreter repeats each integer sum and product in int64, compares, and without debug ignores the result.
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    _cache_numpy_types(core, interpreter)
    _cache_shapes(core)
    _cache_constants(semantic.TritonSemantic, interpreter)
    _skip_conversions(semantic.TritonSemantic)
    _patch_once(core, interpreter)


def _cache_numpy_types(core: Any, interpreter: Any) -> None:
    """Keep NumPy's dtype of each scalar type."""
    find = interpreter._get_np_dtype
    scalar_type = functools.cache(find)
    interpreter._get_np_dtype = lambda kind: scalar_type(kind) if type(kind) is core.dtype else find(kind)


def _cache_shapes(core: Any) -> None:
    """Check and build each shape once: all blocks of a shape share it, and so do their tensors."""
    define = core.block_type.__init__

    @functools.lru_cache(None, typed=True)
    def known(*shape: Any) -> tuple[Any, int, str, tuple[Any, Any]]:
        block = core.block_type.__new__(core.block_type)
        define(block, core.float32, list(shape))
        of_tensors = core.tuple([core.constexpr(size) for size in block.shape]), core.constexpr(block.numel)
        return block.shape, block.numel, str(block.shape), of_tensors

    def define_block(self: Any, element_ty: Any, shape: Any) -> None:
        self.element_ty = element_ty
        self.shape, self.numel, text, self.of_tensors = known(*shape)
        self.name = f"<{text}, {element_ty}>"

    scalar = core.tuple([]), core.constexpr(1)

    def define_tensor(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = type.of_tensors if type.is_block() else scalar

    core.block_type.__init__, core.tensor.__init__ = define_block, define_tensor


def _cache_constants(semantic: Any, interpreter: Any) -> None:
    """Keep the tensors of constants. The interpreter writes to no tensor."""
    find = semantic.scalar_constant

    @functools.lru_cache(CONSTANTS)
    def constant(value: Any, dtype: Any) -> Any:
        return find(interpreter.interpreter_semantic, value, dtype)

    def constant_or_instruction(self: Any, value: Any, dtype: Any) -> Any:
        return constant(value, dtype) if self.builder is interpreter.interpreter_builder else find(self, value, dtype)

    semantic.scalar_constant = constant_or_instruction


def _skip_conversions(semantic: Any) -> None:
    """Return the operands at once if they have the wanted type or shape already."""
    cast, broadcast = semantic.cast, semantic.broadcast_impl_value

    def cast_or_same(self: Any, input: Any, dst_ty: Any, fp_downcast_rounding: Any = None) -> Any:
        return input if input.dtype is dst_ty else cast(self, input, dst_ty, fp_downcast_rounding)

    def broadcast_or_same(self: Any, lhs: Any, rhs: Any) -> Any:
        same = lhs.type.is_block() and rhs.type.is_block() and lhs.type.shape is rhs.type.shape
        return (lhs, rhs) if same else broadcast(self, lhs, rhs)

    semantic.cast, semantic.broadcast_impl_value = cast_or_same, broadcast_or_same


def _patch_once(core: Any, interpreter: Any) -> None:
    """Skip the replacement of Triton's functions in a device function if its kernel has replaced the same ones."""
    patch = interpreter._patch_lang
    nothing = interpreter._LangPatchScope()  # nothing to restore

    @functools.cache
    def languages(function: Any) -> tuple[Any, ...]:
        """triton.language or triton.language.core, as far as the function's module names them."""
        values = function.__globals__.values()
        return tuple(value for value in values if inspect.ismodule(value) and value in (core, sys.modules["triton.language"]))

    def patch_if_needed(function: Any) -> Any:
        used = languages(function)
        # The functions of each language are replaced at once, and so are the methods of tensors.
        original = any(map(core.is_builtin, [core.tensor.__add__, *(language.load for language in used)]))
        return patch(function) if original or not used else nothing

    interpreter._patch_lang = patch_if_needed
