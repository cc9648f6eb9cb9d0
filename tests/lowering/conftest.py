"""Builds kernels into a library of this process, so that tests call the object code that ships."""

import ctypes
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from tvm import tirx

from sepwise.lowering import codegen, device, graph, link, program
from sepwise.lowering.symbols import undefined_symbols


class NativeKernels:
    """Kernels that this process can call on numpy arrays, all their tasks."""

    def __init__(self, kernels: Mapping[str, codegen.CompiledKernel], library: ctypes.CDLL) -> None:
        self.kernels = MappingProxyType(dict(kernels))
        self._library = library

    def __call__(self, symbol: str, *arrays: np.ndarray) -> None:
        """Runs all tasks, last first: their order must not matter."""
        kernel = self.kernels[symbol]
        raw = np.full(kernel.scratch_bytes + 64, 0xFF, np.uint8)
        scratch = raw.ctypes.data + -raw.ctypes.data % 64
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
        function = getattr(self._library, symbol)
        for task in reversed(range(kernel.tasks)):
            function(*pointers, ctypes.c_void_p(scratch), ctypes.c_int32(task))


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., NativeKernels]:
    """Gives a function that builds scheduled PrimFuncs for a device that this machine can run."""

    def build(functions: Mapping[str, tirx.PrimFunc], target: device.Device) -> NativeKernels:
        missing = device.missing_flags(target)
        if missing:
            pytest.skip(f"this processor cannot run {target.name}: {', '.join(missing)} missing; nothing installs it")
        llvm = codegen.tvm_target(target)
        kernels = {name: codegen.lower_kernel(function, name, target) for name, function in functions.items()}
        folder = tmp_path_factory.mktemp("kernels")
        object_code = codegen.build_object(kernels, llvm)
        assert undefined_symbols(object_code) == []
        (folder / "kernels.o").write_bytes(object_code)
        command = [sys.executable, "-m", "ziglang", "ld.lld", "-shared", "-o", str(folder / "kernels.so"), str(folder / "kernels.o")]
        subprocess.run(command, check=True)
        return NativeKernels(kernels, ctypes.CDLL(str(folder / "kernels.so")))

    return build


@pytest.fixture(scope="session")
def foreign_symbols() -> Callable[..., list[str]]:
    """Gives a function that builds scheduled PrimFuncs for any device and names the object's undefined symbols."""

    def build(functions: Mapping[str, tirx.PrimFunc], target: device.Device) -> list[str]:
        llvm = codegen.tvm_target(target)
        kernels = {name: codegen.lower_kernel(function, name, target) for name, function in functions.items()}
        return undefined_symbols(codegen.build_object(kernels, llvm))

    return build


IMAGE_NETWORK = """<ir_version: 10, opset_import: ["" : 18]> images (float[1,3,10,12] x) => (float[1,8,5,6] y, float[1,4,8,10] z) {
  [padded] a = Conv <pads = [1,1,1,1], strides = [2,2]> (x, w) [relu] y = Relu (a) [unpadded] z = Conv (x, v, b)
}"""


@pytest.fixture(scope="session")
def image_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of two convolutions of an image, one of which pads it."""
    model = parser.parse_model(IMAGE_NETWORK)
    rng = np.random.default_rng(0)
    for name, shape in (("w", (8, 3, 3, 3)), ("v", (4, 3, 3, 3)), ("b", (4,))):
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    path = tmp_path_factory.mktemp("network") / "images.onnx"
    onnx.save(model, path)
    return path


# A Program without a compiler stack: two kernels written in C, with the interface of those that TVM builds.
#   y = relu(2 x + shift + bias)      x (1, 6, 5, 7) plain, y packed by 4 channels, NaN in its pad lanes
#   s = y + x, z = sum of y over the pixels
C_KERNELS = """
#include <stdint.h>
enum { C = 6, P = 35, V = 4 };

void scale(const float *x, const float *shift, const float *bias, float *y, float *scratch, int32_t task) {
  for (int v = 0; v < V; ++v) {
    int c = task * V + v;
    for (int p = 0; p < P; ++p) scratch[v * P + p] = c < C ? 2 * x[c * P + p] + shift[c] + bias[c] : __builtin_nanf("");
  }
  for (int p = 0; p < P; ++p)
    for (int v = 0; v < V; ++v) {
      float value = scratch[v * P + p];
      y[(task * P + p) * V + v] = value < 0 ? 0 : value;
    }
}

void add_and_sum(const float *y, const float *x, float *s, float *z, void *scratch, int32_t task) {
  float sum = 0;
  for (int p = 0; p < P; ++p) {
    float value = y[((task / V) * P + p) * V + task % V];
    s[task * P + p] = value + x[task * P + p];
    sum += value;
  }
  z[task] = sum;
}
"""


@pytest.fixture(scope="session")
def c_program(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., program.Program]:
    """Gives a function that builds a Program of kernels written in C: `c_program("cortex-a72")`."""

    def build(device_name: str = "host", *, kernels: str = C_KERNELS, flags: tuple[str, ...] = ()) -> program.Program:
        folder = tmp_path_factory.mktemp("c")
        (folder / "kernels.c").write_text(kernels)
        target = device.get(device_name)
        flags = ("-fPIC", f"-mcpu={target.zig_cpu}", *flags)
        link.compile_c(folder / "kernels.c", folder / "kernels.o", target=target.zig_target, flags=flags)
        image = graph.TensorType((1, 6, 5, 7))
        row = graph.TensorType((1, 6))
        packed = graph.TensorType((1, 6, 5, 7), layout=graph.Layout(4))
        x, shift = (program.BufferRef(program.Home.INPUT, index) for index in (0, 1))
        s, z = (program.BufferRef(program.Home.OUTPUT, index) for index in (0, 1))
        bias, y = program.BufferRef(program.Home.CONSTANT, 64), program.BufferRef(program.Home.ARENA, 128)
        constants = np.zeros(128, np.uint8)
        constants[64 : 64 + 24] = np.arange(-3, 3, dtype=np.float32).view(np.uint8)
        calls = (
            program.KernelCall(
                "first", "scale", (x, shift, bias, y), ("x", "shift"), ("y",), 2, 4 * 35 * 4, 1280, 210, ("Relu_0",), "c", constant_bytes=(24,)
            ),
            program.KernelCall("second", "add_and_sum", (y, x, s, z), ("y", "x"), ("s", "z"), 6, 0, 0, 0, ("Add_1", "Sum_2"), "c"),
        )
        return program.Program(
            name="small",
            device=device_name,
            calls=calls,
            inputs=(program.Value("x", image, x), program.Value("shift", row, shift)),
            outputs=(program.Value("s", image, s), program.Value("z", row, z)),
            values=(program.Value("y", packed, y),),
            constants=constants,
            arena_bytes=1280 + 576,
            arena_lower_bound_bytes=packed.nbytes,
            object_code=(folder / "kernels.o").read_bytes(),
        )

    return build


@pytest.fixture(scope="session")
def c_program_tensors() -> dict[str, np.ndarray]:
    """Gives every tensor of `c_program`; whole numbers, so that any order of operations is exact."""
    x = np.arange(-105, 105, dtype=np.float32).reshape(1, 6, 5, 7)
    shift = np.array([[4, -8, 15, -16, 23, -42]], np.float32)
    y = np.maximum(2 * x + (shift + np.arange(-3, 3, dtype=np.float32))[:, :, None, None], 0)
    return {"x": x, "shift": shift, "y": y, "s": y + x, "z": y.sum((2, 3))}
