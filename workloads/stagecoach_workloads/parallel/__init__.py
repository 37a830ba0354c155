"""How a model is spread over ranks: meshes, shards, recomputation, compilation, and what must be equal everywhere."""
