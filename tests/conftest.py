"""Strict settings for every test: no silent rank promotion, and no accelerator where one happens to be."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
