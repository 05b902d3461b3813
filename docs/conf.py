"""The settings of the documentation, for Sphinx. `make docs` builds it; a warning is an error."""

from importlib.metadata import version as version_of

project = "mavqa"
author = "the mavqa authors"
version = release = version_of("mavqa")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click"]
html_theme = "furo"
html_title = f"mavqa {version}"
html_static_path = ["images"]
html_show_copyright = False

# Headings are link targets, such as `methods.md#what-the-paper-leaves-open`; a broken one is a warning.
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

autodoc_typehints = "none"
autodoc_member_order = "bysource"
default_role = "code"
highlight_language = "none"
smartquotes = False
nitpicky = False
