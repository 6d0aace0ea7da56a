"""YAML that people write, read so that whatever is wrong with it is one kind of error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError


def read_yaml(path: Path) -> Any:
    """The content of a YAML file, plain types only.

    PyYAML lets errors of its conversions through (the date 2001-99-99, ``!!int x``, a number of 5,000 digits), and Python
    those of very deep nesting.

    Raises:
        OSError: the file cannot be read.
        yaml.YAMLError: it is no text, or no YAML.
    """
    try:
        return yaml.safe_load(path.read_text("utf-8"))
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
