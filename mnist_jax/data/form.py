"""What is known of a dataset before its files are read, and the datasets that are known by name."""

import string
from typing import NamedTuple

# Images and labels of the training file, and of the official test file.
STEMS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


class Form(NamedTuple):
    """What the files of a dataset are called and what they hold.

    Attributes:
      name: of the dataset.
      class_names: by label; None where the labels say how many there are.
      shape: height, width and channels of an image; None where any will do.
      stems: the files, without what compresses them.
      archive: the zip that they are in where they are downloaded; empty where each is by itself.
      first_label: in the files; here labels begin at 0.
      transposed: whether rows and columns of the images are exchanged in the files.
    """

    name: str
    class_names: tuple[str, ...] | None = None
    shape: tuple[int, int, int] | None = None
    stems: tuple[str, ...] = STEMS
    archive: str = ""
    first_label: int = 0
    transposed: bool = False


_SHAPE = (28, 28, 1)

# The names of the classes are those of the datasets' authors.
_CLOTHES = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
_KANA = "o,ki,su,tsu,na,ha,ma,ya,re,wo"

_LETTERS = Form(  # small and capital ones are one class
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
