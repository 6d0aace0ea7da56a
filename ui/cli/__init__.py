"""The ``sensecheck`` command."""

import os

# Read when the libraries are first imported, so it has to come before them: no bars and reports of theirs between ours,
# no warnings about forks.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
