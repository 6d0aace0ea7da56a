"""The ``sensecheck`` command."""
