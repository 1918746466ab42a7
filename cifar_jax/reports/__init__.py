"""Tables, pictures and pages for people to read."""
