"""What a run is on disk, read and written in one place."""
