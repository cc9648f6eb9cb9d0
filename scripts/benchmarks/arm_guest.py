"""Runs a network in one runtime, inside the emulated machine; see arm.py.

    python3 arm_guest.py RUNTIME MODEL INPUT.npy OUTPUT.npz

Marks two runs by a system call that the counting plugin of the emulator sees (lowering/runtime/count.c): one that warms the
caches, and the one that is counted. Single-threaded, float32 throughout, inputs in place before. Needs nothing of sepwise: the
emulated machine has none.
"""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    Calls = tuple[Callable[[], object], Callable[[], np.ndarray], str]

MARK = 0x7A00


def onnxruntime(model: str, x: np.ndarray) -> Calls:
    """ONNX Runtime, every graph optimisation on."""
    import onnxruntime as runtime

    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input(session.get_inputs()[0].name, x)
    binding.bind_output(session.get_outputs()[0].name)
    return lambda: session.run_with_iobinding(binding), lambda: binding.copy_outputs_to_cpu()[0], runtime.__version__


def ncnn(model: str, x: np.ndarray) -> Calls:
    """Tencent's ncnn, without its float16 and bfloat16."""
    import ncnn as runtime

    net = runtime.Net()
    net.opt.num_threads = 1
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, option, False)
    net.load_param(f"{model}.param")
    net.load_model(f"{model}.bin")
    data = runtime.Mat(x[0]).clone()  # without that it is a view of an array that goes out of scope
    last = [data]

    def run() -> None:
        extractor = net.create_extractor()
        extractor.input("in0", data)
        last[0] = extractor.extract("out0")[1]

    return run, lambda: np.array(last[0])[None], runtime.__version__


def mnn(model: str, x: np.ndarray) -> Calls:
    """Alibaba's MNN at high precision, which is float32."""
    import MNN

    interpreter = MNN.Interpreter(model)
    session = interpreter.createSession({"numThread": 1, "precision": "high"})
    layout, kind = MNN.Tensor_DimensionType_Caffe, MNN.Halide_Type_Float
    given = MNN.Tensor(x.shape, kind, x, layout)

    def run() -> None:  # a run may overwrite the memory of its input
        interpreter.getSessionInput(session).copyFrom(given)
        interpreter.runSession(session)

    def output() -> np.ndarray:
        found = interpreter.getSessionOutput(session)
        shape = found.getShape()
        host = MNN.Tensor(shape, kind, np.zeros(shape, np.float32), layout)
        found.copyToHostTensor(host)
        return np.array(host.getData(), np.float32).reshape(shape)

    return run, output, MNN.version()


def litert(model: str, x: np.ndarray) -> Calls:
    """LiteRT (TensorFlow Lite) with XNNPACK; its images are channels-last, given and returned."""
    from importlib.metadata import version

    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], np.ascontiguousarray(np.moveaxis(x, 1, -1)))

    def output() -> np.ndarray:
        found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        return np.moveaxis(found, -1, 1) if found.ndim > 2 else found

    return interpreter.invoke, output, version("ai-edge-litert")


RUNTIMES = {"ncnn": ncnn, "mnn": mnn, "litert": litert, "onnxruntime": onnxruntime}


def main() -> None:
    """Loads, settles, runs marked, and saves the output."""
    name, model, source, target = sys.argv[1:]
    run, output, version = RUNTIMES[name](model, np.load(source))
    run()
    mark = ctypes.CDLL(None).syscall
    for _ in range(2):
        mark(MARK, 1)
        run()
        mark(MARK, 0)
    np.savez(target, output=output(), version=version)


if __name__ == "__main__":
    main()
