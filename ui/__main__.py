"""``python -m ui`` is the ``sensecheck`` command."""

from ui.cli.app import main

main()
