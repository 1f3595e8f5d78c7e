"""How the analyses' static figures look and how they are saved."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from emergence_train.files import atomic_path  # noqa: E402

STYLE = {
    "figure.figsize": (6.4, 4.0),
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 9,
    "pdf.fonttype": 42,  # TrueType: journals refuse the default
    "svg.fonttype": "none",  # text stays text: searchable, and small files
    "svg.hashsalt": "emergence-train",  # the same figure gives the same file
}
MODEL = "#d1495b"  # what is fitted or forecast
# No date in a file: the same figure gives the same file.
METADATA = {".png": None, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def styled():
    """The context in which figures are made and saved."""
    return plt.rc_context(STYLE)


def save(figure, out: Path, stem: str, suffixes: tuple[str, ...] = tuple(METADATA), dpi: int = 150) -> list[str]:
    """Write a figure into `out`, a file for each suffix, and close it; returns the file names."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once, not again for every file
    for suffix in suffixes:
        # Else savefig gives a figure without a layout engine the default one, which moves its panels in the next file.
        fixed = plt.rc_context({"figure.constrained_layout.use": False})
        with fixed, atomic_path(out / f"{stem}{suffix}") as temporary:
            figure.savefig(temporary, format=suffix[1:], dpi=dpi, metadata=METADATA[suffix])
    plt.close(figure)
    return [f"{stem}{suffix}" for suffix in suffixes]
