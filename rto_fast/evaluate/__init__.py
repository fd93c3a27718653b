"""Measuring policies: answers to held-out prompts, and what a judge of them says."""
