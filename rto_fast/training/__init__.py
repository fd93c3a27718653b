"""The loop that trains every stage, and what keeps a run safe meanwhile."""
