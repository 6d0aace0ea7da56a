"""The tab of features: search, and everything that the catalog knows of one."""
