"""What people use: the ``sensecheck`` command and the Gradio chat."""
