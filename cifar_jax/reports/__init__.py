"""Tables, pictures and pages for people to read."""

import os

# Before matplotlib is imported: a notebook's own backend may not be importable here.
os.environ["MPLBACKEND"] = "agg"
