"""A web page on localhost: draw a digit, attack it, and see bounds of the distance to its nearest adversarial image."""
