"""What operations do to channels: a file per family of operators."""
