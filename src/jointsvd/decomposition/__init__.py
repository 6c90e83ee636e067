"""Matrices in, factors out; torch alone. In order: svd (plain, RJSVD, LJSVD, Bi-JSVD), tucker, spanned, metric, narrow,
weighted."""
