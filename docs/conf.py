"""How Sphinx builds the site: `sphinx-build -W --keep-going docs docs/_build`."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_ext"))
sys.path.insert(0, str(HERE.parent))

project = "emspatialvae"
author = "the emspatialvae developers"
project_copyright = author
release = version = version_of("emspatialvae")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    # Formulas become pictures while the site is built: no LaTeX here, and no script from the network when a page is read.
    "matplotlib.sphinxext.mathmpl",
    "emsvae_reference",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "_ext"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
napoleon_google_docstring = False
napoleon_use_rtype = False

suppress_warnings = []
html_theme = "furo"
html_title = f"emspatialvae {release}"
html_copy_source = False
html_show_sourcelink = False
mathmpl_fontsize = 13.0
mathmpl_srcset = ["2x"]
