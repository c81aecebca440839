"""`Shares`: which source gives each sample of an endless mix, in exact proportion and without state."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from fractions import Fraction


@dataclasses.dataclass(frozen=True)
class Shares:
    """An endless sequence of source names in which every prefix has the shares of the weights.

    Of the first k items the sources take their parts one after the other, the heaviest first, and what the later ones
    get together is rounded down. Let w be the weights of n sources in that order, R_j = w_j + w_(j+1) + ..., R_0 = W,
    and e_j < 1 what rounding takes from those behind source j. Then source j has

        count_j(k) = k w_j / W + e_j - w_j (e_0 / R_1 + ... + e_(j-1) / R_j)    items, and R_(i+1) >= (j - i) w_j,

    so for EVERY k it is less than 1 above and less than H = 1 + 1/2 + ... + 1/(n-1) below its exact part: shares
    of prefixes longer than 1000 H (n = 10: 2829 items) are within 0.001 of those asked for, however small the weight.
    k -> k + 1 raises exactly one count, that of the source of item k. All is done in whole numbers.
    """

    names: tuple[str, ...]
    """by falling weight, then by name"""
    parts: tuple[int, ...]
    """weights as whole numbers without a common divisor"""

    @classmethod
    def of(cls, weights: Mapping[str, float]) -> Shares:
        """Of positive numbers, taken as they are written: 0.9 and 0.1 are nine to one."""
        exact = {name: Fraction(repr(float(weight))) for name, weight in weights.items()}
        names = sorted(exact, key=lambda name: (-exact[name], name))
        scale = math.lcm(*(weight.denominator for weight in exact.values()))
        whole = [int(exact[name] * scale) for name in names]
        return cls(tuple(names), tuple(part // math.gcd(*whole) for part in whole))

    @property
    def asked(self) -> dict[str, float]:
        """The share of each source."""
        return {name: part / sum(self.parts) for name, part in zip(self.names, self.parts, strict=True)}

    @property
    def slack(self) -> float:
        """H: counts are off by less than this (of a single source: not at all)."""
        return sum(1 / d for d in range(1, len(self.names)))

    def __getitem__(self, k: int) -> tuple[str, int]:
        """(source of item k, how many of its items come before)"""
        before, after, rest = k, k + 1, sum(self.parts)
        for name, part in zip(self.names, self.parts, strict=True):
            left, left_after = before * (rest - part) // rest, after * (rest - part) // rest
            if after - left_after > before - left:
                return name, before - left
            before, after, rest = left, left_after, rest - part
        raise AssertionError("from k to k + 1 one count grows")

    def counts(self, k: int) -> dict[str, int]:
        """How many of the first k items each source has."""
        counts, left, rest = {}, k, sum(self.parts)
        for name, part in zip(self.names, self.parts, strict=True):
            before, left = left, left * (rest - part) // rest
            counts[name] = before - left
            rest -= part
        return counts
