"""Certificates: what no image within a radius can do to a classifier, proved."""

from mnist_jax.certify.crown import crown
from mnist_jax.certify.driver import CertifyResult
from mnist_jax.certify.ibp import ibp
from mnist_jax.jaxprs.program import UnsupportedOperation

__all__ = ["CertifyResult", "UnsupportedOperation", "crown", "ibp"]
