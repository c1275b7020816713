"""The tests in this folder share `sources.py` with those beside it."""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parents[1]))
