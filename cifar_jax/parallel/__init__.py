"""Where arrays lie and who computes them: devices, several seeds, several processes."""
