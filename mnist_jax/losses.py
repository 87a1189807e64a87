"""Losses: functions of logits `[B, C]` and integer labels `[B]`, one number `[B]` for each image.

Logits of half precision are taken to single precision first, in which the losses are then. A logit of -inf, or far
below all others, is that of a class which is not in use.
"""

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

UNUSED = 1e6  # times the size of the logits that matter: a class so far below them is not in use


def wide(logits: ArrayLike) -> jax.Array:
    """The logits in single precision at least: half precision would round sums and differences of them again."""
    logits = jnp.asarray(logits)
    double = logits.dtype == jnp.float64
    return logits if double else logits.astype(jnp.float32)


def broken(logits: ArrayLike) -> jax.Array:
    """Whether a row of logits says nothing `[B]`: it has a NaN, or its largest logit is infinite."""
    return ~jnp.isfinite(jnp.asarray(logits).max(-1))


def cross_entropy(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Cross-entropy of the softmax of the logits: `logsumexp(logits) - logits[label]`."""
    return optax.softmax_cross_entropy_with_integer_labels(wide(logits), jnp.asarray(labels))


def cross_entropy_of_softmax(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """Cross-entropy that takes the probabilities `softmax(logits)` for logits, and so applies softmax twice.

    The original project trains with it: its networks end in a softmax, and PyTorch's cross-entropy has one of its own.
    It cannot fall below `log(1 + (C - 1) / e)`, 1.46 for ten classes, and it forgives a confident mistake.
    """
    return cross_entropy(jax.nn.softmax(wide(logits)), labels)


def capsule_margin(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """The margin loss of capsules, whose lengths `[B, C]` in [0, 1] are the logits.

    The label's capsule is to be longer than 0.9, and all others shorter than 0.1; these count half (Sabour, Frosst &
    Hinton, "Dynamic routing between capsules", 2017, equation 4).
    """
    lengths = wide(logits)
    its = jnp.arange(lengths.shape[-1])[None] == jnp.asarray(labels)[:, None]
    present, absent = (jnp.square(jnp.maximum(short, 0)) for short in (0.9 - lengths, lengths - 0.1))
    return jnp.where(its, present, 0.5 * absent).sum(-1)


def accuracy(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """1 where the largest logit is the label's, else 0. A row with a NaN, or of infinite logits, counts as wrong."""
    logits = wide(logits)
    return ((logits.argmax(-1) == jnp.asarray(labels)) & ~broken(logits)).astype(logits.dtype)


def margin(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """The label's logit less the largest of the others: negative where the image is misclassified.

    Unlike losses of probabilities it does not saturate: its gradient stays of use on the most confident network
    (Carlini & Wagner, "Towards evaluating the robustness of neural networks", 2017, equation f6).
    """
    label, others = label_and_others(logits, labels)
    return label - others.max(-1)


def lead(logits: ArrayLike, labels: ArrayLike, others: ArrayLike) -> jax.Array:
    """The label's logit less that of another class, `others [B]`."""
    logits = wide(logits)
    label, other = (jnp.arange(logits.shape[-1])[None] == jnp.asarray(c)[:, None] for c in (labels, others))
    return (jnp.where(label, logits, 0) - jnp.where(other, logits, 0)).sum(-1)


def dlr(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """The margin over the difference of the largest and the third largest logit: it does not change with their scale.

    Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
    2020, equation 6, less its sign. With two classes, where there is no third logit, it is the margin.
    """
    return margin(logits, labels) / spread(logits)


def spread(logits: ArrayLike) -> jax.Array:
    """What `dlr` divides the margin by."""
    logits = wide(logits)
    if logits.shape[-1] < 3:
        return jnp.ones_like(logits[..., 0])
    top, used = _top(logits, 3)
    difference = top[..., 0] - top[..., 2]
    return jnp.where(used[..., 2] & (difference > 0), difference, 1)


def _top(logits: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The largest logits, and whether they are of classes in use; those that aren't are replaced by the least used."""
    top = jax.lax.top_k(logits, count)[0]
    used = top >= top[..., :1] - UNUSED * jnp.abs(top[..., :2]).max(-1, keepdims=True)
    least = jnp.where(used, top, jnp.inf).min(-1, keepdims=True)
    return jnp.where(used, top, least), used


def dlr_targeted(logits: ArrayLike, labels: ArrayLike, targets: ArrayLike) -> jax.Array:
    """The label's logit less the target's, over the largest less the mean of the third and the fourth largest.

    Croce & Hein 2020, equation 7, less its sign. With three classes the mean is that of the second and the third; with
    two, where nothing would be left of the ratio but its sign, it is the difference itself. (The public implementation
    stops with an error for fewer than four.)
    """
    logits = wide(logits)
    difference = lead(logits, labels, targets)
    if logits.shape[-1] < 3:
        return difference
    top, used = _top(logits, min(logits.shape[-1], 4))
    scale = top[..., 0] - top[..., -2:].mean(-1)
    return difference / jnp.where(used[..., 2] & (scale > 0), scale, 1)


def log_odds(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """`log(c / (1 - c))` of the label's confidence `c = softmax(logits)[label]`; it does not saturate where c does."""
    label, others = label_and_others(logits, labels)
    return label - jax.nn.logsumexp(others, -1)


def divergence(logits: ArrayLike, others: ArrayLike) -> jax.Array:
    """Kullback-Leibler divergence `KL(softmax(logits) || softmax(others))` of two rows of logits."""
    one, other = (jax.nn.log_softmax(wide(z)) for z in (logits, others))
    return (jnp.exp(one) * (one - other)).sum(-1)


def voted(logits: ArrayLike) -> jax.Array:
    """Logits `[B, C]` whose softmax is the mean of the probabilities of several rows of logits `[K, B, C]`."""
    logs = jax.nn.log_softmax(wide(logits))
    return jax.nn.logsumexp(logs, 0) - jnp.log(float(len(logs)))


def confidence(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """The softmax probability of the label."""
    return jnp.take_along_axis(jax.nn.softmax(wide(logits)), jnp.asarray(labels)[:, None], -1)[:, 0]


def label_and_others(logits: ArrayLike, labels: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """The label's logit `[B]`, and the logits `[B, C]` with -inf in its place."""
    logits, labels = wide(logits), jnp.asarray(labels)
    its = jnp.arange(logits.shape[-1])[None] == labels[:, None]
    return jnp.where(its, logits, 0).sum(-1), jnp.where(its, -jnp.inf, logits)
