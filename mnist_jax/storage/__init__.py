"""Files of networks, results and PyTorch's state_dicts: writing them whole or not at all, reading, rechecking."""
