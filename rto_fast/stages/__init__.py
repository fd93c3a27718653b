"""The stages of a run. None knows another."""
