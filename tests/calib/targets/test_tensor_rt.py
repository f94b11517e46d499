"""What of TensorRT's passes needs no GPU: the choice of a profile, what goes to the device and
when, sums of layers.
"""

import re
from types import SimpleNamespace

import numpy as np
import polygraphy.backend.trt as backend
import pytest
from polygraphy import cuda
from support.tensorrt_target import target_without_gpu

from firp.calib.profiling.pass_grid import check_grid
from firp.calib.targets.cost import Point, dimensions
from firp.calib.targets.feeds import FeedMaker
from firp.calib.targets.layer_times import kind_of
from firp.calib.targets.tensor_rt import layer_profiler
from firp.runtime.bundle.engine_record import Profile
from firp.runtime.bundle.format import load_bundle
from firp.runtime.bundle.graph_spec import PREFIX
from firp.runtime.errors import FirpError


def test_passes_of_an_engine(family_bundle, monkeypatch):
    """Everything but the GPU: profiles are switched, inputs go to the device once, layers are
    summed pass by pass.
    """
    bundle = family_bundle("llama_untied_biases")[1]
    log, loaded, shapes = [], load_bundle(bundle), {}
    spec = loaded.manifest.graphs_for(PREFIX)["lower"]
    for name, low, high in (
        ("decode", Point(1, 0, 1), Point(4, 50, 1)),
        ("prefill", Point(5, 0, 1), Point(64, 50, 1)),
    ):
        dims = [dimensions("lower", point, loaded.manifest) for point in (low, high)]
        shapes[name] = {
            tensor.name: (tensor.sizes(dims[0]), tensor.sizes(dims[1]), tensor.sizes(dims[1]))
            for tensor in spec.inputs
        }

    class Array:
        def __init__(self, shape):
            self.ptr, self.nbytes = 1, shape[0]

        def copy_from(self, array):
            assert array.dtype == np.uint8
            assert array.size == self.nbytes
            log.append("copy")

        def free(self):
            log.append("free")

    class Context:
        profiler = None

        def create_execution_context(self, strategy):
            return self

    class Runner:
        def __init__(self, context, optimization_profile):
            self.context = context

        def __enter__(self):
            return self

        def __exit__(self, *_):
            log.append("end")

        def set_profile(self, index):
            log.append(index)

        def infer(self, feed, check_inputs, copy_outputs_to_host):
            assert {name: view.shape for name, view in feed.items()} == {
                name: array.shape for name, array in self.given.items()
            }
            assert not copy_outputs_to_host
            for name, ms in (("node_Gemm_7", 2.0), ("__myl_Tran", 1.0)) if self.context.profiler else ():
                self.context.profiler.report_layer_time(name, ms)

        def last_inference_time(self):
            return 0.25

    monkeypatch.setattr(backend, "EngineFromBytes", lambda data: Context)
    monkeypatch.setattr(backend, "TrtRunner", Runner)
    monkeypatch.setattr(cuda.DeviceArray, "raw", Array)
    record = SimpleNamespace(
        limits=None, profiles={"lower": tuple(Profile(name, held) for name, held in shapes.items())}
    )
    library = SimpleNamespace(
        __version__="1.7", IProfiler=object, ExecutionContextAllocationStrategy=SimpleNamespace(STATIC=0)
    )
    engines = SimpleNamespace(record=record, plan_path=lambda graph: bundle / f"{graph}.plan")
    target = target_without_gpu(monkeypatch, loaded, library, engines)
    target.graphs = {"lower": spec}
    check_grid(target, loaded.manifest, [Point(64, 50, 1)])
    with pytest.raises(
        FirpError, match=re.escape("the lower engine does not hold such a pass | got input_ids [1, 65]")
    ):
        check_grid(
            target,
            loaded.manifest,
            [Point(64, 50, 1), Point(65, 50, 1)],
        )
    feeds, count = FeedMaker(spec, loaded.manifest, 1, 40), len(spec.inputs)
    with target.timer("lower") as pass_ms:
        for rows, expected in (
            (1, ["copy"] * count),
            (8, ["free", "copy"] * count + [1]),
            (8, []),
            (2, ["free", "copy"] * count + [0]),
        ):
            if expected:
                Runner.given = feeds.feed(Point(rows, 40, 1))
            assert pass_ms(Runner.given) == 250.0
            assert sorted(map(str, log)) == sorted(map(str, expected))
            log.clear()
    assert log == ["free"] * count + ["end"]
    layers = target.layer_times("lower", Runner.given, 1, 3)
    assert [(layer.name, layer.ms, kind_of(layer)) for layer in layers] == [
        ("node_Gemm_7", 2.0, "GEMM"),
        ("__myl_Tran", 1.0, "copy"),
    ]


def test_the_profiler_is_one_of_tensorrt():
    trt = pytest.importorskip("tensorrt_rtx")
    profiler = layer_profiler(trt)
    assert isinstance(profiler, trt.IProfiler)
    for ms in (1.0, 3.0):
        profiler.report_layer_time("a", ms)
    assert profiler.times == {"a": [1.0, 3.0]}
