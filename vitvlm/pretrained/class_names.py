"""Names of a head's classes as the configs of other code bases hold them."""

from collections.abc import Mapping, Sequence
from typing import Any

from vitvlm.pretrained.entries import WeightsError


def read(given: Any, count: int) -> tuple[str, ...] | None:
    """The names in order, from a list or an {index: name}; None where the classes, or their names, are not there.

    An index without a name is called LABEL_7, as `transformers` does. Raises WeightsError for names that do not fit
    `count` classes.
    """
    if not count or not given:
        return None
    if isinstance(given, Mapping):
        by_index = {str(index): str(name) for index, name in given.items() if name is not None}
        names = tuple(by_index.pop(str(place), _no_name(place)) for place in range(count))
        if by_index:
            raise WeightsError(f"config.json: names of classes {', '.join(by_index)}, of which the head has {count}")
    elif isinstance(given, Sequence) and not isinstance(given, str):
        names = tuple(_no_name(place) if name is None else str(name) for place, name in enumerate(given))
    else:
        raise WeightsError(f"config.json: names of classes are a list or an object, not {type(given).__name__}")
    if len(names) != count:
        raise WeightsError(f"config.json: {len(given)} names of classes, and the head has {count} classes")
    unnamed = tuple(map(_no_name, range(count)))
    return None if names == unnamed else names


def _no_name(place: int) -> str:
    """Returns the name that `transformers` gives to a class that nobody named."""
    return f"LABEL_{place}"


def labels(names: Sequence[str]) -> dict[str, Any]:
    """The fields of a config.json of `transformers` that name the classes."""
    return {
        "id2label": {str(place): name for place, name in enumerate(names)},
        "label2id": {name: place for place, name in enumerate(names)},
    }
