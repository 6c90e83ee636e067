"""Second moments of few samples in many dimensions, kept in the few directions that the samples span.

With B an orthonormal basis of these directions, such a moment is ``B M B^T + rest (I - B B^T)``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Spanned:
    """basis: (d, n), orthonormal columns. inside: (n, n), or of several moments over one basis (folds, n, n). rest: the
    eigenvalue in all other directions. What is read of a dense moment (d, d) is here too: length, parts, mean, scale.
    """

    basis: Tensor
    inside: Tensor
    rest: float = 0.0

    @classmethod
    def of(cls, samples: Sequence[Tensor]) -> "Spanned":
        """``X^T X`` of each of the samples X (num, d)."""
        basis, R = torch.linalg.qr(torch.cat(list(samples)).double().T)
        return cls(basis, torch.stack([part @ part.T for part in R.split([len(X) for X in samples], 1)]))

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.inside.shape[:-2], len(self.basis), len(self.basis))

    @property
    def ndim(self) -> int:
        return self.inside.ndim

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, folds: int | list[int]) -> "Spanned":
        return replace(self, inside=self.inside[folds])

    def __mul__(self, factor: Tensor | float) -> "Spanned":
        return replace(self, inside=self.inside * factor, rest=self.rest * float(factor))

    def __truediv__(self, divisor: Tensor | float) -> "Spanned":
        return replace(self, inside=self.inside / divisor, rest=self.rest / float(divisor))

    def __matmul__(self, X: Tensor) -> Tensor:
        seen = self.basis.T @ X
        return self.basis @ (self.inside @ seen - self.rest * seen) + self.rest * X

    def mean(self, dim: int) -> "Spanned":
        return replace(self, inside=self.inside.mean(dim))

    def level(self) -> Tensor:
        """Mean eigenvalue."""
        outside = len(self.basis) - len(self.inside)
        return (self.inside.trace() + self.rest * outside) / len(self.basis)

    def plus(self, ridge: Tensor | float) -> "Spanned":
        """With ``ridge I`` added."""
        eye = torch.eye(len(self.inside), dtype=self.inside.dtype, device=self.inside.device)
        return replace(self, inside=self.inside + eye * ridge, rest=self.rest + float(ridge))

    def any(self) -> bool:
        return bool(self.inside.any()) or self.rest != 0

    def isfinite(self) -> Tensor:
        return self.inside.isfinite()

    def double(self) -> "Spanned":
        return replace(self, basis=self.basis.double(), inside=self.inside.double())

    def to(self, device: torch.device) -> "Spanned":
        return replace(self, basis=self.basis.to(device), inside=self.inside.to(device))

    def cpu(self) -> "Spanned":
        return self.to(torch.device("cpu"))

    def detach(self) -> "Spanned":
        return self

    def dense(self) -> Tensor:
        """(d, d), of one moment."""
        return self @ torch.eye(len(self.basis), dtype=self.basis.dtype, device=self.basis.device)


Moment = Tensor | Spanned
