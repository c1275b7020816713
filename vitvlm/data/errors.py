"""Errors of data, as opposed to those of a config (`core.config.ConfigError`)."""

from vitvlm.core.shortening import shortened

LONGEST_REASON = 500  # characters of what is told of one image; a checkpoint keeps a thousand of them


class DataError(ValueError):
    """A data set that is missing or cannot be used as it is; the message says what to do."""

    def __init__(self, message: str = ""):
        super().__init__(shortened(message))


class UnreadableImage(DataError):
    """One image that cannot be read; `name` is the example's id. Batches count and name such images and go on.

    `examples` is the number of examples lost with it: more than one for a shard whose rest cannot be read.
    """

    def __init__(self, reason: str, name: str = "", examples: int = 1):
        self.reason = shortened(reason, LONGEST_REASON)
        super().__init__(self.reason)
        self.name = name
        self.examples = examples

    def __reduce__(self) -> tuple:
        return UnreadableImage, (self.reason, self.name, self.examples)

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}" if self.name else self.reason


class TooManyUnreadable(DataError):
    """More than the allowed share of the images seen could not be read."""
