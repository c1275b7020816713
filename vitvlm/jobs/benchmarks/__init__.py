"""Measurements against other code, and of what programs cost."""
