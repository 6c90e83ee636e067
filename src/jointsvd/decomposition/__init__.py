"""Matrices in, factors out; torch alone. In order: subspaces, alternation, svd (plain, RJSVD, LJSVD, Bi-JSVD), tucker,
spanned, metric, narrow, weighted."""
