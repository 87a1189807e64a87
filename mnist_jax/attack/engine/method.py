"""The description of an attack that stands beside its code, for the command line, the tests and the documentation."""

from typing import NamedTuple

from mnist_jax import geometry


class Method(NamedTuple):
    """The description of an attack; its options are those of its function's signature.

    Attributes:
      norms: the exponents p of the norms that it takes; None for all from 1 to inf.
      what: what the attack does, in one line.
      paper: authors and year of its paper, or empty.
    """

    norms: tuple[float, ...] | None
    what: str
    paper: str = ""

    def check_norm(self, p: float) -> float:
        """The exponent as a float, by `geometry.check_norm`. Raises `ValueError` where the attack does not take it."""
        return geometry.check_norm(p, self.norms)

    def norms_in_words(self) -> str:
        if self.norms is None:
            return "from 1 to inf"
        return ", ".join(f"{p:g}" for p in self.norms)
