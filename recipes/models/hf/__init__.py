"""Stock Hugging Face architectures of our decoders: names, config.json, reading a folder."""
