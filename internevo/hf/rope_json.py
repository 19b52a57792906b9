"""The rotary settings of a `config.json`, read as transformers reads them; ambiguous ones are refused.

transformers 5 writes `rope_parameters`. Before, `rope_theta` and `rope_scaling` were keys of their own, and where a
`rope_scaling` is still there, transformers 5 takes it and forgets `rope_parameters`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from internevo.config.schema import RopeScalingConfig
from internevo.files.errors import UserError
from internevo.hf.values import number

_ORIGINAL = "original_max_position_embeddings"
_FIELDS = {
    "linear": ("factor",),
    "llama3": ("factor", "original_seq_len", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "original_seq_len", "beta_fast", "beta_slow", "temperature"),
}
"""The fields of a RopeScalingConfig that a kind of scaling has."""
_RENAMED = {"original_seq_len": _ORIGINAL, "temperature": "attention_factor"}
_KEYS = {field: _RENAMED.get(field, field) for fields in _FIELDS.values() for field in fields}
"""What `config.json` calls each field."""
_BASE = 10000.0
_BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}

Rope = tuple[float, RopeScalingConfig, str | None]  # base, scaling, and what of it is left out


def read_rope(file: Path, found: dict[str, Any], scalings: tuple[str, ...]) -> Rope:
    """Base, scaling, and what of it is left out, of a `config.json` whose content is `found`.

    Raises UserError, which names the key, for a scaling outside `scalings`, a wrong value, and two that contradict.
    """
    places = [key for key in ("rope_scaling", "rope_parameters") if found.get(key)]
    read = [_read(file, found, key, scalings) for key in places or ["rope_parameters"]]
    if len(read) == 2 and read[0] != read[1]:
        raise UserError(
            f"{file}: rope_scaling and rope_parameters say different things, and transformers would read rope_scaling "
            f"alone, with rope_theta {read[0][0]:g}. Remove one of the two."
        )
    return read[0]


def _read(file: Path, found: dict[str, Any], place: str, scalings: tuple[str, ...]) -> Rope:
    said = found.get(place) or {}
    if not isinstance(said, dict):
        raise UserError(f"{file}: {place} must be a mapping, found {said!r}")
    if any(isinstance(value, dict) for value in said.values()):
        raise UserError(f"{file}: {place} is {said!r}; this package has one setting for all layers only")
    base = number(file, "rope_theta", said.get("rope_theta", found.get("rope_theta", _BASE)), above=1)
    partial = said.get("partial_rotary_factor", found.get("partial_rotary_factor"))
    if partial not in (None, 1):
        raise UserError(f"{file}: partial_rotary_factor is {partial!r}; this package turns whole heads only")
    kind = said.get("rope_type", said.get("type", "default"))
    if "rope_type" not in said and "type" not in said and any(key in said for key in _KEYS.values()):
        raise UserError(f"{file}: {place} says {said}, but no rope_type; say which kind of scaling it is")
    if kind == "default":
        return base, RopeScalingConfig(), None
    if kind == "dynamic":
        number(file, f"{place}.factor", said.get("factor"), least=1)
        longest = found.get("max_position_embeddings")
        note = f"its dynamic rope_scaling, which changes rows longer than {longest:,} only, is left out"
        return base, RopeScalingConfig(), note
    if kind not in scalings or kind == "none":
        raise UserError(f"{file}: rope_scaling of type {kind!r} is not known here; known are {scalings[1:]}")
    known = {"rope_theta", "rope_type", "type", "partial_rotary_factor", *_KEYS.values()}
    rest = {key: value for key, value in said.items() if key not in known and value is not None}
    if rest.pop("truncate", True) is not True or rest or said.get("truncate", True) is None:
        raise UserError(
            f"{file}: {place} of type {kind!r} says {said}, of which {rest or 'truncate'} is not known here"
        )
    return base, RopeScalingConfig(kind, **_values(file, found, place, said, kind)), None


def _values(file: Path, found: dict[str, Any], place: str, said: dict[str, Any], kind: str) -> dict[str, Any]:
    values: dict[str, Any] = {"factor": number(file, f"{place}.factor", said.get("factor"), least=1)}
    if kind in ("llama3", "yarn"):
        values["original_seq_len"] = _original(file, found, place, said)
    if kind == "llama3":
        for key in ("low_freq_factor", "high_freq_factor"):
            values[key] = number(file, f"{place}.{key}", said.get(key), above=0)
        if values["high_freq_factor"] <= values["low_freq_factor"]:
            raise UserError(f"{file}: {place}.high_freq_factor must be above low_freq_factor, found {said}")
    if kind == "yarn":
        for key, default in _BETAS.items():
            values[key] = number(file, f"{place}.{key}", said.get(key) or default, above=0)
        if values["beta_fast"] < values["beta_slow"]:
            raise UserError(f"{file}: {place}.beta_fast must not be below beta_slow, found {said}")
        if (temperature := said.get("attention_factor")) is not None:
            values["temperature"] = number(file, f"{place}.attention_factor", temperature, above=0)
    return values


def _original(file: Path, found: dict[str, Any], place: str, said: dict[str, Any]) -> int:
    """The row length before the scaling; where no key says it, that of the model."""
    values = [where[_ORIGINAL] for where in (found, said) if _ORIGINAL in where] or [found["max_position_embeddings"]]
    if len(values) == 2 and values[0] != values[1]:
        raise UserError(f"{file}: {_ORIGINAL} is {values[0]!r}, and in {place} {values[1]!r}. Remove one of the two.")
    value = number(file, f"{place}.{_ORIGINAL}", values[0], above=0)
    if value != int(value):
        raise UserError(f"{file}: {place}.{_ORIGINAL} is {value!r}; it must be a whole number")
    return int(value)


def write_scaling(scaling: RopeScalingConfig, kind_keys: Sequence[str]) -> dict[str, Any] | None:
    """The `rope_scaling` of a `config.json`; its kind stands under each of `kind_keys`."""
    if scaling.kind == "none":
        return None
    values = {_KEYS[field]: getattr(scaling, field) for field in _FIELDS[scaling.kind]}
    values = {key: value for key, value in values.items() if value is not None}
    return {**dict.fromkeys(kind_keys, scaling.kind), **values}
