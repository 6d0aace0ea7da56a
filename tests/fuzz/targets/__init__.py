"""The targets. Each imports nothing of another one."""
