"""Untrusted files read with care, own files written whole."""
