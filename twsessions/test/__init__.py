"""
The tests of twsessions; C{make test} runs them.

Hypothesis has no deadline per example (a slow machine is no failure), and
under continuous integration it tries the same examples each time.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("twsessions", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("twsessions")
