"""Losses and other functions of logits `[B, C]` and integer labels `[B]` that give one number for each image, `[B]`.

Logits in half precision are converted to single precision first, and so are the losses. A logit of -inf, or one that
is far below all others, marks a class that is not in use.
"""

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

# A class is not in use if its logit is below the top logits by more than this many times their size. Chosen.
UNUSED = 1e6


def wide(logits: ArrayLike) -> jax.Array:
    """The logits in at least single precision: in half precision, sums and differences would be rounded again."""
    logits = jnp.asarray(logits)
    double = logits.dtype == jnp.float64
    return logits if double else logits.astype(jnp.float32)


def broken(logits: ArrayLike) -> jax.Array:
    """Whether the logits `[B, C]` of an image have a NaN, or their largest is infinite, so that none wins `[B]`."""
    return ~jnp.isfinite(jnp.asarray(logits).max(-1))


def cross_entropy(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """The cross-entropy of the softmax of the logits `[B]`: `logsumexp(logits) - logits[label]`."""
    return optax.softmax_cross_entropy_with_integer_labels(wide(logits), jnp.asarray(labels))


def cross_entropy_of_softmax(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """The cross-entropy with softmax applied twice: it takes the probabilities `softmax(logits)` for logits `[B]`.

    The original project trains with it: its networks end in a softmax, and PyTorch's cross-entropy applies another one.
    It cannot fall below `log(1 + (C - 1) / e)`, 1.46 for ten classes, and is bounded for confident mistakes.
    """
    return cross_entropy(jax.nn.softmax(wide(logits)), labels)


def capsule_margin(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """The margin loss of capsule networks `[B]`; the logits are the capsules' lengths `[B, C]` in [0, 1].

    It penalizes the label's capsule for being shorter than 0.9, and, with half the weight, all others for being longer
    than 0.1 (Sabour, Frosst & Hinton, "Dynamic routing between capsules", 2017, equation 4).
    """
    lengths = wide(logits)
    its = jnp.arange(lengths.shape[-1])[None] == jnp.asarray(labels)[:, None]
    present, absent = (jnp.square(jnp.maximum(short, 0)) for short in (0.9 - lengths, lengths - 0.1))
    return jnp.where(its, present, 0.5 * absent).sum(-1)


def accuracy(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """1 where the largest logit is the label's, else 0 `[B]`. Logits with a NaN or infinite maximum count as wrong."""
    logits = wide(logits)
    return ((logits.argmax(-1) == jnp.asarray(labels)) & ~broken(logits)).astype(logits.dtype)


def margin(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """The margin `[B]`: the label's logit minus the largest other logit, negative where the image is misclassified.

    Unlike losses of probabilities it does not saturate: its gradient does not vanish on a confident network (Carlini &
    Wagner, "Towards evaluating the robustness of neural networks", 2017, equation f6).
    """
    label, others = label_and_others(logits, labels)
    return label - others.max(-1)


def lead(logits: ArrayLike, labels: ArrayLike, others: ArrayLike) -> jax.Array:
    """The lead of the label over another class, `others [B]`: the difference of their logits `[B]`."""
    logits = wide(logits)
    label, other = (jnp.arange(logits.shape[-1])[None] == jnp.asarray(c)[:, None] for c in (labels, others))
    return (jnp.where(label, logits, 0) - jnp.where(other, logits, 0)).sum(-1)


def dlr(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """The difference of logits ratio (DLR) `[B]`: the margin divided by the largest minus the third largest logit.

    It does not change with the scale of the logits. Croce & Hein, "Reliable evaluation of adversarial robustness with
    an ensemble of diverse parameter-free attacks", 2020, equation 6, with the opposite sign. With two classes, where
    there is no third logit, it is the margin.
    """
    return margin(logits, labels) / spread(logits)


def spread(logits: ArrayLike) -> jax.Array:
    """The denominator of `dlr` `[B]`: the largest minus the third largest logit, or 1 where that is no use."""
    logits = wide(logits)
    if logits.shape[-1] < 3:
        return jnp.ones_like(logits[..., 0])
    top, used = _top(logits, 3)
    difference = top[..., 0] - top[..., 2]
    return jnp.where(used[..., 2] & (difference > 0), difference, 1)


def _top(logits: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` largest logits, and whether each belongs to a class in use.

    Logits of classes not in use are replaced by the least of the returned ones that are.
    """
    top = jax.lax.top_k(logits, count)[0]
    used = top >= top[..., :1] - UNUSED * jnp.abs(top[..., :2]).max(-1, keepdims=True)
    least = jnp.where(used, top, jnp.inf).min(-1, keepdims=True)
    return jnp.where(used, top, least), used


def dlr_targeted(logits: ArrayLike, labels: ArrayLike, targets: ArrayLike) -> jax.Array:
    """The targeted difference of logits ratio `[B]`: the label's logit minus the target's, scaled as for `dlr`.

    The denominator is the largest logit minus the mean of the third and fourth largest. Croce & Hein 2020, equation 7,
    with the opposite sign. With three classes the mean is that of the second and the third; with two, where the ratio
    would only be a sign, the difference itself is returned. (The public implementation stops with an error for fewer
    than four classes.)
    """
    logits = wide(logits)
    difference = lead(logits, labels, targets)
    if logits.shape[-1] < 3:
        return difference
    top, used = _top(logits, min(logits.shape[-1], 4))
    scale = top[..., 0] - top[..., -2:].mean(-1)
    return difference / jnp.where(used[..., 2] & (scale > 0), scale, 1)


def log_odds(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """The log-odds of the label `[B]`: `log(c / (1 - c))` with `c = softmax(logits)[label]`; it does not saturate."""
    label, others = label_and_others(logits, labels)
    return label - jax.nn.logsumexp(others, -1)


def divergence(logits: ArrayLike, others: ArrayLike) -> jax.Array:
    """The Kullback-Leibler divergence `KL(softmax(logits) || softmax(others))` `[B]`, for two arrays of logits."""
    one, other = (jax.nn.log_softmax(wide(z)) for z in (logits, others))
    return (jnp.exp(one) * (one - other)).sum(-1)


def voted(logits: ArrayLike) -> jax.Array:
    """Logits `[B, C]` whose softmax is the mean of the probabilities of K networks with logits `[K, B, C]`."""
    logs = jax.nn.log_softmax(wide(logits))
    return jax.nn.logsumexp(logs, 0) - jnp.log(float(len(logs)))


def confidence(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """The softmax probability of the label `[B]`."""
    return jnp.take_along_axis(jax.nn.softmax(wide(logits)), jnp.asarray(labels)[:, None], -1)[:, 0]


def label_and_others(logits: ArrayLike, labels: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """The label's logit `[B]`, and all logits `[B, C]` with -inf in place of the label's."""
    logits, labels = wide(logits), jnp.asarray(labels)
    its = jnp.arange(logits.shape[-1])[None] == labels[:, None]
    return jnp.where(its, logits, 0).sum(-1), jnp.where(its, -jnp.inf, logits)
