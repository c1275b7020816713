"""Measures of texts that models write: pure functions of strings, which need no model and no images."""
