"""Numbers as people read them."""

import numpy as np

from workflows.report.record import Record

_MINUS = "\N{MINUS SIGN}"
_NONE = "\N{EN DASH}"


def number(value: float) -> str:
    """Three significant digits, a true minus sign, nothing like 1e-05."""
    if not np.isfinite(value):
        return "not known"
    if value == 0:
        return "0"
    digits = max(0, 2 - int(np.floor(np.log10(abs(value)))))
    return f"{value:,.{min(digits, 9)}f}".replace("-", _MINUS)


def percent(share: float) -> str:
    """One decimal, but 0 % and 100 % only where nothing is rounded away to them."""
    if not np.isfinite(share):
        return "not known"
    if 0 < share < 0.0005:
        return "under 0.1 %"
    if 0.9995 <= share < 1:
        return "over 99.9 %"
    return f"{100 * share:.0f} %" if share in (0, 1) else f"{100 * share:.1f} %"


def correlation(value: float) -> str:
    """A dash where there is none: under two cases, or nothing varied."""
    return f"{value:.3f}".replace("-", _MINUS) if np.isfinite(value) else _NONE


def limit_names(record: Record) -> tuple[str, str]:
    """What the low and the high limit of the common scale are called: P10 and P90, unless configured otherwise."""
    if record.limits.source == "extrema":
        return "P50 of minima", "P90 of maxima"
    return f"P{100 * record.limits.low:g}", f"P{100 * record.limits.high:g}"
