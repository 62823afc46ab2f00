"""
How Sphinx builds this documentation: C{make docs}, which then has pydoctor
build the API's from the docstrings.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from twsessions import __version__  # noqa: E402

project = "twsessions"
author = "the twsessions authors"
copyright = "2026, " + author
version = release = __version__
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {
    "description": "Twisted Web's sessions, made real",
    "page_width": "62rem",
    "code_font_size": "0.8em",  # so that most code needs no scrolling
}
