"""Families of displacements and their names: "gaussian", "rademacher", "flipout(8)", "lowrank(1)"."""

from dataclasses import dataclass

FAMILIES = {"gaussian": 0, "rademacher": 0, "flipout": 1024, "lowrank": 64}
"""Families with their largest count (bases of flipout, rank of lowrank), zero for families without a count."""


@dataclass(frozen=True)
class Directions:
    """Family of displacements.

    Attributes:
        name: One of ``FAMILIES``.
        count: Number of bases B of flipout or rank R of lowrank; zero for the other families.
    """

    name: str
    count: int = 0

    def __str__(self) -> str:
        return f"{self.name}({self.count})" if self.count else self.name

    @property
    def has_fixed_norm(self) -> bool:
        """True if the squared norm of every unit displacement is its number of coefficients."""
        return self.name != "gaussian"


def parse(text: str) -> Directions:
    """Parse the name of a family.

    Args:
        text: ``"gaussian"``, ``"rademacher"``, ``"flipout(B)"`` or ``"lowrank(R)"``.

    Returns:
        The family and its count.

    Raises:
        ValueError: If the text names no family, or its count is missing or out of range.

    Example:
        >>> parse("lowrank(2)"), str(parse("flipout(8)"))
        (Directions(name='lowrank', count=2), 'flipout(8)')
    """
    name, _, suffix = text.partition("(") if isinstance(text, str) else ("", "", "")
    count = int(suffix[:-1]) if len(suffix) < 6 and suffix[:-1].isdecimal() else 0
    max_count = FAMILIES.get(name, -1)
    if not min(1, max_count) <= count <= max_count or text != (f"{name}({count})" if count else name):
        hint = f" Write '{name}(8)', for example." if max_count > 0 and text == name else ""
        raise ValueError(
            f"directions must be one of 'gaussian', 'rademacher', 'flipout(B)', 'lowrank(R)' with B from 1 to "
            f"{FAMILIES['flipout']} and R from 1 to {FAMILIES['lowrank']}; got {text!r}.{hint}"
        )
    return Directions(name, count)
