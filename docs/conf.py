"""Sphinx settings: pages from Markdown, notebooks executed, the reference from docstrings."""

project = "nucleate"
author = "The nucleate developers"
copyright = "2026, The nucleate developers"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["_build", "jupyter_execute"]
html_theme = "furo"
html_title = "nucleate"
html_show_sourcelink = False
myst_enable_extensions = ["dollarmath", "colon_fence"]
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
