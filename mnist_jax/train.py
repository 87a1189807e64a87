"""python -m mnist_jax.train: see `commands.train`."""

from mnist_jax.commands import console, train

if __name__ == "__main__":
    console.run(train.main)
