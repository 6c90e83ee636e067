"""Matrices in, factors out; torch alone: svd (plain, RJSVD, LJSVD, Bi-JSVD), tucker, metric, weighted."""
