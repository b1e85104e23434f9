"""The noise ladder: how much picture and how much noise there is at every step.

A noised picture is always `xt = alpha * x0 + sigma * eps`. A `Level` is one pair (alpha, sigma) with the time `t`
that the net is told; a `Ladder` is the whole list of them on which a net was trained. Two families, one arithmetic:

- variance preserving (DDPM, Stable Diffusion): alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar), t = 0 ... T - 1;
- flow (rectified flow): alpha = 1 - sigma, t = T * sigma.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from cartouche.config import CartoucheError, unknown

Array = Any
"""A numpy array or a torch tensor: everything in this room is plain arithmetic that both understand."""


class Level(NamedTuple):
    """One amount of noise: xt = alpha * x0 + sigma * eps; t is the time the net is told. Plain Python floats."""

    t: float
    alpha: float
    sigma: float


CLEAN = Level(t=-1.0, alpha=1.0, sigma=0.0)
"""The end of every drawing: no noise left."""

SPACINGS = ("trailing", "leading", "linspace")
GRIDS = ("rungs", "between", "intervals", "flow")
MOST_RUNGS = 100_000  # a hundred times the usual: what asks for more would only fill the memory


def add_noise(x0: Array, eps: Array, level: Level) -> Array:
    """Jump straight to a level: alpha x0 + sigma eps (DDPM, arXiv 2006.11239, eq. 4). All of one shape."""
    return level.alpha * x0 + level.sigma * eps


@dataclass(frozen=True, eq=False)
class Ladder:
    """The T noise levels of a trained net, rung 0 the cleanest, and how a drawing of few steps walks down them.

    alpha, sigma: (T,) float64. time: (T,) what the net is told, 0 ... T - 1 where not given.
    spacing, offset: which rungs a short drawing visits (Lin et al., arXiv 2305.08891, table 2).
    grid: the rounding habit of the scheduler class a folder was written for, see `_positions`.
    karras: respace the chosen rungs by `_karras`. end: the level behind the last step.
    """

    alpha: np.ndarray
    sigma: np.ndarray
    time: np.ndarray = field(default_factory=lambda: np.empty(0))
    spacing: str = "trailing"
    offset: int = 0
    karras: bool = False
    grid: str = "rungs"
    end: Level = CLEAN

    def __post_init__(self) -> None:
        count = len(self.alpha)
        time = self.time if len(self.time) else np.arange(count, dtype=np.float64)
        for name, values in (("alpha", self.alpha), ("sigma", self.sigma), ("time", time)):
            own = np.array(values, dtype=np.float64)
            if own.shape != (count,):
                raise CartoucheError(f"{name} has shape {own.shape}; give one number per rung, {count} in all")
            object.__setattr__(self, name, own)
        _choice("spacing", self.spacing, SPACINGS)
        _choice("grid", self.grid, GRIDS)

    def __len__(self) -> int:
        """T, the number of rungs."""
        return len(self.alpha)

    @property
    def alpha_bar(self) -> np.ndarray:
        """(T,): alpha squared, the share of the picture's variance that is left (DDPM, eq. 4)."""
        return self.alpha**2

    @property
    def ratio(self) -> np.ndarray:
        """(T,): sigma / alpha, the noise of EDM and k-diffusion; inf on a rung that is noise alone."""
        with np.errstate(divide="ignore"):
            return np.asarray(self.sigma / self.alpha)

    def at(self, t: float) -> Level:
        """The level at time t, on the straight line between rungs for a fractional t; t = -1 is the clean end.

        Raises CartoucheError outside the ladder.
        """
        if t == CLEAN.t:
            return CLEAN
        if not self.time[0] <= t <= self.time[-1]:
            raise CartoucheError(f"t={t} asked of a ladder from t={self.time[0]:g} to {self.time[-1]:g}")
        return self._level(float(np.interp(t, self.time, np.arange(len(self)))))

    def levels(
        self, steps: int, spacing: str | None = None, offset: int | None = None, karras: bool | None = None
    ) -> list[Level]:
        """The steps + 1 levels a drawing visits, noisiest first, the last one `end`.

        What is not given is the ladder's own. `trailing` starts at the noisiest rung and is right for zero terminal
        SNR; `leading` is Stable Diffusion's; `linspace` takes both ends. Raises CartoucheError for steps outside 1
        ... T.
        """
        offset = self.offset if offset is None else offset
        positions = self._positions(steps, _choice("spacing", spacing or self.spacing, SPACINGS), offset)
        if self.karras if karras is None else karras:
            return [*self._karras(positions), self.end]
        return [*(self._level(float(position)) for position in positions), self.end]

    def _level(self, position: float) -> Level:
        """The level at a fractional rung: a point on the chord between two rungs (every formula here allows that)."""
        low = max(math.floor(position), -1)
        share = position - low
        below, above = self._rung(low), self._rung(math.ceil(position))
        mixed = [(1 - share) * a + share * b if share else a for a, b in zip(below, above, strict=True)]
        if self.grid == "flow":
            mixed[0] = math.floor(mixed[0])
        return Level(*map(float, mixed))

    def _rung(self, index: int) -> tuple[float, float, float]:
        """(time, alpha, sigma) of one rung; below rung 0 of a flow comes the clean picture at time 0."""
        return (0.0, 1.0, 0.0) if index < 0 else (self.time[index], self.alpha[index], self.sigma[index])

    def _positions(self, steps: int, spacing: str, offset: int) -> np.ndarray:
        """(steps,): the rungs to visit, noisiest first.

        Scheduler classes in the wild agree on the spacings but not on the rounding, and a folder must give the same
        picture here and there: `rungs` rounds to whole rungs (DDPM, DDIM); `between` leaves linspace fractional
        (Euler, Heun); `intervals` lays steps + 1 points and drops the lowest (DPM-Solver++); `flow` does that on u =
        0 ... 1 - 1/T.
        """
        total = len(self)
        if not 1 <= steps <= total:
            raise CartoucheError(f"steps={steps} asked of a schedule of {total}; choose 1 to {total}")
        if self.grid == "flow":
            return np.linspace(total - 2, -1, steps + 1)[:-1]
        points = steps + 1 if self.grid == "intervals" else steps
        if spacing == "trailing":
            positions = np.round(total - np.arange(steps) * (total / steps)) - 1
        elif spacing == "leading":
            positions = (np.arange(points)[::-1] * (total // points) + offset)[:steps].astype(np.float64)
        else:
            positions = np.linspace(total - 1, 0, points)[:steps]
            positions = positions if self.grid == "between" else np.round(positions)
        if positions[0] > total - 1 or positions[-1] < 0:
            raise CartoucheError(
                f"steps={steps} with offset={offset} leaves a schedule of {total} rungs; choose fewer steps or offset=0"
            )
        if len(np.unique(positions)) < steps:
            raise CartoucheError(f"steps={steps} of {total} rungs, {spacing}, visit one twice; choose fewer steps")
        return positions

    def _karras(self, positions: np.ndarray) -> list[Level]:
        """As many levels, spaced evenly in ratio ** (1/7) (Karras et al., arXiv 2206.00364, eq. 5 with rho = 7)."""
        ratio = self.ratio
        ends = (len(self) - 1, 0) if self.grid == "intervals" else (positions[0], positions[-1])
        top, bottom = (float(np.interp(end, np.arange(len(self)), ratio)) for end in ends)
        if not (math.isfinite(top) and bottom > 0):
            raise CartoucheError("Karras spacing asked of a ladder that starts at pure noise; choose karras=False")
        chosen = np.linspace(top ** (1 / 7), bottom ** (1 / 7), len(positions)) ** 7
        times = np.interp(np.log(chosen), np.log(ratio), self.time)
        times = times if self.grid == "between" else np.round(times)
        scale = np.hypot(1.0, chosen)
        return [Level(float(t), float(1 / n), float(s / n)) for t, s, n in zip(times, chosen, scale, strict=True)]


def linear(steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> Ladder:
    """Betas on a line (DDPM, section 4): alpha_bar of the last rung is 4.04e-5, so 0.6 % of the picture is left."""
    return from_betas(np.linspace(start, end, steps))


def scaled_linear(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Ladder:
    """Square roots of the betas on a line (Stable Diffusion): the last rung still shows 6.8 % of the picture."""
    return from_betas(np.linspace(start**0.5, end**0.5, steps) ** 2)


def cosine(steps: int = 1000) -> Ladder:
    """alpha_bar falls as a squared cosine, betas capped at 0.999 (Nichol and Dhariwal, arXiv 2102.09672, eq. 17)."""
    curve = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
    return from_betas(np.minimum(1 - curve[1:] / curve[:-1], 0.999))


def flow(steps: int = 1000, shift: float = 1.0) -> Ladder:
    """Straight lines from picture to noise: alpha = 1 - sigma (Liu et al., arXiv 2209.03003).

    shift > 1 spends more steps near the noise (Esser et al., arXiv 2403.03206, eq. 23). Times are T * sigma.
    """
    even = np.arange(1, steps + 1) / steps
    sigma = shift * even / (1 + (shift - 1) * even)
    return Ladder(alpha=1 - sigma, sigma=sigma, time=steps * sigma)


def from_betas(betas: np.ndarray) -> Ladder:
    """The ladder of the chain x' = sqrt(1 - beta) x + sqrt(beta) noise (DDPM, eq. 2): alpha_bar = prod(1 - beta)."""
    alpha_bar = np.cumprod(1 - np.asarray(betas, dtype=np.float64))
    return Ladder(alpha=np.sqrt(alpha_bar), sigma=np.sqrt(1 - alpha_bar))


def zero_terminal_snr(ladder: Ladder) -> Ladder:
    """Shift and stretch alpha: the last rung becomes noise alone, the first stays (Lin et al., 2305.08891, alg. 1).

    A net that predicts noise says nothing about the picture there: use it with v_prediction, sample or flow.
    """
    first, last = ladder.alpha[0], ladder.alpha[-1]
    if last == 0:
        return ladder
    if first == last:
        raise CartoucheError("a ladder on which noise never grows cannot end in noise alone; wanted betas above 0")
    alpha = (ladder.alpha - last) * first / (first - last)
    return replace(ladder, alpha=alpha, sigma=np.sqrt(1 - alpha**2))


def from_config(config: Mapping[str, Any], class_name: str | None = None) -> Ladder:
    """The ladder that a diffusers `scheduler_config.json` describes, its spacing and end included.

    class_name: read the file as if written for another scheduler class (as diffusers' own `from_config` does), None =
    its `_class_name`. Keys that are absent take that class's defaults. Raises CartoucheError for what cannot be
    honoured.
    """
    name = class_name or str(config.get("_class_name", ""))
    _refuse_unknown(config)
    rungs = int(_number(config, "num_train_timesteps", 1000, 1, MOST_RUNGS))
    straight = name.startswith("FlowMatch") or bool(config.get("use_flow_sigmas"))
    shift = _number(config, "shift", _number(config, "flow_shift", 1.0, 1e-3, 1e3), 1e-3, 1e3)
    ladder = flow(rungs, shift) if straight else _vp_ladder(config, rungs)
    if config.get("rescale_betas_zero_snr"):
        ladder = zero_terminal_snr(ladder)
    if not (ladder.sigma[0] > 0 and ladder.alpha[:-1].all()):
        raise CartoucheError("the scheduler's ladder has a rung without noise, or one but the last without a picture")
    grid = "flow" if config.get("use_flow_sigmas") else _grid(name)
    return replace(
        ladder,
        spacing=_choice("timestep_spacing", config.get("timestep_spacing", _spacing(name)), SPACINGS),
        offset=int(_number(config, "steps_offset", 0, -rungs, rungs)),
        karras=bool(config.get("use_karras_sigmas", False)),
        grid=grid,
        end=_end(config, name, ladder),
    )


def _vp_ladder(config: Mapping[str, Any], rungs: int) -> Ladder:
    """The variance-preserving ladder of a scheduler configuration, before any rescaling."""
    trained = config.get("trained_betas")
    if trained is not None:
        return from_betas(_betas(trained))
    start, end = _number(config, "beta_start", 1e-4, 0, 1), _number(config, "beta_end", 0.02, 0, 1)
    builders = {
        "linear": lambda: linear(rungs, start, end),
        "scaled_linear": lambda: scaled_linear(rungs, start, end),
        "squaredcos_cap_v2": lambda: cosine(rungs),
    }
    return builders[_choice("beta_schedule", config.get("beta_schedule", "linear"), tuple(builders))]()


def _betas(given: Any) -> np.ndarray:
    """The steps of a chain that a configuration lists one by one."""
    listed = isinstance(given, list | tuple) and 1 <= len(given) <= MOST_RUNGS
    if not (listed and all(isinstance(one, int | float) and 0 <= one <= 1 for one in given)):
        raise CartoucheError(f"trained_betas: wanted 1 to {MOST_RUNGS:,} numbers from 0 to 1, or null")
    return np.asarray(given, np.float64)


def _number(config: Mapping[str, Any], name: str, usual: float, least: float, most: float) -> float:
    """A number of the configuration, or the usual one. Raises CartoucheError for what is none, or out of bounds."""
    given = usual if config.get(name) is None else config[name]
    if isinstance(given, bool) or not isinstance(given, int | float) or not least <= given <= most:
        raise CartoucheError(f"the scheduler's {name}={given!r}; wanted a number from {least:g} to {most:g}")
    return given


def _end(config: Mapping[str, Any], name: str, ladder: Ladder) -> Level:
    """The level behind the last step: clean, or rung 0 where the folder says so (Stable Diffusion 1 does)."""
    if name.startswith(("DDIM", "PNDM")):
        stays = not config.get("set_alpha_to_one", name.startswith("DDIM"))
    else:
        final = config.get("final_sigmas_type", "zero")
        stays = _choice("final_sigmas_type", final, ("zero", "sigma_min")) == "sigma_min"
    return Level(float(ladder.time[0]), float(ladder.alpha[0]), float(ladder.sigma[0])) if stays else CLEAN


def _grid(name: str) -> str:
    """The rounding habit of a scheduler class."""
    if name.startswith(("Euler", "Heun", "FlowMatch")):
        return "between"
    return "intervals" if name.startswith("DPMSolverMultistep") else "rungs"


def _spacing(name: str) -> str:
    """The spacing a scheduler class takes when its file names none."""
    return "linspace" if name.startswith(("Euler", "Heun", "FlowMatch", "DPMSolver")) else "leading"


def _refuse_unknown(config: Mapping[str, Any]) -> None:
    """Stop rather than draw with another schedule than the folder asks for."""
    for key in ("use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_dynamic_shifting"):
        if config.get(key):
            raise CartoucheError(f"the scheduler asks for {key}, which is not known here; set it to false")


def _choice(what: str, given: str, wanted: tuple[str, ...]) -> str:
    """`given` if it is one of `wanted`, else an error that offers the nearest."""
    if given not in wanted:
        raise unknown(what, given, wanted)
    return given
