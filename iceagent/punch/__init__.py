"""Hole punching to a known host: one end of a path, the far end for others, and how long a binding lives."""
