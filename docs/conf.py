"""Configuration of the Sphinx site; `make docs` builds it."""

import importlib
import inspect
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from sphinx.util.docutils import SphinxDirective  # noqa: E402

import eoi_jax  # noqa: E402

project = "eoi_jax"
author = "the authors of eoi_jax"
project_copyright = author
version = release = eoi_jax.__version__

extensions = [
  "myst_nb",
  "sphinx.ext.autodoc",
  "sphinx.ext.napoleon",
  "sphinx.ext.viewcode",
  "sphinx_copybutton",
  "sphinx_design",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
nitpicky = False
default_role = "code"  # `x` in docstrings is code

# Pages. Notebooks are shown with their committed outputs; the tests run them.
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"

# The API.
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
viewcode_line_numbers = True

pygments_dark_style = "monokai"
html_theme = "furo"
html_title = f"eoi_jax {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True


def _unwrap_jit(app, what, name, value, options, signature, returns):
  """Gives functions under `jax.jit` the signature that they are written with."""
  del app, what, name, options, returns
  function = inspect.unwrap(value) if callable(value) else value
  if function is not value and not signature:
    return str(inspect.signature(function)), None
  return None


def _skip_field(app, what, name, value, skip, options):
  """Leaves fields of named tuples out: the docstring of the class describes them."""
  del app, what, name, options
  return True if type(value).__name__ == "_tuplegetter" else skip


class Api(SphinxDirective):
  """`.. api:: module`: a table of all its public names, then each in full.

  The table shows a name that the top level has, too, as `eoi_jax.name`, the short way
  to it. The entries keep to the module's path: a page of source has one path back.
  """

  required_arguments = 1

  def run(self):
    """Returns the nodes."""
    (path,) = self.arguments
    module = importlib.import_module(path)
    rows, entries = [], []
    for name in module.__all__:
      value, full = getattr(module, name), f"{path}.{name}"
      short = f"eoi_jax.{name}" if name in eoi_jax.__all__ else full
      role, kind = ("class", "autoclass") if inspect.isclass(value) else ("func", "")
      summary = inspect.getdoc(value).partition("\n")[0]
      rows += [f"   * - :py:{role}:`{short} <{full}>`", f"     - {summary}"]
      entries += [f".. {kind or 'autofunction'}:: {full}"]
      entries += ["   :members:", ""] if kind else [""]
    table = [".. list-table::", "   :widths: 30 70", "   :class: api", "", *rows, ""]
    return self.parse_text_to_nodes("\n".join(table + entries))


def setup(app):
  """Connects the handlers."""
  app.add_directive("api", Api)
  app.connect("autodoc-process-signature", _unwrap_jit)
  app.connect("autodoc-skip-member", _skip_field)
