"""Images that look alike: a difference hash, compared by bands so that a large set needs no pass over all pairs."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int, UInt8, UInt16

from vitvlm.data.operations import decoding, geometry

BANDS, BAND_BITS = 8, 16
BITS = BANDS * BAND_BITS
FARTHEST = BANDS - 1  # bits; two hashes that differ in fewer bits than there are bands agree in one band at least
SHARE = 0.25  # of the bits that either hash has set may differ; a thin thing before white has few
MARGIN = 4  # grey levels; smaller differences are noise, and flat areas are full of it
THUMBNAIL = 8  # pixels of a side
BRIGHTER = 32.0  # grey levels by which the whole of one image may be brighter
FARTHEST_COLOUR = 8.0  # grey levels between thumbnails beyond that, the mean over pixels and colours


def difference_hash(pixels: UInt8[np.ndarray, "H W 3"]) -> UInt16[np.ndarray, "8"]:
    """128 bits: where a 9x9 grey image grows brighter to the right, and where it does so downward, dealt to BANDS.

    A difference hash (dHash) survives scaling, compression and small changes of brightness and contrast. Neighbouring
    bits go to different bands, so that no band is of one place of the image.
    """
    grey = geometry.resize(decoding.decode(pixels, 1), 9)[..., 0].astype(np.int16)
    right = grey[:8, 1:] - grey[:8, :-1] > MARGIN
    down = grey[1:, :8] - grey[:-1, :8] > MARGIN
    bits = np.concatenate([right.ravel(), down.ravel()])
    return np.ascontiguousarray(np.packbits(bits.reshape(BAND_BITS, BANDS).T, axis=1)).view(np.uint16)[:, 0]


def colour_thumbnail(pixels: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "8 8 3"]:
    """Makes a thumbnail that tells flags, and other images that differ only in colour, from one another."""
    return geometry.resize(pixels, THUMBNAIL)


def near_pairs(
    hashes: UInt16[np.ndarray, "n 8"], thumbnails: UInt8[np.ndarray, "n 8 8 3"], farthest: int = FARTHEST
) -> Int[np.ndarray, "m 2"]:
    """All pairs (i < j, sorted) of images that look alike.

    Their hashes differ in at most `farthest` bits, and in at most SHARE of those set, and their thumbnails are close.

    With `farthest` below BANDS no pair is missed: it agrees in one band at least, and within each band those of equal
    value are compared. Of a million images a value is shared by some 15 where hashes are spread evenly; the work grows
    with the squares of these groups.

    Raises ValueError for a larger `farthest`.
    """
    if not 0 <= farthest < BANDS:
        raise ValueError(f"farthest={farthest} must be from 0 to {FARTHEST} bits, fewer than there are bands")
    found = [np.zeros((0, 2), np.int64)]
    for band in range(BANDS):
        for pairs in _pairs(hashes[:, band]):
            found.append(pairs[_alike(pairs, hashes, thumbnails, farthest)])
    return np.unique(np.concatenate(found), axis=0)


def _pairs(values: UInt16[np.ndarray, " n"]) -> Iterator[Int[np.ndarray, "m 2"]]:
    """Every pair i < j of equal values: sorted, those one place apart, those two places apart …"""
    order = np.argsort(values, kind="stable")
    values = values[order]
    places, apart = np.arange(len(values)), 1
    while True:
        places = places[places + apart < len(values)]
        places = places[values[places] == values[places + apart]]
        if not len(places):
            return
        yield np.stack([order[places], order[places + apart]], axis=1)
        apart += 1


def _alike(
    pairs: Int[np.ndarray, "m 2"], hashes: np.ndarray, thumbnails: np.ndarray, farthest: int
) -> Bool[np.ndarray, " m"]:
    left, right = pairs.T
    differing = np.bitwise_count(hashes[left] ^ hashes[right]).sum(axis=1)
    alike = differing <= np.minimum(farthest, SHARE * np.bitwise_count(hashes[left] | hashes[right]).sum(axis=1))
    some = np.flatnonzero(alike)
    apart = thumbnails[left[some]].astype(np.float32) - thumbnails[right[some]]
    brighter = apart.mean(axis=(1, 2, 3))
    apart = np.abs(apart - brighter[:, None, None, None]).mean(axis=(1, 2, 3))
    alike[some] = (np.abs(brighter) <= BRIGHTER) & (apart <= FARTHEST_COLOUR)
    return alike
