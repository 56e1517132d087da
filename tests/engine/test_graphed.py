"""Trials that are captured and replayed give what the eager driver gives, to the last bit; what cannot be captured is eager.

A stand-in captures on the CPU. It does the work again at each replay, into the memory that the captured work returned, and
spoils that memory between the capture and the first replay and after the solve: whoever has kept a view instead of a copy
shows it.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import physnode as pn
from physnode.drivers import eager_only
from physnode.engine import loop, methods
from physnode.engine.controllers import Adaptive, Controller, Fixed, Span
from physnode.engine.field_function import FieldFunction
from physnode.engine.graphed import Capture, CudaCapture, Refused, capture_on
from physnode.engine.kept_states import KeptStates
from physnode.engine.loop import Setting, begin, send
from physnode.errors import CompileWarning
from physnode.fields import SecondOrder
from physnode.gradients import ACA, Storage
from physnode.solve import solve

F64 = torch.float64
ITERATING = ("gauss_radau15", "gauss2", "gauss4", "gauss6", "radau5")
T = TypeVar("T")


class NoWaits(TorchFunctionMode):
    """Refuses what needs a tensor's values on the host."""

    names = frozenset(("__bool__", "__int__", "__float__", "__index__", "item", "tolist", "numpy", "cpu", "nonzero", "unique"))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self.names:
            raise RuntimeError(f"{func.__name__} waits for the device")
        return func(*args, **(kwargs or {}))


class Undone(TorchDispatchMode):
    """Takes back what was written into tensors: work that is captured is not done."""

    def __init__(self) -> None:
        super().__init__()
        self._before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable:
            self._before.append((args[0], args[0].clone()))
        return func(*args, **(kwargs or {}))

    def undo(self) -> None:
        for tensor, value in reversed(self._before):
            tensor.copy_(value)


def storages(value: Any) -> Iterator[torch.UntypedStorage]:
    """The memory of all tensors in a structure."""
    if isinstance(value, Tensor):
        yield value.untyped_storage()
    elif is_dataclass(value):
        yield from storages([getattr(value, field.name) for field in fields(value)])
    elif isinstance(value, list | tuple):
        for part in value:
            yield from storages(part)


