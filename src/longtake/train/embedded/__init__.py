"""How the model in the package learns: its tower, compressor, decoder, and what teaches them."""
