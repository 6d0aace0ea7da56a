"""The tab of words: the catalog's concepts and senses, and people's own beside them."""
