"""One thread per test process, since pytest-xdist runs several beside each other; and the trained ResNet50."""

import csv
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of tests in the background, which what they start would inherit
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def resnet50_case():
    """A trained ResNet50, the centres of the first eight photographs as it takes them, and their labels."""
    if not (SHARED / "nets/resnet50_ktb.safetensors").exists():
        pytest.skip("the trained ResNet50 is not on this machine")
    from PIL import Image

    sys.path.insert(0, str(SHARED / "nets"))
    try:
        import resnet_pq  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.pop(0)
    net = resnet_pq.load(str(SHARED / "nets/resnet50_ktb.safetensors"))
    with open(SHARED / "images/labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))[:8]
    crops = []
    for row in rows:
        picture = Image.open(SHARED / "images" / row["file"]).convert("RGB")
        left, top = (picture.width - 224) // 2, (picture.height - 224) // 2
        crops.append(np.asarray(picture.crop((left, top, left + 224, top + 224))))
    images = resnet_pq.preprocess(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2) / 255)
    return net, images, torch.tensor([int(row["index"]) for row in rows])
