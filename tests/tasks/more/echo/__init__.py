"""A task in one folder."""
