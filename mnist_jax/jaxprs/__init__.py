"""The walk through a classifier's computation, one equation after another, on which bounds have their rules.

`program.read` traces a classifier on one image and gives its equations in a row: calls are inlined by what they
compute, never by their derivatives. `affine` says which of them are affine in the image, and runs those on any number
of images at once, forwards, with the absolute values of their coefficients, or transposed. `window` cuts a program down
to what some entries of a value see.

`fast` does not read but replaces: convolutions and pools, wherever they are (`replacing`), by what a CPU computes fast
(`fast_convolution`, `fast_pooling`). Bounds know nothing of it: they are of the function as it is written.
"""
