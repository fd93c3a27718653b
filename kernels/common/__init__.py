"""What the heads share: tiles, workspaces, row functions, dispatch, the native library."""
