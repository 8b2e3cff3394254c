"""Operations on 32-bit words and single numbers that LLVM turns into vector instructions.

Numba widens the result of every operation on 32-bit integers to 64 bits, which halves the width of a vector. Each
function below is one LLVM instruction, or two; ``word`` means uint32, and a wide number is uint64.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

_WORD, _WIDE, _FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()


def _of_two(number: Any, emit: Callable[[Any, Any, Any], Any]) -> Any:
    """Return the intrinsic of two integers of a type that ``emit`` builds; its result has their type."""

    @intrinsic
    def function(context: Any, left: Any, right: Any) -> Any:
        return number(number, number), lambda c, builder, s, a: emit(builder, a[0], a[1])

    return function


def _of_one(argument: Any, result: Any, emit: Callable[[Any, Any], Any]) -> Any:
    """Return the intrinsic of one number that ``emit`` builds."""

    @intrinsic
    def function(context: Any, number: Any) -> Any:
        return result(argument), lambda c, builder, s, a: emit(builder, a[0])

    return function


def _product(builder: Any, left: Any, right: Any) -> Any:
    """Return the product of the low halves: one instruction of a vector, which ignores the high halves."""
    mask = ir.Constant(_WIDE, 0xFFFFFFFF)
    return builder.mul(builder.and_(left, mask), builder.and_(right, mask))


def _selected(builder: Any, comparison: str, left: Any, right: Any) -> Any:
    return builder.select(builder.icmp_unsigned(comparison, left, right), left, right)


def _square_root(builder: Any, number: Any) -> Any:
    return builder.call(builder.module.declare_intrinsic("llvm.sqrt", [_FLOAT]), [number])


add = _of_two(types.uint32, lambda builder, left, right: builder.add(left, right))
subtract = _of_two(types.uint32, lambda builder, left, right: builder.sub(left, right))
both = _of_two(types.uint32, lambda builder, left, right: builder.and_(left, right))
either = _of_two(types.uint32, lambda builder, left, right: builder.or_(left, right))
exclusive_or = _of_two(types.uint32, lambda builder, left, right: builder.xor(left, right))
shift_left = _of_two(types.uint32, lambda builder, left, right: builder.shl(left, right))
shift_right = _of_two(types.uint32, lambda builder, left, right: builder.lshr(left, right))
larger_word = _of_two(types.uint32, lambda builder, left, right: _selected(builder, ">", left, right))
smaller_word = _of_two(types.uint32, lambda builder, left, right: _selected(builder, "<", left, right))
shift_right_signed = _of_two(types.uint32, lambda builder, left, right: builder.ashr(left, right))

wide_add = _of_two(types.uint64, lambda builder, left, right: builder.add(left, right))
wide_exclusive_or = _of_two(types.uint64, lambda builder, left, right: builder.xor(left, right))
wide_product = _of_two(types.uint64, _product)
high_half = _of_one(types.uint64, types.uint64, lambda builder, number: builder.lshr(number, ir.Constant(_WIDE, 32)))
low_half = _of_one(types.uint64, types.uint32, lambda builder, number: builder.trunc(number, _WORD))

bits_of = _of_one(types.float32, types.uint32, lambda builder, number: builder.bitcast(number, _WORD))
float_of = _of_one(types.uint32, types.float32, lambda builder, word: builder.bitcast(word, _FLOAT))
to_float = _of_one(types.uint32, types.float32, lambda builder, word: builder.uitofp(word, _FLOAT))
signed_to_float = _of_one(types.uint32, types.float32, lambda builder, word: builder.sitofp(word, _FLOAT))
square_root = _of_one(types.float32, types.float32, _square_root)


@intrinsic
def select(context: Any, word: Any, where_set: Any, elsewhere: Any) -> Any:
    """Return ``where_set`` if the word is not zero, else ``elsewhere``, without a branch."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        is_set = builder.icmp_unsigned("!=", arguments[0], ir.Constant(_WORD, 0))
        return builder.select(is_set, arguments[1], arguments[2])

    return types.float32(types.uint32, types.float32, types.float32), emit


@intrinsic
def multiply_add(context: Any, left: Any, right: Any, addend: Any) -> Any:
    """Return left * right + addend, rounded once where the CPU can: the same for one number as for a vector."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = ir.FunctionType(_FLOAT, [_FLOAT] * 3)
        return builder.call(builder.module.declare_intrinsic("llvm.fmuladd", [_FLOAT], function), arguments)

    return types.float32(types.float32, types.float32, types.float32), emit


@intrinsic
def larger(context: Any, left: Any, right: Any) -> Any:
    """Return the larger of two numbers, the right one where one is NaN."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *arguments), *arguments)

    return left(left, left), emit
