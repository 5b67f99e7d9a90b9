"""Load a student where nothing of Retort can be imported: ``python -I load_elsewhere.py HOW FOLDER``.

``FOLDER/images.npy`` holds inputs float32 [N, K, H, W]; logits go to ``FOLDER/logits.npy``.
"""

import sys
import warnings
from importlib.abc import MetaPathFinder
from pathlib import Path

RETORT = {"service", "store", "workers", "tests"}
FORBIDDEN = {"timm": RETORT, "torch": RETORT | {"timm"}, "onnxruntime": RETORT | {"timm", "torch"}}


class Refuse(MetaPathFinder):
    """Fails imports of some packages, as where they are not installed."""

    def __init__(self, names: set[str]) -> None:
        self._names = names

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        """For importlib."""
        if fullname.partition(".")[0] in self._names:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def main(how: str, folder: Path) -> None:
    """Writes ``logits.npy``."""
    sys.meta_path.insert(0, Refuse(FORBIDDEN[how]))
    import numpy as np

    images = np.load(folder / "images.npy", allow_pickle=False)
    if how == "onnxruntime":
        import onnxruntime

        session = onnxruntime.InferenceSession(folder / "student.onnx", providers=["CPUExecutionProvider"])
        [logits] = session.run(None, {session.get_inputs()[0].name: images})
    else:
        import torch

        if how == "timm":
            import timm

            network = timm.create_model(f"local-dir:{folder / 'model'}", pretrained=True).eval()
            config = timm.data.resolve_data_config(model=network)
            assert tuple(config["input_size"]) == images.shape[1:], config
            assert config["crop_mode"] == "squash", config
            assert timm.data.create_transform(**config) is not None
        else:
            network = torch.export.load(folder / "model" / "model.pt2").module()
        with torch.no_grad():
            logits = network(torch.from_numpy(images)).numpy()
    np.save(folder / "logits.npy", logits)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1], Path(sys.argv[2]))
