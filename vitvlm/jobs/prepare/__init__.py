"""Preparing a data set: a source is looked through, what is wrong with it is reported, what is asked for is dropped.

captions, hashes and letters judge one caption or image; scan looks at every example once; problems finds what is wrong
and decides what goes; report is what people read; job writes the prepared set.
"""
