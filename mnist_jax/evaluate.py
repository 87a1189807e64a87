"""python -m mnist_jax.evaluate: see `commands.evaluate`."""

from mnist_jax.commands import console, evaluate

if __name__ == "__main__":
    console.run(evaluate.main)
