"""Files: networks, results, PyTorch's state_dicts; written whole or not at all, and rechecked."""
