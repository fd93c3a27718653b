"""A page to open: what runs did, as one self-contained HTML file."""
