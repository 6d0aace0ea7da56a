"""Values that are YAML, or look like it, and on which PyYAML raises errors other than its own. Found by fuzzing.

Tests import this module by name: pytest puts the folder of ``tests/conftest.py`` on the import path.
"""

from __future__ import annotations

ODD_YAML = (
    "2001-99-99",
    "!!int x",
    "!!float x",
    "!!bool x",
    "!!timestamp x",
    "1" * 5000,
    '"\\U00110000"',
    "[" * 3000,
    "&a [*a]",
)

# A name for ten of the one before, nine times: a billion items, were they ever written out.
BOMB = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10 if n else ['x'] * 10)}]\n" for n in range(9))
