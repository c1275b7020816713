"""Predictions for a user's own images: to a table, a file that a second run goes on with, and a page."""
