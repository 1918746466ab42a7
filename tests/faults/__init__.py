"""Faults for the tests: runs that are stopped or killed, damaged files, wrong commands."""