class StandIn(Capture):
    """Captures on the CPU."""

    def __init__(self) -> None:
        self.rehearsals = self.captures = self.replays = 0
        self._own: list[torch.UntypedStorage] = []

    def rehearse(self, work: Callable[[], T]) -> T:
        self.rehearsals += 1
        try:
            with NoWaits():
                return work()
        except RuntimeError as problem:
            raise Refused(str(problem)) from problem

    def capture(self, work: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        self.captures += 1
        with NoWaits(), Undone() as done:
            made, other = work(), work()
        done.undo()
        for place, elsewhere in zip(storages(made), storages(other), strict=True):
            if place.data_ptr() != elsewhere.data_ptr():  # else it was there before
                self._own.append(place)
        self.spoil()

        def replay() -> None:
            self.replays += 1
            own = {place.data_ptr() for place in self._own}
            for place, value in zip(storages(made), storages(work()), strict=True):
                if place.data_ptr() in own:
                    place.copy_(value)

        return made, replay

    def spoil(self) -> None:
        """Fill what was captured with bytes that are NaN, or -1."""
        for place in self._own:
            place.fill_(255)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    capture = StandIn()
    monkeypatch.setattr(sys.modules["physnode.drivers"], "capture_on", lambda device: capture)
    return capture


class Swing(SecondOrder):
    velocity_dependent = False

    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(1.1, dtype=F64))
        self.constant = nn.Parameter(torch.tensor([0.01], dtype=F64))

    def acceleration(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        return -self.strength.to(q.dtype) * torch.sin(q) + self.constant.to(q.dtype)


class Constant(nn.Module):
    """Returns memory that is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor([0.5, -1.0], dtype=F64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.rate.expand_as(y)


def everything(compile: bool | str, spoil: Callable[[], None] = lambda: None, **options: Any) -> list[Tensor]:
    """All that a caller can find out of a solve in which trajectories end at different trials, and some fail."""
    dtype = options.pop("dtype", F64)
    field = options.pop("field", Swing)()
    y0 = torch.tensor([[1.0, 0.0], [3.1, 0.0], [0.2, 0.3], [2.0, 1e9], [torch.inf, 0.0]], dtype=dtype, requires_grad=True)
    ends = torch.tensor([3.0, 25.0, 0.0, 20.0, 4.0], dtype=F64)
    ts = ends.unsqueeze(-1) * torch.linspace(0, 1, 12, dtype=F64) if options.pop("ragged", True) else [0.0, 0.1, 7.0, 19.0]
    options = {"t0": 0.0, "max_steps": 90, "on_failure": "report", **options}
    sol = solve(field, y0, ts, compile=compile, **options)
    spoil()
    assert sol.stats.gradient is not None
    found = [sol.ys, sol.status, sol.reached, sol.last_step, sol.stats.accepted, sol.stats.rejected, sol.stats.evaluations]
    if options.get("dense"):
        found.append(sol.at(torch.zeros(5, 3, dtype=F64) + ends.unsqueeze(-1) * torch.tensor([0.11, 0.5, 0.77], dtype=F64)))
    grads = torch.autograd.grad(torch.nan_to_num(sol.ys).square().sum(), [y0, *field.parameters()], allow_unused=True)
    cost = sol.stats.gradient
    return [*found, *(grad for grad in grads if grad is not None), torch.tensor([cost.bytes, cost.states])]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) for a, b in zip(one, other, strict=True))


class TestSameToTheLastBit:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"ragged": False},
            {"ragged": False, "t0": 5.0},
            {"gradient": "symplectic", "read_out": "restep"},
            {"gradient": "direct"},
            {"method": "dop853"},
            {"method": "bosh3", "dtype": torch.float32},
            {"method": "dprkn6", "controller": Adaptive(atol=[1e-9, 1e-7])},
            {"method": "kahan_li8", "controller": Fixed(0.3)},
            {"method": "rk4", "controller": Fixed(0.4), "gradient": "symplectic"},
            {"controller": Adaptive(per_trajectory=False)},
            {"controller": Adaptive(icoeff=0.3, pcoeff=0.4)},
            {"dense": True},
            {"dense": True, "method": "dop853", "gradient": "symplectic"},
            {"field": Constant, "controller": Fixed(0.3)},
        ],
    )
    @pytest.mark.parametrize("count", [1, 3, 8])
    def test_of_the_eager_driver(
        self, monkeypatch: pytest.MonkeyPatch, stand_in: StandIn, options: dict[str, Any], count: int
    ) -> None:
        wanted = everything(False, **options)
        assert (wanted[1] > 0).any()
        assert (wanted[1] == 0).any()
        monkeypatch.setattr(loop, "_TRIALS_A_WAIT", count)
        assert same(wanted, everything(True, stand_in.spoil, **options))
        ways = 2 if options.get("t0") else 1
        assert stand_in.rehearsals == stand_in.captures == ways
        assert stand_in.replays >= 4

    def test_trials_too_large_for_a_chunk(self, monkeypatch: pytest.MonkeyPatch, stand_in: StandIn) -> None:
        wanted = everything(False)
        monkeypatch.setattr(loop, "_CHUNK_BYTES", 2**10)
        assert same(wanted, everything(True, stand_in.spoil))
        assert stand_in.replays > 60

    def test_a_view_that_is_kept_is_seen(self, monkeypatch: pytest.MonkeyPatch, stand_in: StandIn) -> None:
        def extend(states: KeptStates, payloads: list[Tensor]) -> None:
            for payload in payloads:
                states._add_block(payload.unsqueeze(0))
                states.opened += 1

        def grad(compile: bool) -> Tensor:
            y0 = torch.ones(2, 2, dtype=F64, requires_grad=True)
            ys = solve(Swing(), y0, [0.0, 9.0], compile=compile).ys
            stand_in.spoil()
            return torch.autograd.grad(ys.sum(), y0)[0]

        assert torch.equal(grad(True), grad(False))
        monkeypatch.setattr(KeptStates, "extend", extend)
        assert not torch.equal(grad(True), grad(False))


class TestCaptured:
    def test_nothing_by_a_solve_of_few_trials(self, stand_in: StandIn) -> None:
        solve(Swing(), torch.ones(2, 2, dtype=F64), [0.0, 0.5], compile=True)
        assert (stand_in.rehearsals, stand_in.captures) == (1, 0)

    def test_nothing_by_a_solve_that_does_not_move(self, stand_in: StandIn) -> None:
        solve(Swing(), torch.ones(2, 2, dtype=F64), [1.0], compile=True)
        assert stand_in.rehearsals == 0

    def test_by_auto_too(self, stand_in: StandIn) -> None:
        solve(Swing(), torch.ones(2, 2, dtype=F64), [0.0, 9.0], compile="auto")
        assert stand_in.captures == 1

    def test_one_flag_a_replay(self, monkeypatch: pytest.MonkeyPatch, stand_in: StandIn) -> None:
        """Neither trials nor the driver read anything else, where nobody reads trials."""
        monkeypatch.setattr(loop.OutputBoard, "read", lambda board, f, method, trials: torch.zeros(2, dtype=torch.int64))
        found = []

        class Flags(TorchFunctionMode):
            def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                if getattr(func, "__name__", "") in NoWaits.names:
                    found.append(func.__name__)
                return func(*args, **(kwargs or {}))

        counts = []
        for t1 in (9.0, 90.0):
            found.clear()
            before = stand_in.replays
            with torch.no_grad(), Flags():
                solve(Swing(), torch.ones(2, 2, dtype=F64), [0.0, t1], compile=True)
            counts.append((len(found), stand_in.replays - before))
        (few, replays), (many, more) = counts
        assert more > replays + 5
        assert many - few == more - replays


def waits(t: Tensor, y: Tensor) -> Tensor:
    return -y * float(t.max() < 100)


def noisy(t: Tensor, y: Tensor) -> Tensor:
    return -y + 0 * torch.rand_like(y)


class TestEagerInstead:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"field": waits}, "waits for the device"),
            ({"field": waits, "t0": 1.0}, "waits for the device"),
            ({"field": noisy}, "draws random numbers"),
            ({"events": pn.Event(lambda t, y: y[..., :1] - 0.5)}, "events"),
            ({"jump_times": [1.0]}, "jumps"),
            ({"observe": lambda trial: None}, "observed"),
            ({"gradient": ACA(Storage(checkpoints=5))}, "storage"),
            ({"method": "radau5"}, "iterates"),
            ({"method": "gauss_radau15", "field": Swing()}, "iterates"),
        ],
    )
    def test_with_one_warning(self, stand_in: StandIn, options: dict[str, Any], words: str) -> None:
        field = options.pop("field", lambda t, y: -y)
        y0 = torch.tensor([[1.0, 0.0], [0.3, 0.3]], dtype=F64)
        wanted = solve(field, y0, [0.0, 2.0, 3.0], **options)
        with pytest.warns(CompileWarning, match=words) as seen:
            found = solve(field, y0, [0.0, 2.0, 3.0], compile=True, **options)
        assert len(seen) == 1
        assert seen[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            other = solve(field, y0, [0.0, 2.0, 3.0], compile="auto", **options)
        assert same([found.ys, found.stats.evaluations], [wanted.ys, wanted.stats.evaluations])
        assert same([other.ys], [wanted.ys])
        assert stand_in.captures == 0

    def test_on_a_device_that_captures_nothing(self) -> None:
        y0 = torch.ones(1, 2, device="meta")
        assert capture_on(y0.device) is None
        assert eager_only(y0, ACA(), None, None, None) == "its states are on meta"

    def test_an_error_of_the_field_is_its_own(self, stand_in: StandIn) -> None:
        calls = []

        def breaks(t: Tensor, y: Tensor) -> Tensor:
            calls.append(1)
            if len(calls) > 20:
                raise RuntimeError("out of fuel")
            return -y

        with pytest.raises(RuntimeError, match="out of fuel"):
            solve(breaks, torch.ones(1, 2, dtype=F64), [0.0, 9.0], compile=True)


class NoCopies(TorchDispatchMode):
    """Refuses copies from one device to another."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {value.device for value in args if isinstance(value, Tensor) and value.ndim}
        assert not isinstance(made, Tensor) or not given or {made.device} == given, func
        assert func is not torch.ops.aten._to_copy.default or made.device == args[0].device, func
        return made


PAIRS = [
    (name, controller)
    for name, method in methods.available().items()
    for controller in (
        Adaptive(),
        Adaptive(atol=[1e-9, 1e-8]),
        Adaptive(atol=1e-8, per_trajectory=False, pcoeff=0.2),
        Fixed(0.1),
    )
    if name not in ITERATING and (method.error_order is not None or isinstance(controller, Fixed))
]


class TestTrials:
    """On a device without memory, where no value can be read."""

    @pytest.mark.parametrize(("method", "controller"), PAIRS)
    def test_need_nothing_of_the_host(self, method: str, controller: Controller) -> None:
        chosen = methods.get(method)
        device = torch.device("meta")
        controller = controller.on(device)
        y, t0 = torch.ones(3, 2, dtype=F64, device=device), torch.zeros(3, dtype=F64, device=device)
        f = FieldFunction(Swing().to(device), (3,), F64)
        with torch.no_grad(), NoCopies():
            derivative = f(t0, y)
            carry = chosen.start(f, t0, y, derivative)
            setting = Setting(f, chosen, controller, Span(t0, t0 + 1, torch.ones_like(t0)), y, carry, 100)
            status = torch.full_like(t0, -1, dtype=torch.int64)
            state = begin(setting, y, derivative, carry, status, 1)
            after, trials, _ = send(setting, state, 2)
        assert len(trials) == 2
        for one, other in zip(state, after, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                assert (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)


class TestCuda:
    """The calls of ``torch.cuda``, their order, and what is left behind; whether a GPU does what they say is not asked here."""

    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        calls: list[str] = []

        class Stream:
            def __init__(self, device: Any = None, name: str = "side") -> None:
                self.name = name

            def wait_stream(self, other: Stream) -> None:
                calls.append(f"{self.name} waits for {other.name}")

        class Graph:
            def replay(self) -> None:
                calls.append("replay")

        signature = inspect.signature(torch.cuda.graph)

        @contextmanager
        def graph(*args: Any, **options: Any) -> Iterator[None]:
            given = signature.bind(*args, **options).arguments
            calls.append(f"capture on {given['stream'].name}")
            yield

        state = {"mode": 1}
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(device, "main"))
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", graph)
        monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: state["mode"])

        def switch(mode: int | str) -> None:
            calls.append(f"sync {mode}")

        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", switch)
        return calls

    @pytest.mark.parametrize("fails", [False, True])
    def test_rehearsal(self, calls: list[str], fails: bool) -> None:
        def work() -> int:
            calls.append("work")
            if fails:
                raise RuntimeError("called a synchronizing CUDA operation\nmore")
            return 7

        capture = CudaCapture(torch.device("cuda"))
        if fails:
            with pytest.raises(Refused, match=r"\(called a synchronizing CUDA operation\)"):
                capture.rehearse(work)
        else:
            assert capture.rehearse(work) == 7
        assert calls == ["side waits for main", "sync error", "work", "sync 1", "main waits for side"]

    def test_capture(self, calls: list[str]) -> None:
        made, replay = CudaCapture(torch.device("cuda")).capture(lambda: 7)
        replay()
        assert made == 7
        assert calls == ["capture on side", "replay"]

    def test_an_error_says_how_to_do_without(self, calls: list[str]) -> None:
        with pytest.raises(RuntimeError) as found:
            CudaCapture(torch.device("cuda")).capture(_fail)
        assert "compile=False" in found.value.__notes__[0]


def _fail() -> None:
    raise RuntimeError("operation not permitted when stream is capturing")
