"""The public doors: whatever a caller gives, it is taken as what it means, or refused in one line."""

import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from support.chat_bundles import add_chat

from firp import Engine, FirpError, SamplingParams, StructuredOutput, TreeConfig
from firp.calib.calibrate.request import CalibrationRequest
from firp.calib.training.options import TrainOptions
from firp.export.bundle.writer import ExportOptions

FEW = SamplingParams(max_new_tokens=3)
ODD = (
    None, True, 1.5, math.nan, -1, 10**30, "x", "", b"x", (), [], {}, {1}, object(), FirpError, len, [None],
    np.array([1.0]), np.array([[1]]), np.float64(2.5), np.bool_(True), Decimal("1.5"), Fraction(1, 2), 1j,
)  # fmt: skip
NUMBERS = (math.inf, -math.inf, 10**400, np.int8(-3), -1e-9, 2**63)
MESSAGE = {"role": "user", "content": "Hello"}


@pytest.fixture(scope="module")
def engine(demo_bundle, tmp_path_factory):
    """The demo model, and a chat template."""
    return Engine.load(add_chat(demo_bundle, tmp_path_factory.mktemp("misuse") / "bundle"))


def same(one, other):
    return type(one) is type(other) and repr(one) == repr(other)


def field(kind, name, **others):
    return lambda value, engine: kind(**{name: value}, **others)


def decode(**options):
    return lambda value, engine: engine.generate("a", FEW, **dict.fromkeys(options, value))


def tree(name, **others):
    return lambda value, engine: engine.drafter(TreeConfig(**{name: value}, **others))


