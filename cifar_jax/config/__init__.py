"""What a run is told: the fields of a config, their rules, and the lengths they give."""
