"""How far two float32 computations of one number may lie apart, from how they are computed."""

UNIT = 2.0**-24  # the unit roundoff of float32

# Rounding errors of random sign add up like a random walk: after n of them an error is above
# LIKELY * sqrt(n) units with probability 2 * exp(-LIKELY**2 / 2), 1e-6 for 5.3 (Higham and Mary, A
# New Approach to Probabilistic Rounding Error Analysis, SIAM J. Sci. Comput. 41, 2019).
LIKELY = 5.3


def bound(roundings: int) -> float:
    """The share of the largest number of an array by which two computations of it may differ.

    ``roundings`` counts the operations on the longest way from an input to a result, of which a sum
    of n terms has n. Each of the two, whatever the order of its sums, is off by as many.
    """
    return 2 * LIKELY * roundings**0.5 * UNIT
