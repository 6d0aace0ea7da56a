"""Traffic of made-up users against a served model, and what is measured meanwhile; for ``load`` and ``soak``."""
