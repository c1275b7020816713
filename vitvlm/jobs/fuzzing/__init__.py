"""Fuzzing of what reads files and strings from anywhere: nothing may fail but by the error that it documents."""
