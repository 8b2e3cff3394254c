"""Operations on 32-bit words and single numbers that LLVM turns into vector instructions.

Numba widens the result of every operation on 32-bit integers to 64 bits, which halves the width of a vector. Each
function below is one LLVM instruction, or two; ``word`` means uint32.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

_WORD, _WIDE, _FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()


def _of_words(emit: Callable[[Any, Any, Any], Any]) -> Any:
    """Return the intrinsic of two words that ``emit`` builds; its result is a word."""

    @intrinsic
    def function(context: Any, left: Any, right: Any) -> Any:
        return types.uint32(types.uint32, types.uint32), lambda c, builder, s, a: emit(builder, a[0], a[1])

    return function


def _of_one(argument: Any, result: Any, emit: Callable[[Any, Any], Any]) -> Any:
    """Return the intrinsic of one number that ``emit`` builds."""

    @intrinsic
    def function(context: Any, number: Any) -> Any:
        return result(argument), lambda c, builder, s, a: emit(builder, a[0])

    return function


def _high_product(builder: Any, left: Any, right: Any) -> Any:
    product = builder.mul(builder.zext(left, _WIDE), builder.zext(right, _WIDE))
    return builder.trunc(builder.lshr(product, ir.Constant(_WIDE, 32)), _WORD)


def _square_root(builder: Any, number: Any) -> Any:
    return builder.call(builder.module.declare_intrinsic("llvm.sqrt", [_FLOAT]), [number])


add = _of_words(lambda builder, left, right: builder.add(left, right))
subtract = _of_words(lambda builder, left, right: builder.sub(left, right))
multiply_low = _of_words(lambda builder, left, right: builder.mul(left, right))
multiply_high = _of_words(_high_product)
exclusive_or = _of_words(lambda builder, left, right: builder.xor(left, right))
both = _of_words(lambda builder, left, right: builder.and_(left, right))
either = _of_words(lambda builder, left, right: builder.or_(left, right))
shift_left = _of_words(lambda builder, left, right: builder.shl(left, right))
shift_right = _of_words(lambda builder, left, right: builder.lshr(left, right))
shift_right_signed = _of_words(lambda builder, left, right: builder.ashr(left, right))

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
