"""What self-contained HTML reports share: style and plots. Nothing in them is loaded or run."""

from pathlib import Path

FOLDER = Path(__file__).parent  # templates include page.css from here
