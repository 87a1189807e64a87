"""Attacks that look for any adversarial image within a radius, one a file."""
