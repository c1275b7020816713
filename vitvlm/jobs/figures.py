"""Style and saving of every plot. Import pyplot from here: it draws to files and needs no display."""

import matplotlib

matplotlib.use("Agg")
from etils import epath
from matplotlib import pyplot as plt

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b4c9a", "#8c6d31")  # Okabe and Ito's
STYLE = {
    "figure.dpi": 150,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e6ea",
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
}


def save_figure(figure: plt.Figure, path: epath.Path) -> epath.Path:
    """Writes a PNG without a trace of the library's version, so that equal plots are equal files."""
    with path.open("wb") as file:
        figure.savefig(file, format="png", metadata={"Software": None})
    plt.close(figure)
    return path
