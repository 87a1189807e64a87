"""Attacks that look for any adversarial image within a given radius, one attack in each file."""
