"""Evaluations of checkpoints and of published weights."""
