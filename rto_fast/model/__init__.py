"""Models behind a small interface: hidden states, a head, one number per row."""
