"""What the kept channels take over from the removed ones."""