TRAIN = {"window": 64, "minutes": 1.0}
# a door -> what goes through it, and those of ODD and NUMBERS that it takes
DOORS = {
    "max_new_tokens": (field(SamplingParams, "max_new_tokens"), (10**30, 10**400, 2**63)),
    "temperature": (
        field(SamplingParams, "temperature"),
        (1.5, 10**30, np.float64(2.5), Fraction(1, 2), 2**63),
    ),
    "top_k": (field(SamplingParams, "top_k"), (10**30, 10**400, 2**63)),
    "top_p": (field(SamplingParams, "top_p"), (Fraction(1, 2),)),
    "seed": (field(SamplingParams, "seed"), (2**63,)),
    "stop": (field(SamplingParams, "stop"), ((), [])),
    "ignore_eos": (field(SamplingParams, "ignore_eos"), (True, np.bool_(True))),
    "min_p": (field(SamplingParams, "min_p"), (Fraction(1, 2),)),
    "repetition_penalty": (
        field(SamplingParams, "repetition_penalty"),
        (1.5, np.float64(2.5), Fraction(1, 2)),
    ),
    "presence_penalty": (field(SamplingParams, "presence_penalty"), (1.5, -1, Fraction(1, 2), -1e-9)),
    "frequency_penalty": (field(SamplingParams, "frequency_penalty"), (1.5, -1, Fraction(1, 2), -1e-9)),
    "logit_bias": (field(SamplingParams, "logit_bias"), ((), {})),
    "a bias": (
        lambda value, engine: SamplingParams(logit_bias={5: value}),
        (1.5, -1, np.float64(2.5), Fraction(1, 2), np.int8(-3), -1e-9),
    ),
    "allowed_token_ids": (field(SamplingParams, "allowed_token_ids"), (None, {1})),
    "banned_token_ids": (field(SamplingParams, "banned_token_ids"), ((), [], {1})),
    "stop_token_ids": (field(SamplingParams, "stop_token_ids"), ((), [], {1})),
    "min_tokens": (field(SamplingParams, "min_tokens"), ()),
    "logprobs": (field(SamplingParams, "logprobs"), (None,)),
    "prompt_logprobs": (field(SamplingParams, "prompt_logprobs"), (None,)),
    "structured": (field(SamplingParams, "structured"), (None,)),
    "json_schema": (field(StructuredOutput, "json_schema"), (True, {})),
    "regex": (field(StructuredOutput, "regex"), ("x", "")),
    "lark": (field(StructuredOutput, "lark"), ("x", "")),
    "choice": (field(StructuredOutput, "choice"), ()),
    "json_object": (field(StructuredOutput, "json_object"), (True,)),
    "tree kind": (tree("kind"), ()),
    "tree rows": (tree("rows"), ()),
    "tree draft_sources": (tree("draft_sources"), (None, 10**30, 10**400, 2**63)),
    "tree depth": (tree("depth"), (None,)),
    "tree paths": (tree("paths", kind="static", rows=2), ()),
    "tree drafters": (tree("drafters"), ()),
    "tree least": (tree("least"), (Fraction(1, 2),)),
    "prompt": (lambda value, engine: engine.generate(value, FEW), ("x",)),
    "streamed prompt": (lambda value, engine: engine.stream(value, FEW), ("x",)),
    "encode": (lambda value, engine: engine.encode(value), ("x",)),
    "a token": (lambda value, engine: engine.encode([1, value]), ()),
    "params": (lambda value, engine: engine.generate("a", value), (None,)),
    "plain": (decode(plain=True), (True, np.bool_(True))),
    "tree": (decode(tree=None), (None,)),
    "cancel": (decode(cancel=None), (None,)),
    "tools": (lambda value, engine: engine.chat([MESSAGE], FEW, tools=value), (None, (), [])),
    "messages": (lambda value, engine: engine.chat(value, FEW), ()),
    "a message": (lambda value, engine: engine.chat([value], FEW), ()),
    "a role": (lambda value, engine: engine.chat([{**MESSAGE, "role": value}], FEW), ()),
    "a content": (lambda value, engine: engine.chat([{**MESSAGE, "content": value}], FEW), ("x", "", (), [])),
    "deadline_s": (
        lambda value, engine: engine.submit("a", FEW, deadline_s=value).cancel(),
        (None, 1.5, np.float64(2.5), Fraction(1, 2), 10**30, 2**63),
    ),
    "request_id": (
        lambda value, engine: engine.submit("a", FEW, request_id=value).cancel(),
        (None, "x", ""),
    ),
    "samples": (lambda value, engine: engine.submit_samples("a", FEW, value), ()),
    "params of samples": (lambda value, engine: engine.submit_samples("a", value), (None,)),
    "capacity": (lambda value, engine: engine.session(value), ()),
    "rows": (lambda value, engine: engine.session(64, value), ()),
    "drafter": (lambda value, engine: engine.drafter(value), (None,)),
    "system": (lambda value, engine: engine.conversation(FEW, system=value), (None, "x", "")),
    "path": (lambda value, engine: Engine.load(value), ()),
    "backend": (lambda value, engine: Engine.load(engine.bundle.path, backend=value), ()),
    "threads": (lambda value, engine: Engine.load(engine.bundle.path, threads=value), (None,)),
    "check_hashes": (
        lambda value, engine: Engine.load("none", check_hashes=value),  # a bundle that is not there
        (),
    ),
    "export model": (field(ExportOptions, "model", output="o"), ("x",)),
    "export layer": (
        field(ExportOptions, "prediction_layer", model="m", output="o"),
        (None, 10**30, 10**400, 2**63),
    ),
    "export dtype": (field(ExportOptions, "dtype", model="m", output="o"), ()),
    "export quantize": (field(ExportOptions, "quantize", model="m", output="o"), (None,)),
    "export tree": (field(ExportOptions, "tree", model="m", output="o"), (None,)),
    "export force": (field(ExportOptions, "force", model="m", output="o"), (True, np.bool_(True))),
    "calibrate output": (field(CalibrationRequest, "output", model="m"), ("x",)),
    "calibrate data": (field(CalibrationRequest, "data", model="m", output="o"), ((), [])),
    "calibrate options": (field(CalibrationRequest, "options", model="m", output="o"), ()),
    "predictors": (field(TrainOptions, "num_predictors"), ()),
    "batch": (field(TrainOptions, "batch"), (10**30, 10**400, 2**63)),
    "learning rate": (field(TrainOptions, "learning_rate"), (Fraction(1, 2),)),
    "baselines": (field(TrainOptions, "baselines"), (True, np.bool_(True))),
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
def test_what_means_nothing_is_one_line(door, engine):
    enter, taken = DOORS[door]
    refused = 0
    for value in (*ODD, *NUMBERS):
        if any(same(value, each) for each in taken):
            continue
        with pytest.raises(FirpError) as caught:
            enter(value, engine)
        line = str(caught.value)
        assert "\n" not in line
        assert len(line) < 600
        refused += 1
    assert refused >= len(ODD) + len(NUMBERS) - 6


@pytest.mark.parametrize("door", DOORS)
def test_what_means_something_is_taken(door, engine):
    enter, taken = DOORS[door]
    for value in taken:
        if door != "threads":  # None takes all that are there
            enter(value, engine)


@pytest.mark.parametrize(
    "call", [lambda e: e.generate(), lambda e: e.generate("a", wrong=1), lambda e: e.encode()]
)
def test_python_s_own_rules_of_calls_are_python_s(call, engine):
    with pytest.raises(TypeError, match=r"argument"):
        call(engine)


def test_numbers_arrays_and_paths_of_other_types_are_what_they_mean(demo_engine, demo_bundle):
    prompt = demo_engine.encode("def add(a, b):")
    right = demo_engine.generate(prompt, SamplingParams(20, temperature=0.5, top_k=40, seed=7)).token_ids
    odd = SamplingParams(
        np.uint8(20), temperature=np.float32(0.5), top_k=np.int16(40), seed=np.uint64(7), top_p=Fraction(1)
    )
    shape = TreeConfig("static", np.int64(3), np.int8(1), paths=[[0], np.array([0, 0])])
    assert shape == TreeConfig("static", 3, 1, paths=((0,), (0, 0)))
    for given in (np.array(prompt, np.uint16), tuple(prompt), [np.int32(token) for token in prompt]):
        assert demo_engine.generate(given, odd, tree=shape).token_ids == right
        assert demo_engine.generate(given, odd, plain=np.bool_(True)).token_ids == right
    loaded = Engine.load(str(demo_bundle), threads=np.int8(1), check_hashes=np.bool_(False))
    assert loaded.generate(prompt, odd).token_ids == right
    options = ExportOptions("m", "o", prediction_layer=np.int64(2), force=np.bool_(True))
    assert options == ExportOptions(Path("m"), Path("o"), prediction_layer=2, force=True)
    assert TrainOptions(window=np.int64(64), minutes=np.float32(2)) == TrainOptions(window=64, minutes=2.0)
