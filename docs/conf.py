"""Configuration of the documentation: ``sphinx-build -W -b html docs docs/_build/html``."""

from sb3_qam import __version__

project = "sb3-qam"
author = "The sb3-qam developers"
copyright = "2026, The sb3-qam developers"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx_copybutton"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "figures"]
linkcheck_timeout = 20
html_theme = "sphinx_rtd_theme"
html_static_path = ["_static"]
html_css_files = ["tables.css"]

autodoc_typehints = "description"
autodoc_member_order = "bysource"
autoclass_content = "class"
