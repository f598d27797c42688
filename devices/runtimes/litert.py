"""LiteRT (formerly TensorFlow Lite), Google's phone runtime, with XNNPACK on this machine.

It converts from PyTorch: `devices.onnx_to_torch` makes the module and litert-torch the file, which
is the compiled graph. Images go in with their channels last, as LiteRT's kernels want them and as a
phone's camera gives them, so that the file begins with its first layer and not with a transpose.
Times of single operations come from its profiler (`devices.litert_profiler`), which its C interface
has and Python lacks, and which of the model's nodes they stand for from the file
(`devices.litert_kernels`).

In 16 bits weights are kept so and computed with in 32. Eight bits are not offered: Google's
quantiser (ai-edge-quantizer) refused a network of the quickstart (no scales for what a pool and an
addition share), and moved another's outputs by 0.4 of the largest.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from devices.contained import ContainedRuntime
from devices.errors import UnavailableError
from devices.executed_onnx import executed_if_told
from devices.kernel_trace import TraceEvent, kernel_timings
from devices.litert_profiler import LiteRtProfiler, is_readable
from devices.onnx_files import input_specs, ordered_inputs, random_inputs
from devices.preemption import timed_runs
from devices.runtimes.base import (
    CompiledGraph,
    CompiledModel,
    NodeTiming,
    RuntimeSettings,
    RuntimeStatus,
    refusals,
)
from devices.runtimes.from_torch import Converted, FromTorch
from devices.xnnpack import small_windows

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx

    from devices.executed_onnx import ExecutedOp
    from devices.onnx_files import InputSpec
    from devices.runtimes.from_torch import Calibration

__all__ = ["LiteRt", "LiteRtHere", "LiteRtModel"]

_CHANNELS_LAST = (0, 2, 3, 1)
_SIGNATURE = "serving_default"
_WARM_UP = 3
"""Runs before those that a profile counts."""


class LiteRtHere(FromTorch):
    """LiteRT in this process; `LiteRt` is the same in a child."""

    name: ClassVar[str] = "litert"

    def status(self) -> RuntimeStatus:
        """Usable when runtime and converter are installed; importing them is left for later."""
        return self.status_by_packages(
            "ai-edge-litert",
            "litert-torch",
            install="pip install 'autospace[litert]'",
            precisions=("fp32", "fp16"),
            per_op_times=is_readable(),
        )

    def rewritten(self, model: onnx.ModelProto, settings: RuntimeSettings) -> onnx.ModelProto:
        """Averages over borders and large windows as LiteRT has kernels for them."""
        from devices.onnx_averages import with_border_counted

        # The converter makes sums of windows of other averages: 25 to 30 times as slow, by hand.
        return small_windows(with_border_counted(model), settings)

    def converted(
        self, model: onnx.ModelProto, settings: RuntimeSettings, calibration: Calibration
    ) -> Converted:
        """Converted by litert-torch, and halved by Google's quantiser; see the base class."""
        from devices.onnx_to_torch import torch_module

        module = torch_module(model)
        with refusals("model", self.name), _quiet():
            data = _file(module.in_modules(), input_specs(model))
            if settings.precision == "fp16":
                data = _halved(data)
            if not is_readable():
                return Converted(data)
            steps = module.step_nodes()
            read = partial(_operations, model, steps, data, settings)
            return Converted(data, executed_if_told(model, read))

    def load(
        self, compiled: CompiledGraph, settings: RuntimeSettings, profiling: bool = False
    ) -> LiteRtModel:
        """Loads the file.

        Raises:
            InvalidInputError: the graph is another runtime's, or is refused.
            UnavailableError: the package is not installed.
        """
        self.require(settings)
        self.check_compiled(compiled)
        return LiteRtModel(compiled, settings)

    def files(self, compiled: CompiledGraph) -> dict[str, bytes]:
        """One model file, whose images have their channels last."""
        return {".tflite": compiled.data}


class LiteRt(ContainedRuntime):
    """LiteRT in a child process, and its converter, which prints pages."""

    name: ClassVar[str] = "litert"
    source: ClassVar[Literal["onnx", "torch"]] = "torch"
    inner: ClassVar[str] = "devices.runtimes.litert:LiteRtHere"
    slow_to_compile: ClassVar[bool] = True


