"""Other methods on MMNet's towers: one file each, made by its `build_*` from CLIP's towers.

Each offers what MMNet offers: `encode_image(image)`, which sentences share, and
`segment(features, tokens)`, logits at stride 4. Keywords of `build_*` are keys of ModelConfig, but
for the two of `build_cosine`.
"""
