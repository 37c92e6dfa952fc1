"""ImageNet as it is handed out: validation images in one folder, and their labels in a list beside them."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import PruneError

VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG", re.IGNORECASE)
SOLUTION = "LOC_val_solution.csv"
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
DEVKIT = ("", "data", "ILSVRC2012_devkit_t12/data", "devkit/data")


def flat_labels(folder: Path, names: Sequence[str]) -> list[str] | None:
    """The synset of every image of ImageNet's flat validation folder; None if these are other images or there is no list.

    Looked for in the folder and above it: LOC_val_solution.csv (Kaggle), or ILSVRC2012_validation_ground_truth.txt with meta.mat
    (the development kit, also in its own folder). Raises PruneError if the list lacks an image.
    """
    if not names or not all(VALIDATION.fullmatch(name) for name in names):
        return None
    for place in (folder, *list(folder.absolute().parents)[:2]):
        if (place / SOLUTION).is_file():
            return look_up(names, solution(place / SOLUTION), place / SOLUTION)
        for kit in DEVKIT:
            if (place / kit / TRUTH).is_file() and (place / kit / "meta.mat").is_file():
                return look_up(names, truth(place / kit), place / kit / TRUTH)
    return None


def look_up(names: Sequence[str], table: dict[int, str], source: Path) -> list[str]:
    """The synset of every file name."""
    numbers = [int(match.group(1)) for name in names if (match := VALIDATION.fullmatch(name))]
    missing = next((name for name, number in zip(names, numbers, strict=True) if number not in table), None)
    if missing:
        raise PruneError(f"{source} has no label for {missing}; it lists {len(table)} images: fetch it again")
    return [table[number] for number in numbers]


def solution(file: Path) -> dict[int, str]:
    """Kaggle's table: ILSVRC2012_val_00000001,n01751748 x y x y."""
    with file.open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.reader(lines) if len(row) > 1 and row[0].startswith("ILSVRC2012_val_")]
    return {int(row[0].rsplit("_", 1)[1]): row[1].split()[0] for row in rows}


def truth(kit: Path) -> dict[int, str]:
    """The development kit's list of numbers, line by line, and the synsets that they stand for."""
    from scipy.io import loadmat

    # torchvision's ImageNet reads the development kit too, but only packed as it was handed out
    meta = loadmat(str(kit / "meta.mat"), squeeze_me=True)["synsets"]
    synsets = {int(entry["ILSVRC2012_ID"]): str(entry["WNID"]) for entry in meta}
    numbers = (kit / TRUTH).read_text(encoding="utf-8").split()
    return {line + 1: synsets[int(number)] for line, number in enumerate(numbers)}
