"""Check the lock for known vulnerabilities: ``make audit`` (needs a vulnerability service, which not every network reaches).

pip-audit asks PyPI, or OSV with ``--service osv``, about each pinned version. It counts what the service does not know as
skipped and ends well, so that a network without the service looks like a clean lock. Here that is a failure of its own.

Exit codes: 0 all were checked and none is known to be vulnerable, 1 some are, 2 some could not be checked, 3 nothing could.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LOCK = Path(__file__).with_name("cpu.txt")
CLEAN, VULNERABLE, INCOMPLETE, UNREACHED = range(4)
_SHOWN = 20  # names of unchecked packages in one line


def main() -> int:
    """Run pip-audit on the lock and print what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--service", choices=["pypi", "osv"], default="pypi", help="who is asked")
    service = parser.parse_args().service
    command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", service, "--format", "json",
               "--progress-spinner", "off", "--disable-pip", "--no-deps", "--requirement", str(LOCK)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        report = json.loads(done.stdout)
    except ValueError:  # it died on the network, or of something else
        print(done.stderr.strip()[-1000:], file=sys.stderr)
        report = {"dependencies": []}
    code, lines = verdict(report)
    print("\n".join(lines), file=sys.stderr if code else sys.stdout)
    return code


def verdict(report: dict[str, Any]) -> tuple[int, list[str]]:
    """The exit code for pip-audit's JSON ``report``, and what to say."""
    checked = [item for item in report["dependencies"] if "skip_reason" not in item]
    skipped = [item["name"] for item in report["dependencies"] if "skip_reason" in item]
    lines = [
        f"{item['name']} {item['version']}: {found['id']} ({', '.join(found.get('aliases', [])) or 'no alias'}), "
        f"fixed in {', '.join(found.get('fix_versions', [])) or 'no version yet'}"
        for item in checked
        for found in item["vulns"]
    ]
    if not checked:
        return UNREACHED, ["NOTHING WAS CHECKED: the vulnerability service cannot be reached from here, or knows none of the lock's "
                           "packages. Run `make audit` where it can, such as on a machine with access to pypi.org."]  # fmt: skip
    if skipped:
        more = f" and {len(skipped) - _SHOWN} more" if len(skipped) > _SHOWN else ""
        lines.append(f"NOT CHECKED, since the service does not know them: {', '.join(skipped[:_SHOWN])}{more}.")
    known = sum(bool(item["vulns"]) for item in checked)
    lines.append(
        f"{len(checked)} of {len(checked) + len(skipped)} packages were checked; {known} have known vulnerabilities."
    )
    return VULNERABLE if known else INCOMPLETE if skipped else CLEAN, lines


if __name__ == "__main__":
    sys.exit(main())
