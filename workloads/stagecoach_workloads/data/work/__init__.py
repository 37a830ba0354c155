"""The work: what turns a plan's rows into tensors. Range reads, checks, decoding, tiles, tokens, collating, worker processes."""
