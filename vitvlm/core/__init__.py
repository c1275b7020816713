"""Paths and rules over parameter trees, durations, registries and config checking."""
