"""How far two float32 computations of one number may lie apart, from how they are computed."""

UNIT = 2.0**-24  # the unit roundoff of float32

# Rounding errors of random sign add up like a random walk: after n of them an error is above
# LIKELY * sqrt(n) units with probability 2 * exp(-LIKELY**2 / 2), 1e-6 for 5.3 (Higham and Mary, A
# New Approach to Probabilistic Rounding Error Analysis, SIAM J. Sci. Comput. 41, 2019).
LIKELY = 5.3


def bound(roundings: int) -> float:
    """Computes by what share of its largest number two computations of an array may differ.

    ``roundings`` counts the operations on the longest way from an input to a result; a sum of n
    terms is n of them. Each computation is off by as many, whatever the order of its sums.
    """
    return 2 * LIKELY * roundings**0.5 * UNIT
