# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A tour in pictures
#
# What a classifier of digits can be fooled by, and what can be proved about it. All of this was computed when the
# page was made, on a CPU; the counts are small, so that it takes a minute or two.

# %%
import jax
import numpy as np
from IPython.display import Image

import mnist_jax
from mnist_jax import attack, certify, data, losses, plot

mnist_jax.keep_compiled()  # the second time, nothing is compiled
INF = float("inf")

val = data.load_split("val")
images, labels = np.asarray(data.normalize(val.images[:100])), np.asarray(val.labels[:100])

# %% [markdown]
# ## One digit, three norms
#
# The nearest adversarial image depends on what "near" means. By the Linf norm every pixel may change by the same
# small amount; by the L1 norm it is the sum that counts, and a few pixels change by much; L2 is in between. Here is
# one digit on the MLP, and the image that `nearest` finds in each norm.

# %%
original = mnist_jax.load_classifier("MLP-original")
digit, label = images[4:5], labels[4:5]

found = {}
for name, norm in (("Linf", INF), ("L2", 2.0), ("L1", 1.0)):
    result = attack.nearest(original, digit, label, norm=norm)
    found[name] = result.images[0]
    print(f"{name:4}  distance {result.distance[0]:6.3f}   seen as {original(result.images).argmax(1)[0]}")

shown = np.stack([digit[0], *found.values()])
Image(plot.grid({"MLP": shown}, ["original", *found]), alt="A digit and its nearest adversarial images in three norms")

# %% [markdown]
# ## Against a defended network
#
# The same digits on a plain CNN, and on one of the same architecture that was trained on adversarial images (L2,
# radius 1.5). The plain one is fooled by a faint pattern. For the defended one a stroke has to be drawn.

# %%
networks = {"plain": "CNN-best", "defended": "CNN-pgd-2-1.5-best"}
classifiers = {name: mnist_jax.load_classifier(file) for name, file in networks.items()}
few, their_labels = images[:6], labels[:6]
against = {name: attack.nearest(each, few, their_labels, norm=2, effort="fast") for name, each in classifiers.items()}
for name, result in against.items():
    print(f"{name:9} distances {np.round(np.asarray(result.distance), 2)}")

shown = {
    name: (np.asarray(result.images[4]), str(classifiers[name](result.images).argmax(1)[4]), float(result.distance[4]))
    for name, result in against.items()
}
Image(
    plot.compared(few[4], shown, 2), alt="The nearest adversarial image of a digit on a plain and on a defended network"
)

# %% [markdown]
# ## What each pixel of a perturbation does
#
# Along the straight way from the image to its adversarial image, the margin (the logit of the label less the largest
# other one) falls from what it was to zero. Its gradient, averaged along the way and multiplied by the perturbation,
# says how much of that each pixel is responsible for; the shares add up to the whole ([integrated
# gradients](https://arxiv.org/abs/1703.01365)).


# %%
@jax.jit
def shares(classifier, image, adversarial, label):
    """How much of the fall of the margin is due to each pixel, `[H, W, 1]`."""
    places = (np.arange(64) + 0.5) / 64
    along = image + places[:, None, None, None] * (adversarial - image)
    labels = np.zeros(64, int) + label
    gradient = jax.grad(lambda x: losses.margin(classifier(x), labels).sum())(along)
    return -gradient.mean(0) * (adversarial - image)


rows = {}
for name, result in against.items():
    each = np.asarray(shares(classifiers[name], few[4], result.images[4], their_labels[4]))
    before = losses.margin(classifiers[name](few[4:5]), their_labels[4:5])[0]
    print(f"{name:9} margin {before:6.2f}, sum of the shares {each.sum():6.2f}, half of it by the", end=" ")
    print(f"{1 + int(np.searchsorted(np.sort(each.ravel())[::-1].cumsum(), each.sum() / 2))} strongest pixels")
    strength = [plot.signed(x, float(np.abs(x).max())) for x in (np.asarray(result.images[4]) - few[4], each)]
    rows[name] = np.stack([np.repeat(few[4], 3, 2), *strength])

Image(plot.grid(rows, ["image", "perturbation", "its share"]), alt="Perturbations and the shares of their pixels")

# %% [markdown]
# Most of either perturbation does next to nothing for itself. What turns the 4 into a 9 is the bar that closes it on
# top, on both networks; the defended one wants it bright.

# %% [markdown]
# ## Accuracy against the radius, found and proved
#
# An attack shows how much accuracy is *not* there at a radius; a certificate how much certainly is. Between the two
# curves nobody knows yet. These are 100 images on the MLP, in the Linf norm, by `nearest` and by CROWN.

# %%
distances = np.asarray(attack.nearest(original, images, labels, norm=INF, effort="fast").distance)
radii = certify.largest_radius(original, images, labels, norm=INF)
print(f"medians: certified {np.median(radii):.4f}, found {np.median(distances):.4f}")

Image(plot.certified_by_radius(radii, INF, distances), alt="Certified and robust accuracy against the radius")

# %% [markdown]
# ## Brackets close
#
# The two ends of each image's bracket move towards each other as more is spent on them. First the cheapest ones of
# six images: interval arithmetic from below, and from above the fast gradient sign at the least radius at which it
# succeeds.

# %%
six, their_labels = images[:6], labels[:6]
lower = {
    method.__name__: certify.largest_radius(original, six, their_labels, norm=INF, method=method)
    for method in (certify.ibp, certify.crown)
}
upper = {"fgsm": np.asarray(attack.dichotomy(original, six, their_labels, norm=INF, attack=attack.fgsm).distance)}
Image(plot.brackets(lower["ibp"], upper["fgsm"], INF), alt="Brackets of six images, far from closed")

# %% [markdown]
# Then `bracket`: by `nearest`, and by branch and bound, which goes on until it has proved that no adversarial image
# is nearer than 1 % less than the one that was found, or here for four seconds an image.

# %%
closed = mnist_jax.bracket(original, six, their_labels, norm=INF, seconds=4)
lower["branch and bound"], upper["nearest"], upper["bracket"] = closed.lower, distances[:6], closed.upper
for name, radius in lower.items():
    print(f"none nearer than {np.array2string(np.asarray(radius), precision=4)}   {name}")
for name, distance in upper.items():
    print(f"one found at     {np.array2string(np.asarray(distance), precision=4)}   {name}")

Image(plot.brackets(closed.lower, closed.upper, INF), alt="The same brackets, most of them closed")

# %% [markdown]
# This page is a notebook: [tour.ipynb](tour.ipynb), or by `jupytext --to ipynb docs/notebook/tour.py` from the text
# that the project keeps of it.
