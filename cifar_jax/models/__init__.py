"""The networks, and what is known about each."""
