"""Exact means and variances of polynomials in independent standard normals.

A linear system with Gaussian noise, a quadratic cost and a Gaussian policy: whatever an estimator
makes of one sampled path is a polynomial in the path's noise. So a program that is run on
`Polynomial`s in place of numbers gives every moment of the estimator, without sampling.

    E[z^k] = (k - 1)!!  for even k, 0 for odd k;   different z are independent
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

BITS: Final = 4  # per variable: exponents up to 15, and 15 variables in 60 bits
MOMENTS: Final = np.array([0.0 if k % 2 else np.prod(np.arange(1.0, k, 2)) for k in range(2**BITS)])


class Polynomial:
    """`sum_i coefficients_i prod_d z_d^(exponent_id)`, the exponents packed into one integer each:
    to multiply monomials is to add their codes."""

    def __init__(self, codes: npt.NDArray[np.int64], coefficients: npt.NDArray[np.float64]) -> None:
        self.codes, place = np.unique(codes, return_inverse=True)
        self.coefficients = np.bincount(place.reshape(-1), coefficients, len(self.codes))

    @classmethod
    def constant(cls, value: float) -> Polynomial:
        return cls(np.zeros(1, dtype=np.int64), np.array([value]))

    def __add__(self, other: Polynomial | float) -> Polynomial:
        other = _polynomial(other)
        return Polynomial(
            np.concatenate([self.codes, other.codes]),
            np.concatenate([self.coefficients, other.coefficients]),
        )

    def __mul__(self, other: Polynomial | float) -> Polynomial:
        other = _polynomial(other)
        return Polynomial(
            np.add.outer(self.codes, other.codes).reshape(-1),
            np.multiply.outer(self.coefficients, other.coefficients).reshape(-1),
        )

    def __sub__(self, other: Polynomial | float) -> Polynomial:
        return self + _polynomial(other) * -1.0

    __radd__ = __add__
    __rmul__ = __mul__

    def mean(self) -> float:
        """`E[p]`."""
        return float(self.coefficients @ _moments(self.codes))

    def variance(self) -> float:
        """`E[p^2] - E[p]^2`. Exact while no variable's exponent in p exceeds 7."""
        products = _moments(np.add.outer(self.codes, self.codes))
        return float(self.coefficients @ products @ self.coefficients) - self.mean() ** 2


def normals(count: int) -> list[Polynomial]:
    """Independent standard normals z_0 ... z_(count - 1), at most 15."""
    if count > 60 // BITS:
        raise ValueError(f"expected at most {60 // BITS} variables, got {count}")
    return [Polynomial(np.array([1 << BITS * k]), np.ones(1)) for k in range(count)]


def _polynomial(value: Polynomial | float) -> Polynomial:
    return value if isinstance(value, Polynomial) else Polynomial.constant(value)


def _moments(codes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    moment = np.ones(codes.shape)
    for k in range(60 // BITS):
        moment *= MOMENTS[codes >> BITS * k & 2**BITS - 1]
    return moment
