"""The data plan: which samples, in which order, packed into which rows. Pure: no bytes of samples are read, no rank is known."""
