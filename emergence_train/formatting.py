"""Numbers and durations as people read them."""


def short(value: float) -> str:
    """Format a number in three digits: 0.5, 12, 30k, 2.5M, 400B, 3e18; below a thousand in four."""
    value = float(value)
    if abs(value) >= 1e3:
        value = float(f"{value:.3g}")  # 999,999 is 1M
    if abs(value) >= 1e15:
        return f"{value:.3g}".replace("e+", "e")
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """Two units at most: 45 s, 3 min, 2 h 05 min, 4 d 3 h."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if round(seconds) < 100:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{hours // 24} d {hours % 24} h"
