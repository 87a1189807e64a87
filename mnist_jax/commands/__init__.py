"""The command lines (`python -m mnist_jax.NAME`), and the code that they share."""
