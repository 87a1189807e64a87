"""What is said of an attack beside its code, for the command line, the tests and the documentation."""

from typing import NamedTuple

from mnist_jax import geometry


class Method(NamedTuple):
    """An attack's description; its options are those of its signature.

    Attributes:
      norms: the exponents p that it takes; None for all from 1 to inf.
      what: what it does, in a line.
      paper: authors and year of what it comes from, or nothing.
    """

    norms: tuple[float, ...] | None
    what: str
    paper: str = ""

    def check_norm(self, p: float) -> float:
        """The norm as `geometry.check_norm` gives it. Raises `ValueError` where the attack does not take it."""
        return geometry.check_norm(p, self.norms)

    def norms_in_words(self) -> str:
        if self.norms is None:
            return "from 1 to inf"
        return ", ".join(f"{p:g}" for p in self.norms)
