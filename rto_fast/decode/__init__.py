"""Decoding from the implicit reward of a DPO model: beam search, best of n, realignment; measured against sampling."""
