"""Where arrays are and who computes them: devices, several seeds, several processes."""
