"""A page on localhost: draw a digit, attack it, and see between which distances the nearest adversarial image is."""
