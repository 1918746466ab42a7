"""Configs: their fields, the rules for the values, the durations, and configs stored with runs."""
