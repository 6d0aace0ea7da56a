"""The folder of artefacts: what is made stands beside it until it is complete, then takes its place at once."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sae_runtime.disk import writing
from sae_runtime.errors import InputError
from sae_runtime.paths import (
    CARD_FILE,
    CATALOG_FILE,
    REPORT_JSON_FILE,
    REPORT_PAGE_FILE,
    SAE_CONFIG_FILE,
    SAE_WEIGHTS_FILE,
)

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux: relative to the current folder; exchange


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """An empty folder that takes the place of ``target`` when the block ends well, and is deleted when it does not.

    Raises:
        InputError: ``target`` holds other files.
        ArtefactError: the disk is full, or may not be written to; what stood there stays.
    """
    target = target.resolve()
    check_target(target)
    staging = target.with_name(f".{target.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with writing(target):
            staging.mkdir(parents=True)
            yield staging
            replace_folder(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_target(target: Path) -> None:
    """Refuse to replace a folder that holds anything but artefacts; put back what a killed publication left aside.

    Raises:
        InputError: it does.
    """
    if _aside(target).is_dir() and not target.exists():
        _aside(target).replace(target)
    if not target.exists():
        return
    ours = {SAE_CONFIG_FILE, SAE_WEIGHTS_FILE, CATALOG_FILE, CARD_FILE, REPORT_JSON_FILE, REPORT_PAGE_FILE}
    if not target.is_dir() or {path.name for path in target.iterdir()} - ours:
        raise InputError(f"{target} holds other files; publishing would replace them.", "Name a new folder with --out.")


def replace_folder(staging: Path, target: Path) -> None:
    """Put ``staging`` in the place of ``target``; whoever looks finds the one or the other, whole."""
    if target.exists() and _exchange(staging, target):
        shutil.rmtree(staging, ignore_errors=True)
        return
    old = _aside(target)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.replace(old)
    staging.replace(target)
    shutil.rmtree(old, ignore_errors=True)


def _aside(target: Path) -> Path:
    """Where the old folder waits while the new one comes, if they cannot be exchanged at once."""
    return target.with_name(f".{target.name}.old")


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths at once (Linux, see ``renameat2(2)``); False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    return renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0
