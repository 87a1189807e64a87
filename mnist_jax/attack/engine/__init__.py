"""What all attacks share: the driver that runs their kernels, and pieces that kernels are made of."""