class LiteRtModel(CompiledModel):
    """One interpreter."""

    def __init__(self, compiled: CompiledGraph, settings: RuntimeSettings) -> None:
        """Loads the file.

        Args:
            compiled: from `LiteRtHere.compile`.
            settings: threads, precision, batch.
        """
        self._compiled = compiled
        self._threads = settings.threads
        self._interpreter: Any = None
        with refusals("model", "litert"):
            from ai_edge_litert.interpreter import Interpreter

            self._interpreter = Interpreter(
                model_content=compiled.data, num_threads=settings.threads
            )
            self._interpreter.allocate_tensors()
            signature = self._interpreter.get_signature_list()[_SIGNATURE]
            details = {
                detail["name"].rsplit(":", 1)[0].removeprefix("serving_default_"): detail["index"]
                for detail in self._interpreter.get_input_details()
            }
            # Arguments are called args_0, args_1, … in the module's order.
            ordered = sorted(signature["inputs"], key=lambda name: int(name.rsplit("_", 1)[1]))
            self._inputs = [details[name] for name in ordered]
            places = [d["index"] for d in self._interpreter.get_output_details()]
            self._outputs = places
            self._feed(random_inputs(compiled.inputs))

    def run(self, count: int) -> list[float]:
        """Times `count` runs; see the base class."""
        interpreter = self._open()
        with refusals("model", "litert"):
            runs = timed_runs(interpreter.invoke, count, self._threads)
        return self.counted_ms(runs, count)

    def profile(self, count: int) -> dict[str, NodeTiming]:
        """Times each kernel in `count` runs of the file loaded anew; see the base class.

        Raises:
            UnavailableError: the version that is installed lays its events out in another way.
        """
        self._open()
        if not is_readable():
            raise UnavailableError(
                "runtime 'litert': tells no times of operations in this version of "
                "ai-edge-litert; install the one that the project names, or time whole runs."
            )
        with refusals("model", "litert"):
            profiler = _profiler(self._compiled.data, self._compiled.inputs, self._threads)
            traced: list[tuple[TraceEvent, ...]] = []
            try:
                timed_runs(profiler.run, _WARM_UP, self._threads)
                runs = timed_runs(lambda: traced.append(profiler.traced()), count, self._threads)
            finally:
                profiler.close()
        return kernel_timings(traced, runs, count)

    def infer(self, inputs: Mapping[str, npt.NDArray[np.generic]]) -> list[npt.NDArray[np.generic]]:
        """Runs once; see the base class."""
        interpreter = self._open()
        with refusals(f"inputs {sorted(inputs)}", "litert"):
            self._feed(inputs)
            interpreter.invoke()
            found = [interpreter.get_tensor(place) for place in self._outputs]
            self._feed(random_inputs(self._compiled.inputs))  # what is timed is always the same
            return found

    def close(self) -> None:
        """Frees the interpreter."""
        self._interpreter = None

    def _feed(self, inputs: Mapping[str, npt.NDArray[np.generic]]) -> None:
        arrays = ordered_inputs(self._compiled.inputs, inputs)
        for place, array in zip(self._inputs, arrays, strict=True):
            self._interpreter.set_tensor(place, _laid(array))

    def _open(self) -> Any:
        if self._interpreter is None:
            raise UnavailableError("model: already closed; load it again.")
        return self._interpreter


def _profiler(data: bytes, inputs: tuple[InputSpec, ...], threads: int) -> LiteRtProfiler:
    """A file with its profiler, on random inputs."""
    return LiteRtProfiler(data, threads, [_laid(a) for a in random_inputs(inputs).values()])


def _operations(
    model: onnx.ModelProto, steps: Sequence[str], data: bytes, settings: RuntimeSettings
) -> tuple[ExecutedOp, ...]:
    """The kernels of a file, by a run with the profiler on."""
    from ai_edge_litert.interpreter import Interpreter

    from devices.litert_kernels import LiteRtFile, executed_operations

    interpreter = Interpreter(model_content=data, num_threads=settings.threads)
    interpreter.allocate_tensors()
    parts = [
        (operation["inputs"], operation["outputs"])
        for operation in interpreter._get_ops_details()
        if operation["op_name"] == "DELEGATE"
    ]
    profiler = _profiler(data, input_specs(model), settings.threads)
    try:
        profiler.run()
        events = profiler.traced()
    finally:
        profiler.close()
    return executed_operations(model, steps, LiteRtFile(data, parts), events)


def _file(module: Any, inputs: tuple[InputSpec, ...]) -> bytes:
    """The model file of a module, with the channels of its images last."""
    import litert_torch
    import torch

    _pad_in_any_layout()
    examples, images = [], []
    for place, array in enumerate(random_inputs(inputs).values()):
        if array.ndim == 4:
            images.append(place)
        examples.append(torch.from_numpy(_laid(array).copy()))
    if images:
        module = litert_torch.to_channel_last_io(module, args=images)
    made = litert_torch.convert(module.eval(), tuple(examples))
    with tempfile.TemporaryDirectory(prefix="autospace-litert-") as folder:
        path = Path(folder, "model.tflite")
        made.export(str(path))
        return path.read_bytes()


@cache
def _pad_in_any_layout() -> None:
    """Teaches the converter to pad images whose channels are last.

    It knows how for most operations; around a padding that is not a convolution's own it would put
    two transpositions.
    """
    import torch

    try:
        from litert_torch._convert.fx_passes.optimize_layout_transposes_pass import layout_rewrite

        register = layout_rewrite.rewriters.register
        known = layout_rewrite.rewriters
    except (ImportError, AttributeError):  # another version's; it converts as it always did
        return
    pad = torch.ops.aten.constant_pad_nd.default
    if pad in known:
        return

    def last_to_first(node: Any) -> None:
        # Pads are told from the last axis on, two for each: (…, rows, columns) now end in channels.
        source, pads, *value = node.args
        inside, channels, batch = list(pads[:4]), list(pads[4:6]), list(pads[6:])
        inside += [0] * (4 - len(inside))
        node.args = (source, [*(channels or [0, 0]), *inside, *batch], *value)

    register(pad)(last_to_first)


def _halved(data: bytes) -> bytes:
    """The model file with weights of 16 bits."""
    from ai_edge_quantizer import qtyping, quantizer

    weights = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    made = quantizer.Quantizer(bytearray(data))
    made.update_quantization_recipe(
        regex=".*",
        operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
        op_config=qtyping.OpQuantizationConfig(
            weight_tensor_config=weights,
            compute_precision=qtyping.ComputePrecision.FLOAT,
            explicit_dequantize=True,
        ),
        algorithm_key=quantizer.AlgorithmName.FLOAT_CASTING,
    )
    return bytes(made.quantize().quantized_model)


def _laid(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """An input as the file takes it."""
    import numpy as np

    return np.ascontiguousarray(array.transpose(_CHANNELS_LAST) if array.ndim == 4 else array)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
