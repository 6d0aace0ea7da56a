"""Fuzzing: one module per target in ``targets/``, run by hypothesis in ``make test`` and with coverage by ``make fuzz``.

A target states a law in its docstring and has two names: ``CASES``, a hypothesis strategy of plain Python literals, and
``check``, which raises when the law does not hold for one of them. See docs/reliability.md.
"""
