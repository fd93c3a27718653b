"""What the operators share: tiles, workspaces, row functions, dispatch, the native library."""
