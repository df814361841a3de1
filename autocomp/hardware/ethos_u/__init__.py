"""Arm Ethos-U NPUs: what Arm's Vela compiler makes of a file, and tables that it made."""
