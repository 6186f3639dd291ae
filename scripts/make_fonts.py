"""Subset and rename the open-licence fonts of the probe world into ``src/longtake/assets/fonts``.

Run once, with Debian's font packages installed:  python scripts/make_fonts.py /usr/share/fonts
Only digits and capital letters are kept, and the internal names are changed, as the reserved-name clauses of
the SIL Open Font License and the Bitstream Vera licence ask of modified fonts. Licences: assets/fonts/LICENSES.md.
"""

import sys
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont

OUT = Path(__file__).parents[1] / "src/longtake/assets/fonts"
# our name -> (file name in the distribution, upstream family, licence)
FONTS = {
    "train-dejavu-sans": ("DejaVuSans-Bold.ttf", "DejaVu Sans", "Bitstream Vera"),
    "train-dejavu-serif": ("DejaVuSerif-Bold.ttf", "DejaVu Serif", "Bitstream Vera"),
    "train-liberation-sans": ("LiberationSans-Bold.ttf", "Liberation Sans", "OFL-1.1"),
    "train-liberation-serif": ("LiberationSerif-Bold.ttf", "Liberation Serif", "OFL-1.1"),
    "train-liberation-mono": ("LiberationMono-Bold.ttf", "Liberation Mono", "OFL-1.1"),
    "train-lato": ("Lato-Bold.ttf", "Lato", "OFL-1.1"),
    "train-roboto": ("Roboto-Bold.ttf", "Roboto", "Apache-2.0"),
    "train-oxygen": ("Oxygen-Sans-Bold.ttf", "Oxygen", "OFL-1.1"),
    "train-jetbrains-mono": ("JetBrainsMono-Bold.ttf", "JetBrains Mono", "OFL-1.1"),
    "train-carlito": ("Carlito-Bold.ttf", "Carlito", "OFL-1.1"),
    "train-comfortaa": ("Comfortaa-Bold.ttf", "Comfortaa", "OFL-1.1"),
    "train-noto-serif": ("NotoSerif-Regular.ttf", "Noto Serif", "OFL-1.1"),
    "train-cabin": ("Cabin-Bold.otf", "Cabin", "OFL-1.1"),
    "train-quicksand": ("Quicksand-Bold.ttf", "Quicksand", "OFL-1.1"),
    "test-open-sans": ("OpenSans-Bold.ttf", "Open Sans", "Apache-2.0"),
    "test-cantarell": ("Cantarell-Bold.otf", "Cantarell", "OFL-1.1"),
    "test-gentium": ("Gentium-R.ttf", "Gentium", "OFL-1.1"),
}


def main(root: Path) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    rows = ["# Fonts of the probe world", "", "Subsets (digits, capital letters), renamed.", ""]
    rows += ["| file | made from | licence |", "| --- | --- | --- |"]
    for name, (source, family, licence) in FONTS.items():
        path = next(p for p in sorted(root.rglob(source)))
        font = TTFont(path)
        options = subset.Options(layout_features=["kern"], hinting=False, name_IDs=[0, 13, 14], notdef_outline=True)
        cutter = subset.Subsetter(options)
        cutter.populate(text="0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ")
        cutter.subset(font)
        names = {1: f"Longtake {name}", 2: "Regular", 4: f"Longtake {name}", 6: f"Longtake-{name}"}
        for name_id, value in names.items():
            font["name"].setName(value, name_id, 3, 1, 0x409)
        file = OUT / f"{name}{path.suffix}"
        font.save(file)
        rows.append(f"| `{file.name}` | {family} | {licence} |")
    (OUT / "LICENSES.md").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
