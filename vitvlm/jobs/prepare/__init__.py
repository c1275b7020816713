"""Preparation of a data set: a source is scanned, problems are reported, and the chosen kinds are dropped.

captions, hashes and letters judge one caption or image; scan looks at every example once; problems finds what is wrong
and decides what goes; report is what people read; job writes the prepared set.
"""
