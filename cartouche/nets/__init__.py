"""The networks, read top to bottom; their weights carry the names that diffusers and transformers give them."""
