"""The short way to read a tar header agrees with `tarfile`, or leaves the header to it."""

import tarfile

from hypothesis import given
from hypothesis import strategies as st

from vitvlm.data.sources import tars

NAMES = st.text("ab/.é ", min_size=1, max_size=120).filter(lambda name: name.strip("/"))
FORMATS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
TYPES = st.sampled_from([tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE])


def header(name, size, form=tarfile.USTAR_FORMAT, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(form)[-tarfile.BLOCKSIZE :]


@given(NAMES, st.integers(0, 8**11 - 1), FORMATS, TYPES)
def test_equals_tarfile(name, size, form, kind):
    try:
        block = header(name, size, form, kind)
    except ValueError:  # too long a name for the format
        return
    assert tars._plain_header(block) in (None, tars._header(block))


@given(st.integers(0, tarfile.BLOCKSIZE - 1), st.integers(0, 255))
def test_damage_is_never_read_as_something_else(place, value):
    block = bytearray(header("000/12.jpg", 4711))
    block[place] = value
    found = tars._plain_header(bytes(block))
    if found is not None:
        assert found == tars._header(bytes(block))  # which raises for what is damaged


def test_a_usual_header_takes_the_short_way():
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        assert tars._plain_header(header("000/12.jpg", 4711, form)) == ("000/12.jpg", 4711, tarfile.REGTYPE, True)
