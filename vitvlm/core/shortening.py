"""Lines for people that quote what a file or a config holds, which may be of any length."""

LONGEST_LINE = 4_000  # characters of an error


def shortened(text: object, most: int = LONGEST_LINE) -> str:
    """The text, of whose middle a part is left out where it is longer.

    >>> shortened("abcdefghijklmnopqrstuvwxyz", 11)
    'abcdefg … z'
    """
    text = str(text)
    if len(text) <= most:
        return text
    end = max((most - 3) // 5, 0)
    return f"{text[: most - 3 - end]} … {text[len(text) - end :]}"
