"""What the user's environment has and lacks for VBench-I2V, dimension by dimension, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aad1.errors import UserError
from aad1.evaluation.vbench.dimensions import COMMON, DISTRIBUTIONS, PACKAGES, WANTED, Dimension, Weights
from aad1.evaluation.vbench.environment import Environment, version_trouble
from aad1.evaluation.vbench.names import Folder
from aad1.evaluation.vbench.run import Request, call, found_at


@dataclass(frozen=True)
class Ailment:
    """One thing that a dimension lacks, and what to do about it."""

    what: str
    remedy: str


@dataclass(frozen=True)
class Finding:
    """One dimension and what keeps it from running; nothing, if it is ready."""

    dimension: str
    ailments: tuple[Ailment, ...]

    @property
    def ready(self) -> bool:
        """Whether it can run."""
        return not self.ailments


def examine(request: Request, dimensions: Sequence[Dimension], online: bool = False) -> list[Finding]:
    """What each dimension lacks; online: VBench may download weights, so that missing ones do not count."""
    return [Finding(d.name, tuple(_ailments(request, d, online))) for d in dimensions]


def _ailments(request: Request, dimension: Dimension, online: bool) -> list[Ailment]:
    environment, found = request.environment, list[Ailment]()
    for name in dict.fromkeys((*COMMON, *dimension.packages)):
        package = environment.packages[name]
        if package.problem:
            found.append(Ailment(f"{name}: {package.problem}", remedy(environment.python, name, package.problem)))
    if not online:
        lost = [w for w in dimension.weights if found_at(w, environment.places) is None]
        found += [Ailment(f"weights {w.name}", _place(w, environment)) for w in lost]
    try:
        call(request, dimension)
    except UserError as error:
        found.append(Ailment(str(error), "see above" if "cannot be imported" in str(error) and found else ""))
    return found


def remedy(python: str, name: str, problem: str) -> str:
    """What to install for a package that cannot be imported."""
    wanted = f"{DISTRIBUTIONS.get(name, name)}{WANTED.get(name, '')}"
    if "pkg_resources" in problem:
        wanted = f"setuptools{WANTED['setuptools']}"
    return f"{python} -m pip install '{wanted}'"


def _place(weights: Weights, environment: Environment) -> str:
    first = " and ".join(file.format(**environment.places) for file in weights.places[0])
    return f"put it at {first}, or let VBench download it (--online)"


def describe(environment: Environment, videos: Folder | None) -> list[str]:
    """What is there, in lines: which VBench, which Python, versions outside what VBench knows, the videos."""
    at = {name: p.version for name, p in environment.packages.items()}
    lines = [
        f"VBench: {environment.source}",
        f"Python {environment.python_version} at {environment.python}, on {environment.device}",
        "packages: " + ", ".join(f"{name} {at[name] or 'missing'}" for name in PACKAGES),
        *(f"may fail or give other numbers: {t}" for name, v in at.items() if (t := version_trouble(name, v))),
    ]
    if videos is not None:
        kind = "segments" if videos.segments else "videos"
        lines.append(f"{kind}: {len(videos.videos)} in {videos.path}")
        lines += [f"  {line}" for line in (*videos.broken, *videos.problems)]
    return lines


def table(findings: Sequence[Finding]) -> list[str]:
    """One line a dimension, and below it what it lacks."""
    width = max(len(f.dimension) for f in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.dimension:{width}}  {'ready' if finding.ready else 'lacks'}")
        for ailment in finding.ailments:
            lines.append(f"{'':{width}}    {ailment.what}" + (f"  ->  {ailment.remedy}" if ailment.remedy else ""))
    return lines
