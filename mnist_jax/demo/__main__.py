"""python -m mnist_jax.demo: see `commands.demo`."""

from mnist_jax.commands import console, demo

if __name__ == "__main__":
    console.run(demo.main)
