"""Fixtures that several tests of data share."""

import pytest

from vitvlm.data import sources


@pytest.fixture(scope="session")
def names():
    emoji = sources.open("emoji", "train[:400]")
    return [emoji[i]["name"] for i in range(len(emoji))]
