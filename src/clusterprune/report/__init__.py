"""Pages for people, out of the numbers that a run has written: each one file that asks no network for anything."""
