"""What people use: the ``sensecheck`` command and the Gradio chat."""

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before gradio is imported anywhere
