"""Settings by dotted name: ``sft.fit.lr=1e-5`` on a recipe, checked against its dataclasses; and as plain values.

A group of settings that has named forms is set by name (``grpo.method=gspo``), and its own settings after that.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from longtake.train.methods import METHODS, Method
from longtake.types import LongtakeError

Settings = TypeVar("Settings")

NAMED: dict[type, Mapping[str, Any]] = {Method: METHODS}
NOUNS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}


def changed(settings: Settings, assignment: str) -> Settings:
    """The same dataclass with one setting changed, ``name.of.setting=value``.

    Raises LongtakeError for an unknown name, which lists the known ones, and for a value of another type.
    """
    name, equals, value = assignment.partition("=")
    if not equals:
        raise LongtakeError(f"{assignment!r} sets nothing; write name=value, for example sft.fit.lr=1e-5")
    found: Settings = _changed(settings, name.strip().split("."), value.strip(), name.strip())
    return found


def _changed(settings: Any, path: list[str], value: str, name: str) -> Any:
    known = [field.name for field in dataclasses.fields(settings)]
    head, *rest = path
    if head not in known:
        raise LongtakeError(f"{name}: there is no {head!r}; known here: {', '.join(known)}")
    inner = getattr(settings, head)
    if dataclasses.is_dataclass(inner):
        if not rest:
            if named := NAMED.get(type(inner)):
                return dataclasses.replace(settings, **{head: _named(value, named, name)})
            parts = ", ".join(field.name for field in dataclasses.fields(inner))
            raise LongtakeError(f"{name} is a group of settings; set one of its own: {parts}")
        return dataclasses.replace(settings, **{head: _changed(inner, rest, value, name)})
    if rest:
        raise LongtakeError(f"{name}: {head} has no settings of its own; set {name.rsplit('.', len(rest))[0]}")
    hint = typing.get_type_hints(type(settings))[head]
    return dataclasses.replace(settings, **{head: parsed(value, hint, name)})


def _named(value: str, named: Mapping[str, Any], name: str) -> Any:
    if value not in named:
        raise LongtakeError(f"{name} is {value!r}; it must be one of {', '.join(named)}")
    return named[value]


def parsed(value: str, hint: Any, name: str) -> Any:
    """A text as a value of the type. Raises LongtakeError where it is none."""
    origin = get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        others = [part for part in get_args(hint) if part is not type(None)]
        return None if value.lower() == "none" else parsed(value, others[0], name)
    if origin is Literal:
        if value not in get_args(hint):
            raise LongtakeError(f"{name} is {value!r}; it must be one of {', '.join(map(str, get_args(hint)))}")
        return value
    if origin is tuple:
        return _parsed_tuple(value, get_args(hint), name)
    if origin is Mapping:
        return _parsed_mapping(value, get_args(hint)[1], name)
    if hint is bool:
        if value.lower() not in ("true", "false"):
            raise LongtakeError(f"{name} is {value!r}; it must be true or false")
        return value.lower() == "true"
    if hint not in NOUNS:
        raise LongtakeError(f"{name} can't be set from the command line; write a recipe in Python")
    try:
        return hint(value)
    except ValueError:
        raise LongtakeError(f"{name} is {value!r}; it must be {NOUNS[hint]}") from None


def _parsed_tuple(value: str, kinds: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    items = [item.strip() for item in value.strip("()").split(",") if item.strip()]
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(items)
    if len(items) != len(kinds):
        raise LongtakeError(f"{name} is {value!r}; it must have {len(kinds)} values, separated by commas")
    return tuple(parsed(item, kind, name) for item, kind in zip(items, kinds, strict=True))


def _parsed_mapping(value: str, kind: Any, name: str) -> dict[str, Any]:
    found = {}
    for item in filter(None, (item.strip() for item in value.split(","))):
        key, colon, own = item.partition(":")
        if not colon:
            raise LongtakeError(f"{name} is {value!r}; it must be names and values, as exact:1,order:0.5")
        found[key.strip()] = parsed(own.strip(), kind, f"{name}, {key.strip()}")
    return found


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """All settings by dotted name, as values that JSON has."""
    if dataclasses.is_dataclass(settings):
        items = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    elif isinstance(settings, tuple | list):
        items = {str(number): item for number, item in enumerate(settings)}
    else:
        return {prefix: str(settings) if isinstance(settings, Path) else settings}
    found: dict[str, Any] = {}
    for name, value in items.items():
        found |= flat(value, f"{prefix}.{name}" if prefix else name)
    return found
