"""Attacks that look for the nearest adversarial image, one attack in each file."""
