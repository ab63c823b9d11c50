"""Sphinx settings: pages from Markdown, notebooks executed, the reference from docstrings."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "nucleate"
author = "The nucleate developers"
copyright = "2026, The nucleate developers"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "nucleate_docs"]
exclude_patterns = ["_build", "_ext", "jupyter_execute", "**/.ipynb_checkpoints"]
html_theme = "furo"
html_title = "nucleate"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["wide.css"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
# Every number of the pages is made when they are built.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 900
nb_merge_streams = True
# Fields of different specs share names, and a type in a signature may be one of them.
suppress_warnings = ["ref.python"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_use_rtype = False
