"""Text of functions, by which code is told apart: without comments, layout and documentation."""

import ast
import dis
import inspect
import linecache
import textwrap
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType

_OPERATIONS = {
    "read": ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "LOAD_GLOBAL", "LOAD_NAME"),
    "global": ("LOAD_GLOBAL", "LOAD_NAME"),
    "written": ("STORE_ATTR",),
}
"""Parts of the names of Python's operations on a name, by the use that they make of it."""


@lru_cache(maxsize=4096)
def code_text(code: CodeType) -> str:
    """Return a text of the code of a function that is the same in every process.

    Args:
        code: Code of a function or of a lambda.

    Returns:
        The source in a standard layout, without comments and documentation; the bytecode, which depends on the version
        of Python, where there is no source or it does not say which of several lambdas is meant.
    """
    try:
        text = _lambda_text(code) if code.co_name == "<lambda>" else _function_text(inspect.getsource(code))
    except (OSError, SyntaxError, ValueError, IndexError, TypeError):
        text = None
    return f"bytecode {_bytecode(code)}" if text is None else text


@lru_cache(maxsize=4096)
def names_in(code: CodeType, use: str = "read") -> frozenset[str]:
    """Return the names of globals and attributes that a code uses, those of functions inside of it included.

    Args:
        code: Code of a function.
        use: ``"read"`` for globals and attributes that are read, ``"global"`` for the globals among them, ``"written"``
            for attributes that are written.

    Returns:
        The names.
    """
    kinds = _OPERATIONS[use]
    own = {step.argval for step in dis.get_instructions(code) if any(kind in step.opname for kind in kinds)}
    return frozenset(own).union(*(names_in(inner, use) for inner in _inner_codes(code)))


def _function_text(source: str) -> str:
    tree = ast.parse(textwrap.dedent(source))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and ast.get_docstring(node, False):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _lambda_text(code: CodeType) -> str | None:
    """Return the text of a lambda; None if several ones in its line differ and cannot be told apart."""
    inspect.getsource(code)  # It brings the lines of the file up to date, or fails.
    lambdas = _lambdas("".join(linecache.getlines(code.co_filename))).get(code.co_firstlineno, ())
    texts = {ast.unparse(node) for node in lambdas}
    if len(texts) > 1 and hasattr(code, "co_positions"):
        places = [(line, column) for line, _, column, _ in code.co_positions() if line and column is not None]
        texts = {ast.unparse(node) for node in lambdas if _is_innermost(node, lambdas, max(places))}
    return texts.pop() if len(texts) == 1 else None


def _is_innermost(node: ast.Lambda, lambdas: tuple[ast.Lambda, ...], place: tuple[int, int]) -> bool:
    """Return whether a lambda is the innermost one around a place, a line and a column."""

    def contains(outer: ast.Lambda) -> bool:
        end = (outer.end_lineno or 0, outer.end_col_offset or 0)
        return (outer.body.lineno, outer.body.col_offset) <= place < end

    around = [candidate for candidate in lambdas if contains(candidate)]
    return bool(around) and node is max(around, key=lambda candidate: candidate.col_offset)


@lru_cache(maxsize=16)
def _lambdas(text: str) -> dict[int, tuple[ast.Lambda, ...]]:
    """Return the lambdas of a file by their line."""
    found: dict[int, tuple[ast.Lambda, ...]] = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Lambda):
            found[node.lineno] = (*found.get(node.lineno, ()), node)
    return found


def _bytecode(code: CodeType) -> str:
    constants = [repr(value) for value in code.co_consts if isinstance(value, int | float | complex | str | bytes)]
    inner = [_bytecode(value) for value in _inner_codes(code)]
    return repr((code.co_code.hex(), constants, code.co_names, code.co_varnames, inner))


def _inner_codes(code: CodeType) -> Iterator[CodeType]:
    return (value for value in code.co_consts if isinstance(value, CodeType))
