"""The networks, their registry and their table of layers."""
