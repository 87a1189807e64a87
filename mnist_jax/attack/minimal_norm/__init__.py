"""Attacks that look for the nearest adversarial image, one a file."""
