"""Write functions.md, the page of the functions of PyTorch that have a rule.

``python docs/list_functions.py`` writes it; with ``--check``, the exit status tells whether it would change.
"""

import sys
from pathlib import Path
from typing import Any

import nntk.propagation  # noqa: F401 (registers the rules)
from nntk.propagation.registry import (
    COMPLEX,
    COMPOSED,
    DISCRETE,
    IN_PLACE,
    QUERIES,
    RANDOM,
    RULES,
    WRITES,
    functions_named,
)

PAGE = Path(__file__).parent / "functions.md"
WITHOUT = (
    "acos", "acosh", "addbmm", "addcdiv", "addcmul", "addmv", "addr", "aminmax", "argsort", "as_strided",
    "asin", "asinh", "atan", "atan2", "atanh", "bernoulli", "bilinear", "bincount", "bucketize", "cdist",
    "cholesky", "conj", "copysign", "corrcoef", "cosh", "cosine_similarity", "count_nonzero", "cov", "cross",
    "ctc_loss", "cummax", "cummin", "cumprod", "deg2rad", "det", "diag", "diag_embed", "diff", "digamma",
    "dist", "embedding_bag", "erf", "erfc", "erfinv", "exp2", "expm1", "fill_", "float_power", "floor_divide",
    "fmax", "fmin", "fmod", "fold", "grid_sample", "gumbel_softmax", "half", "hardshrink", "histc",
    "huber_loss", "hypot", "i0", "index_add", "index_copy", "index_fill", "index_put", "instance_norm",
    "inverse", "isclose", "isfinite", "isinf", "isnan", "item", "kl_div", "kron", "kthvalue", "l1_loss",
    "ldexp", "lerp", "lgamma", "local_response_norm", "log10", "log1p", "log2", "logaddexp", "logit",
    "masked_scatter", "masked_select", "matrix_exp", "maximum", "median", "meshgrid", "minimum", "mode",
    "moveaxis", "mse_loss", "multi_dot", "multinomial", "nan_to_num", "nll_loss", "nonzero", "norm", "numpy",
    "outer", "pairwise_distance", "pinverse", "polar", "prod", "put", "qr", "quantile", "rand", "randn",
    "renorm", "rot90", "rrelu", "scatter_add", "scatter_reduce", "searchsorted", "sinc", "sinh", "softmin",
    "softshrink", "softsign", "sort", "std", "svd", "take", "take_along_dim", "tan", "tanhshrink", "tensordot",
    "threshold", "tolist", "trace", "trapezoid", "unique", "vander", "var", "view_as_real", "xlogy", "zero_",
    "allclose", "index_reduce", "gradient", "histogram", "max_unpool2d", "segment_reduce", "lstsq", "isin",
)  # fmt: skip
"""Names of functions that are listed although they may have no rule."""
TABLES = ((COMPOSED, "composed"), (RULES, "rule"), (COMPLEX, "rule"), (QUERIES, "query"))
HEAD = """# Functions of displaced values

What [difference propagation](../nntk/propagation/README.md) does with a function of PyTorch, in `torch`,
`torch.nn.functional` or as a method of a tensor, that meets a value which the displacement changes:

* **rule**: the difference is computed by a rule. Some arguments may still be refused.
* **composed**: the function is expressed by others that have rules.
* **query**: the result depends on the shape or the dtype alone.
* **in place**: computed out of place, and the first argument is replaced.
* **random**: it draws random numbers, and the model is evaluated at displaced copies of its parameters.
* **copies**: it has no rule, and the model is evaluated at displaced copies; `propagation="difference"` raises.

The last column says whether booleans and integers that the displacement changes, such as the outcome of a comparison,
may be among its arguments. `python docs/list_functions.py` writes this page.

| function | values | booleans and integers |
|---|---|---|
"""


def registered_names() -> set[str]:
    """Return the names of the functions that have a rule and that users call."""
    functions = {*RULES, *COMPOSED, *QUERIES, *IN_PLACE, *DISCRETE}
    names = {getattr(function, "__name__", "") for function in functions}
    return {name for name in names if not name.startswith("_") and any(functions_named(name))}


def treatment(functions: list[Any]) -> str:
    """Return what is done with displaced values that meet some functions of the same name."""
    if any(function in RANDOM for function in functions):
        return "random"
    if any(function in IN_PLACE for function in functions):
        return "in place"
    if any(function in WRITES for function in functions):
        return "copies"
    return next((word for table, word in TABLES if any(function in table for function in functions)), "copies")


def page() -> str:
    """Return the text of the page."""
    rows = []
    for name in sorted({*registered_names(), *WITHOUT}):
        functions = [function for function in functions_named(name) if callable(function)]
        if functions:
            takes = any(function in DISCRETE or function in QUERIES for function in functions)
            rows.append(f"| `{name}` | {treatment(functions)} | {'yes' if takes else 'no'} |\n")
    return HEAD + "".join(rows)


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(PAGE.read_text() != page())
    PAGE.write_text(page())
