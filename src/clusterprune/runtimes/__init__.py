"""What runs a network in production, what its layers take there, and which of two networks is the faster."""
