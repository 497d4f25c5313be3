"""Documents, tokenizer, packed rows and the loader that serves them to TorchTitan."""
