"""Makes the ONNX files beside it: `python tests/exported/make.py`, with what `pip install "mnist_jax[torch]"` installs.

`cnn` and `mlp` are for any number of images, by PyTorch's exporter; `cnn_of_one` is the CNN by the older exporter,
for one image, with other operators.
"""

import io
import warnings
from pathlib import Path

import onnx
import torch
from modules import CNN, MLP, made

HERE = Path(__file__).parent


def save(model: onnx.ModelProto, name: str) -> None:
    """Without what the exporter says of where it ran."""
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    for part in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    onnx.save(model, HERE / f"{name}.onnx")
    print(name, len(model.SerializeToString()), "bytes:", *(node.op_type for node in model.graph.node))


for kind in (CNN, MLP):
    any_number = ({0: torch.export.Dim.DYNAMIC},)
    images = torch.zeros(2, 1, 28, 28)
    program = torch.onnx.export(made(kind).eval(), (images,), dynamo=True, dynamic_shapes=any_number, verbose=False)
    save(program.model_proto, kind.__name__.lower())
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the older exporter says that it is
    file = io.BytesIO()
    torch.onnx.export(made(CNN).eval(), (torch.zeros(1, 1, 28, 28),), file, dynamo=False)
save(onnx.load_from_string(file.getvalue()), "cnn_of_one")
