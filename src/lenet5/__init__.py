"""LeNet-5 on FashionMNIST, from convolution to a versioned ONNX model.

Called in another checkout than the installed one, it is that checkout's package: what runs is what lies there.
"""

import os
from pathlib import Path

if Path("src/lenet5/stage.py").is_file():
    __path__ = [str(Path("src/lenet5").absolute())]

# Read when ONNX Runtime is imported, which otherwise reports to its makers; what a person has set stays.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from lenet5.processors import wait_politely

wait_politely(os.environ)
