"""Two images to two displacement fields."""
