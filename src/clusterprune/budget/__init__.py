"""What widths cost, and how a target is shared among all groups together."""
