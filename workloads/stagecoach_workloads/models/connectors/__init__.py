"""Connectors: an image's patches to a fixed number of decoder positions.

Every connector takes `(patches, grids, seen)`, lists with one entry per image size: patches_NPV, (patch rows, patch columns), and None
or seen_NP (bool, False for patches that are padding). It returns tokens_NTD of all images in the same order, T = `connector.tokens`.
"""
