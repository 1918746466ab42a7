"""Images and labels, from wherever they come."""
