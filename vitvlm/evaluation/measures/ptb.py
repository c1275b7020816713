"""Words of a caption as the published caption metrics count them: Penn Treebank tokens, in lower case, no punctuation.

The metrics of COCO captions are computed on the tokens of Stanford's PTBTokenizer, a Java program; these are its rules
for captions in English.
"""

import re
import unicodedata

PUNCTUATION = frozenset(["''", "'", "``", "`", '"', ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""Tokens that do not count. Brackets do: PTBTokenizer writes them as -lrb-, where coco-caption looks for -LRB-."""

_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys(range(0x2018, 0x201C), "'"),
        **dict.fromkeys(range(0x201C, 0x2020), '"'),
        **dict.fromkeys(range(0x2013, 0x2016), " -- "),
        **{"…": " ... ", "½": "1/2", "¼": "1/4", "¾": "3/4", "£": " # ", "€": " $ ", "¢": " cents "},
        **{"\u00ad": "", "\u00a0": " ", "\n": " "},
    }
)
_WRITTEN = {
    **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
    **{"cannot": "can not", "gonna": "gon na", "gotta": "got ta", "gimme": "gim me", "lemme": "lem me"},
    **{"wanna": "wan na", "'tis": "'t is", "'twas": "'t was"},
}
_ABBREVIATIONS = (  # whose full stop is a part of them
    "mr mrs ms dr prof messrs rev hon st mt ft jr sr ph gen col capt lt sgt maj cmdr adm gov rep reps sen sens pres "
    "supt co cos corp inc ltd bros assn dept univ ave blvd rd vs etc est tel jan feb mar apr jun jul aug sep sept "
    "oct nov dec mon tue tues wed thu thurs fri calif fla ind mich minn tenn wis ariz colo conn ala ga ky md mo nev "
    "okla va vt wyo"
)
_TOKEN = re.compile(
    rf"""
      https?://[^\s"<>]+ | www\.[^\s"<>]+ | [\w.+-]+@[\w-]+(?:\.[\w-]+)+ | </?[a-z][^<>\s]*>  # addresses and tags
    | \.\.+ | --+ | [!?]+                                                                     # several in one
    | n't(?![a-z]) | '(?:s|m|d|ll|re|ve)(?![a-z])                                             # of "isn't", "dog's"
    | 'n' | '(?:tis|twas|em|cause|til|round)(?![a-z]) | (?<!\w)'\d\ds                         # of "rock 'n' roll"
    | (?<![a-z])(?:ma'am|[dol]'[a-z]+|y'(?=all)|ol'(?![a-z]))
    | (?<![a-z.])(?:[a-z](?:\.[a-z])*|{"|".join(_ABBREVIATIONS.split())})\.(?![a-z])
    | (?<![a-z])no\.(?=\s*\d) | (?-i:[A-Z]+(?:&[A-Z]+)+)
    | [+-]?\d*(?:[.,:]\d+)+ | (?<![\w-])[+-]\d+(?![\w-])                                      # 10:30, 1,000, -5
    | [a-z]+?(?=n't(?![a-z]))
    | c\+\+ | [cf]\#
    | @?[^\W_]+(?:[-_/.!?]+(?<![.!?]{{2}})[^\W_]+)*                                           # one/two, two-year-old
    | \S
    """,
    re.VERBOSE | re.IGNORECASE,
)


def tokens(text: str) -> list[str]:
    """All tokens of a text, in lower case; emoji and the like are none."""
    found = []
    for token in _TOKEN.findall(text.translate(_CHARACTERS)):
        token = token.lower()
        if token.startswith(("..", "--")):
            token = "..." if token[0] == "." else "--"
        if unicodedata.category(token[0]) != "So" or token < "\u2190":
            found.extend(_WRITTEN.get(token, token).split())
    return found


def words(text: str) -> list[str]:
    """The tokens of a text that are no punctuation: what captions are compared by."""
    return [token for token in tokens(text) if token not in PUNCTUATION]
