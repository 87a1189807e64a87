"""The datasets that are known by name: what their files are called and contain."""

import string
from typing import NamedTuple

# Names of the four files, without .gz or .xz: training images and labels, official test images and labels.
STEMS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


class Form(NamedTuple):
    """What the files of a dataset are called and what they contain.

    Attributes:
      name: of the dataset.
      class_names: by label; None where the classes are to be counted from the labels.
      shape: height, width and channels of an image; None where any shape is allowed.
      stems: names of the four files, as in `STEMS`, without the suffix of a compressed file.
      archive: name of the zip archive that is downloaded and contains them; empty where each file is downloaded.
      first_label: the smallest label in the files; loaded labels begin at 0.
      transposed: whether the files have rows and columns of the images exchanged.
    """

    name: str
    class_names: tuple[str, ...] | None = None
    shape: tuple[int, int, int] | None = None
    stems: tuple[str, ...] = STEMS
    archive: str = ""
    first_label: int = 0
    transposed: bool = False


_SHAPE = (28, 28, 1)

# Class names as the datasets' authors give them.
_CLOTHES = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
_KANA = "o,ki,su,tsu,na,ha,ma,ya,re,wo"

_LETTERS = Form(  # EMNIST's split "letters", in which a small letter and its capital are one class
    "emnist",
    tuple(string.ascii_lowercase),
    _SHAPE,
    tuple(f"emnist-letters-{stem}".replace("t10k", "test") for stem in STEMS),
    archive="gzip.zip",
    first_label=1,
    transposed=True,
)

DATASETS = {
    form.name: form
    for form in (
        Form("mnist", tuple(string.digits), _SHAPE),
        Form("fashion_mnist", tuple(_CLOTHES.split(",")), _SHAPE),
        Form("kmnist", tuple(_KANA.split(",")), _SHAPE),
        _LETTERS,
    )
}
