"""python -m mnist_jax.attack: see `commands.attack`; python -i opens a prompt with the original's three functions."""

import sys

from mnist_jax.commands import attack as command
from mnist_jax.commands import console

if __name__ == "__main__":
    if sys.flags.interactive:
        attack, minimal_attack_dichotomy, minimal_attack = command.open_prompt()
    else:
        console.run(command.main)
