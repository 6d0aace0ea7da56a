"""YAML that people write, read so that whatever is wrong with it is one kind of error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

MOST_VALUES = 1_000_000


def read_yaml(path: Path) -> Any:
    """The content of a YAML file, plain types only.

    PyYAML lets errors of its conversions through (the date 2001-99-99, ``!!int x``, a number of 5,000 digits), and Python
    those of very deep nesting. Names for parts of a file (``&a``, ``*a``) may be used, but not so that a few lines stand
    for more than :data:`MOST_VALUES` values: whoever looks at them one by one, such as an error message, would never end.

    Raises:
        OSError: the file cannot be read.
        yaml.YAMLError: it is no text, or no YAML, or stands for too much.
    """
    try:
        value = yaml.safe_load(path.read_text("utf-8"))
        if _count(value, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"it stands for more than {MOST_VALUES} values")
        return value
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from error


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that is too long for one, or no name at all, is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def faults(error: ValidationError) -> str:
    """What is wrong where, without the values: a few lines of YAML can stand for a billion of them."""
    return "; ".join(
        f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors(include_input=False)
    )


def _count(value: Any, counted: dict[int, int]) -> int:
    """How many values ``value`` stands for; each part is looked at once.

    Raises:
        ValueError: it holds itself.
    """
    if not isinstance(value, dict | list | tuple | set):
        return 1
    if id(value) not in counted:
        counted[id(value)] = -1
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        counted[id(value)] = 1 + sum(_count(part, counted) for part in parts)
    if counted[id(value)] < 0:
        raise ValueError("a part of it holds itself")
    return counted[id(value)]
