"""Settings of the documentation site.

The source folder is the root of the repository, so that the links of READMEs work there and on the site.
"""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

import nntk

sys.path.insert(0, str(Path(__file__).parent))

project = "nntk"
author = "The nntk authors"
version = release = nntk.__version__

root_doc = "docs/index"
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/**",
    "kernels/*/*.md",
    "nntk/models/isolation/*.md",
    "nntk/propagation/*.md",
    "results/*.md",
    "results/studies/README.md",
    "results/studies/*/README.md",
    "tests/*.md",
]
# Sphinx follows links: nntk/kernels and nntk/bench are the folders of the same names at the top.
exclude_patterns = [".*", "docs/_build", "nntk/kernels", "nntk/bench", "bench", "build", "profiles", "report"]
exclude_patterns += ["results/studies/quick"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "mathml"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# Some pages, such as the history of a kernel, are reached by links of other pages alone.
suppress_warnings = ["toc.not_included"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {
    "members": True,
    # Methods that scikit-learn adds, with references into its own documentation.
    "exclude-members": "set_fit_request, set_partial_fit_request, set_predict_request, set_score_request",
}
python_maximum_signature_line_length = 100
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# "Returns:" opens with a phrase such as "The weights, [M], float64:", which is no type to be linked.
napoleon_use_rtype = False

# The site is built without a network, so that no inventory of another project can be read: names of others have no
# links. Modules of nntk without public names have no page. Type variables are no objects.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|numpy|np|gpytorch|linear_operator|sklearn|scipy|collections|pathlib|os|typing|datetime)\..*"),
    (r"py:.*", r"(int|float|bool|str|bytes|list|tuple|dict|range|object|slice|None|type)"),
    (r"py:.*", r"nntk\.(displacements|estimators|linalg|models|propagation)(\.\w+)*"),
    (r"py:.*", r"nntk\.(distributed|settings)\.\w+(\.\w+)+|nntk\.settings\.\w+"),
    (r"py:.*", r"nntk\.kernels(\.\w+)*\.(activations|definition|distributions|reference)(\.\w+)*"),
    (r"py:.*", r"nntk\..*\.(T|Op)"),
    # Sections "Raises:" name exceptions without their module, which is not that of the page.
    (r"py:exc", r"\w+"),
]

html_theme = "furo"
html_title = f"nntk {release}"
html_math_renderer = "mathml"
html_static_path = ["static"]
html_css_files = ["custom.css"]
html_extra_path = ["redirect"]
html_show_copyright = False
html_show_sourcelink = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def _prepare(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Rewrite lines that napoleon or reStructuredText would misread.

    The first line of an attribute is prose, though napoleon takes the words before a colon for a type. The star of a
    shape such as ``[M, *shape]`` opens no emphasis.
    """
    if what in ("attribute", "data", "property") and lines:
        lines[0] = f": {lines[0]}"
    lines[:] = [re.sub(r"(?<=[\[ ])\*(?=\w+[\],])", r"\\*", line) for line in lines]


def _keep_last_underscore(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Escape names such as ``alpha_``, which reStructuredText reads as references."""
    lines[:] = [re.sub(r"^:ivar (\w+)_:", r":ivar \1\\_:", line) for line in lines]


def _name_factories(
    app: Sphinx, what: str, name: str, value: object, options: object, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Write ``...`` for a default that a dataclass makes anew: Sphinx cannot parse ``<factory>``."""
    return signature and signature.replace("<factory>", "..."), returned


def setup(app: Sphinx) -> None:
    """Connect the functions above, those of docstrings before napoleon's and after it."""
    app.connect("autodoc-process-signature", _name_factories)
    app.connect("autodoc-process-docstring", _prepare, priority=400)
    app.connect("autodoc-process-docstring", _keep_last_underscore, priority=600)
