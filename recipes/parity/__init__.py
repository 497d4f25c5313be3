"""The parity matrix: techniques change no loss and no gradient."""
