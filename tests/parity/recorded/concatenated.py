"""Files of JSON objects one behind the other, as LLaVA's answers are published."""

import json


def concatenated(text: str) -> list[dict]:
    """JSON objects that stand one behind the other."""
    decoder, found, place = json.JSONDecoder(), [], 0
    while place < len(text.rstrip()):
        row, place = decoder.raw_decode(text, place)
        found.append(row)
        place += len(text[place:]) - len(text[place:].lstrip())
    return found
