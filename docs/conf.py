"""Sphinx reads this: the documentation is Markdown, the reference comes from the docstrings."""

project = "layerlimit"
author = "the layerlimit developers"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "alabaster"
autodoc_typehints = "description"
autodoc_member_order = "bysource"
nitpicky = False
