"""`python -m examples.phantom.picture FILE` draws a few phantoms, labelled synthetic, with boxes of their findings."""

import argparse
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from examples.phantom.phantoms import draw
from examples.phantom.settings import FINDINGS, Confounder, Settings, facts

_COLOURS = dict(zip(FINDINGS, ("#56b4e9", "#009e73", "#d55e00", "#f0e442"), strict=True))
_SHOWN = (("Effusion",), ("Cardiomegaly",), ("Nodule",), ("Opacity",))  # then none, then several


def write_picture(path: Path) -> None:
    """A phantom with each finding alone, one with none, one with several and the confounder."""
    settings = Settings(seed=6, rates=(0.3,) * len(FINDINGS), confounder=Confounder("marker", "Nodule"))
    columns = 3
    wanted = [*_SHOWN, (), ("Effusion", "Cardiomegaly", "Nodule")]
    figure = Figure(figsize=(3.1 * columns, 3.5 * 2 + 0.3), layout="constrained")
    for axes, findings in zip(figure.subplots(2, columns).flat, wanted, strict=True):
        number = next(number for number in range(10_000) if facts(settings, number).findings == findings)
        phantom = draw(settings, number)
        axes.imshow(phantom.pixels, cmap="gray", vmin=0, vmax=1)
        axes.set_axis_off()
        axes.set_title(" and ".join(findings) or "No Finding", fontsize=9)
        for finding, (x0, y0, x1, y1) in phantom.boxes:
            colour = _COLOURS[finding]
            axes.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=2))
    figure.supxlabel("SYNTHETIC: drawn by examples/phantom, shows no person. The letter is a confounder.", fontsize=9)
    figure.savefig(path, dpi=100, metadata={"Software": ""})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.phantom.picture", description=__doc__)
    parser.add_argument("file", type=Path, help="PNG to write")
    write_picture(parser.parse_args().file)


if __name__ == "__main__":
    main()
