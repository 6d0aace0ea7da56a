"""What is said of a finished build: the card, and the report with plots."""
