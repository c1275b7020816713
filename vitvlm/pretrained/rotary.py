"""Rotary positions in config.json: `rope_parameters` of transformers 5, `rope_theta` and `rope_scaling` of before."""

from collections.abc import Mapping
from typing import Any

from vitvlm.core.config import ConfigError
from vitvlm.nn.rope import Rope, Scaling

Json = Mapping[str, Any]

THETA = 10_000.0  # of a config that says nothing
# Entries of each kind besides its name, theta and the rotated part.
ENTRIES = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {
        *("factor", "original_max_position_embeddings", "attention_factor"),
        *("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    },
}
IDLE = {"original_max_position_embeddings"}  # what some files say of every kind, and transformers reads of some


def parameters(source: Json, layers: str | None = None) -> dict[str, Any]:
    """The entries that transformers 5 keeps in `rope_parameters`, from either form.

    Args:
      layers: "full_attention" or "sliding_attention", where a config has entries for each.
    """
    found = source.get("rope_scaling") or source.get("rope_parameters") or {}
    if layers in found:
        found = found[layers] or {}
    found = dict(found)
    kind = found.pop("type", None)
    found.setdefault("rope_type", kind or "default")
    for name, default in (("rope_theta", THETA), ("partial_rotary_factor", 1.0)):
        value = source.get(name)
        found.setdefault(name, default if value is None else value)
    return found


def fields(found: Json, length: int, head_dim: int, partly: bool = False) -> dict[str, Any]:
    """The fields of a `Rope` from the entries of `parameters`.

    Args:
      length: `max_position_embeddings`, of the config.
      partly: whether the architecture may rotate a part of each head alone.

    Raises ConfigError for a kind of scaling or an entry that is not understood.
    """
    kind = found["rope_type"]
    if kind not in ENTRIES:
        raise ConfigError(f"config.json: rope_type {kind!r}; there is: {', '.join(ENTRIES)}")
    known = ENTRIES[kind] | IDLE | {"rope_type", "rope_theta", "partial_rotary_factor"}
    if unknown := sorted(found.keys() - known):
        raise ConfigError(f"config.json: rope_parameters.{unknown[0]} = {found[unknown[0]]!r}: not read for {kind!r}")
    rope: dict[str, Any] = {"base": float(found["rope_theta"])}
    channels = int(head_dim * found["partial_rotary_factor"])
    if channels != head_dim:
        if not partly:
            raise ConfigError(
                f"config.json: partial_rotary_factor {found['partial_rotary_factor']}; this architecture rotates heads "
                "as a whole"
            )
        rope["channels"] = channels
    if kind != "default":
        rope["scaling"] = _scaling(kind, found, length)
    return rope


def _scaling(kind: str, found: Json, length: int) -> dict[str, Any]:
    original = found.get("original_max_position_embeddings") or length
    scaling = {"kind": kind, "factor": found["factor"]}
    if kind == "dynamic":
        scaling["original_length"] = length
    elif kind == "llama3":
        scaling |= {"original_length": original, "low": found["low_freq_factor"], "high": found["high_freq_factor"]}
    elif kind == "yarn":
        scaling["factor"] = length / original if found["factor"] is None else found["factor"]
        scaling |= {"original_length": original, "low": found.get("beta_slow") or 1}
        scaling |= {"high": found.get("beta_fast") or 32, "truncate": found.get("truncate", True)}
        magnitude = _magnitude(found, scaling["factor"])
        scaling |= {} if magnitude is None else {"magnitude": magnitude}
    return {name: float(value) if name in ("factor", "low", "high") else value for name, value in scaling.items()}


def _magnitude(found: Json, factor: float) -> float | None:
    """The factor of rotated queries and keys, where it is not that of the paper."""
    if found.get("attention_factor") is not None:
        return float(found["attention_factor"])
    if not (found.get("mscale") and found.get("mscale_all_dim")):
        return None
    plain = Scaling("yarn", factor)
    above, below = (1 + found[name] * (Rope(scaling=plain).magnitude - 1) for name in ("mscale", "mscale_all_dim"))
    return above / below


def entries(rope: Rope, head_dim: int) -> dict[str, Any]:
    """The entries of `rope_parameters`: the inverse of `fields`."""
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": rope.base}
    if rope.channels is not None:
        found["partial_rotary_factor"] = rope.channels / head_dim
    if (scaling := rope.scaling) is None:
        return found
    found |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind in ("llama3", "yarn"):
        found["original_max_position_embeddings"] = scaling.original_length
    if scaling.kind == "llama3":
        found |= {"low_freq_factor": scaling.low, "high_freq_factor": scaling.high}
    if scaling.kind == "yarn":
        more = {"beta_slow": (scaling.low, 1), "beta_fast": (scaling.high, 32), "truncate": (scaling.truncate, True)}
        more["attention_factor"] = (scaling.magnitude, None)
        found |= {name: value for name, (value, default) in more.items() if value != default}
    return found


def both_forms(rope: Rope, head_dim: int) -> dict[str, Any]:
    """The entries of config.json, as transformers 5 reads them and as earlier versions do."""
    found = entries(rope, head_dim)
    scaling = {name: value for name, value in found.items() if name not in ("rope_theta", "partial_rotary_factor")}
    old = {"rope_theta": rope.base, "rope_scaling": None if rope.scaling is None else scaling}
    old |= {name: found[name] for name in ("partial_rotary_factor",) if name in found}
    return {**old, "rope_parameters": found}


def is_said(rope: Rope, length: int) -> bool:
    """Tells whether config.json can say these rotary positions, of a model for texts of `length` tokens."""
    scaling = rope.scaling
    known = scaling is None or (
        scaling.kind in ENTRIES and (scaling.kind != "dynamic" or scaling.original_length == length)
    )
    return known and rope.pairs == "half" and rope.axes is None
