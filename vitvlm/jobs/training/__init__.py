"""Trainings: from a config to a running job."""
