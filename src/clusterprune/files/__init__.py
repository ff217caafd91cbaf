"""Files: written whole or not at all, read with bounds, and locked while a run uses them."""
