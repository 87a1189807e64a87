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


def margin(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """The label's logit less the largest of the others: negative where the image is misclassified.

    Unlike losses of probabilities it does not saturate: its gradient stays of use on the most confident network
    (Carlini & Wagner, "Towards evaluating the robustness of neural networks", 2017, equation f6).
    """
    label, others = label_and_others(logits, labels)
    return label - others.max(-1)


def dlr(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """The margin over the difference of the largest and the third largest logit: it does not change with their scale.

    Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
    2020, equation 6, less its sign. With two classes, where there is no third logit, it is the margin.
    """
    return margin(logits, labels) / spread(logits)


def spread(logits: ArrayLike) -> jax.Array:
    """What `dlr` divides the margin by."""
    logits = jnp.asarray(logits)
    if logits.shape[-1] < 3:
        return jnp.ones_like(logits[..., 0])
    top = jax.lax.top_k(logits, 3)[0]
    difference = top[..., 0] - top[..., 2]
    return jnp.where(difference > 0, difference, 1)


def log_odds(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """`log(c / (1 - c))` of the label's confidence `c = softmax(logits)[label]`; it does not saturate where c does."""
    label, others = label_and_others(logits, labels)
    return label - jax.nn.logsumexp(others, -1)


def confidence(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """The softmax probability of the label."""
    return jnp.take_along_axis(jax.nn.softmax(logits), jnp.asarray(labels)[:, None], -1)[:, 0]


def label_and_others(logits: ArrayLike, labels: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """The label's logit `[B]`, and the logits `[B, C]` with -inf in its place."""
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    its = jnp.arange(logits.shape[-1])[None] == labels[:, None]
    return jnp.where(its, logits, 0).sum(-1), jnp.where(its, -jnp.inf, logits)
