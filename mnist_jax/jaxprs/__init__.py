"""A classifier's computation as a list of equations, for certificates, and its rewriting for speed on a CPU.

For certificates, `program.read` traces a classifier on one image and lists the equations of its jaxpr. Calls are
inlined by what they compute, never by their derivatives, and `rewriting` rewrites some equations. `affine` says which
equations are affine in the image, and runs those on many images at once: as they are, with the absolute values of their
coefficients, or transposed. `window` cuts a program down to the receptive field of some entries of a value.

For speed, `fast` replaces convolutions and pooling, wherever they are in a jaxpr (`replacing`), by forms that a CPU
computes fast (`fast_convolution`, `fast_pooling`). Certificates do not use it: they hold for the function as written.
"""
