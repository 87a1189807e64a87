"""Losses: functions of logits `[B, C]` and integer labels `[B]`, one number `[B]` for each image."""

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike


def cross_entropy(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Cross-entropy of the softmax of the logits: `logsumexp(logits) - logits[label]`."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def cross_entropy_of_softmax(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Cross-entropy that takes the probabilities `softmax(logits)` for logits, and so applies softmax twice.

    The original project trains with it: its networks end in a softmax, and PyTorch's cross-entropy has one of its own.
    It cannot fall below `log(1 + (C - 1) / e)`, 1.46 for ten classes, and it forgives a confident mistake.
    """
    return cross_entropy(jax.nn.softmax(logits), labels)


def accuracy(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """1 where the largest logit is the label's, else 0. A row that is not finite counts as wrong."""
    logits = jnp.asarray(logits)
    return ((logits.argmax(-1) == labels) & jnp.isfinite(logits).all(-1)).astype(logits.dtype)
