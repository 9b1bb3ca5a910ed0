"""Losses, optimisers and one step, to be read; the session and the loop around them, which keep a run alive."""
