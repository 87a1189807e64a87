"""What attacks share: the driver, and the pieces that methods are made of."""
