"""Geometry: p-norms, and projections onto balls, spheres and planes, with and without the box, for batches of images.

For every p in [1, inf]. The first axis of every array is the batch; all other axes together are one vector. `radius`
is one number, or one for each image, `[B]`. A perturbation `r` of images `x` is inside the box where `x + r` is in
[0, 1].
"""

from mnist_jax.geometry.ball import project_ball, project_ball_in_box, proximal
from mnist_jax.geometry.norms import (
    INF,
    check_norm,
    dual,
    dual_direction,
    exact_norm,
    largest,
    norm,
    random_in_ball,
    sparse_direction,
)
from mnist_jax.geometry.plane import nearest_on_plane_in_box, shorten_on_plane_in_box
from mnist_jax.geometry.sphere import along_sphere, project_sphere_in_box, scale_to_sphere_in_box

__all__ = [
    "INF",
    "along_sphere",
    "check_norm",
    "dual",
    "dual_direction",
    "exact_norm",
    "largest",
    "nearest_on_plane_in_box",
    "norm",
    "project_ball",
    "project_ball_in_box",
    "project_sphere_in_box",
    "proximal",
    "random_in_ball",
    "scale_to_sphere_in_box",
    "shorten_on_plane_in_box",
    "sparse_direction",
]
