"""Certificates: proofs that no image within a radius of a given image gets another class from a classifier."""

from mnist_jax.certify.alpha_crown import alpha_crown
from mnist_jax.certify.branch_and_bound import branch_and_bound
from mnist_jax.certify.crown import crown
from mnist_jax.certify.driver import CertifyResult
from mnist_jax.certify.exact import Bracket, exact
from mnist_jax.certify.ibp import ibp
from mnist_jax.certify.largest_radius import largest_radius
from mnist_jax.certify.smoothing import SmoothingResult, smoothing
from mnist_jax.jaxprs.program import UnsupportedOperation

__all__ = [
    "Bracket",
    "CertifyResult",
    "SmoothingResult",
    "UnsupportedOperation",
    "alpha_crown",
    "branch_and_bound",
    "crown",
    "exact",
    "ibp",
    "largest_radius",
    "smoothing",
]
