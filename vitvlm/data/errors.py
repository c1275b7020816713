"""What can be wrong with data, as opposed to with a config (`core.config.ConfigError`)."""


class DataError(ValueError):
    """A data set that is not there, or that cannot be used as it is; the message says what to do."""


class UnreadableImage(DataError):
    """One image that cannot be decoded. Batches count and name such images and go on."""


class TooManyUnreadable(DataError):
    """More than the allowed share of the images seen could not be read."""
