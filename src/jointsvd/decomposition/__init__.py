"""Matrices in, factors out; torch alone: subspaces, alternation, svd (plain, RJSVD, LJSVD, Bi-JSVD), tucker, metric,
weighted."""
