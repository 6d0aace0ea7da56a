"""The page itself: its tabs, its look, how it is served."""
