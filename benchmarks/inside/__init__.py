"""Scripts for :func:`benchmarks.isolated.run`: each answers the request in its folder with files in that folder.

Those that run beside ``sae-lens`` import nothing of Sensecheck: what they have in common is here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def answer(work: Callable[[Path, dict[str, Any]], Any]) -> None:
    """Call ``work`` with the folder named on the command line and its request; its result is the answer, JSON."""
    folder = Path(sys.argv[1])
    result = work(folder, json.loads((folder / "request.json").read_text()))
    (folder / "result.json").write_text(json.dumps(result))
