"""The command `python -m mnist_jax.certify`; see `commands.certify`."""

from mnist_jax.commands import certify, console

if __name__ == "__main__":
    console.run(certify.main)
