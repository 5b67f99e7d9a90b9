"""Checks of the packages: whether Python, packages, Ray and GPUs work. Nothing heavy is imported here."""

import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

from service.doctor.finding import Finding
from service.gpus import probe_command
from service.settings import Settings
from workers.cluster.head_folder import folder_fault, machine_folder
from workers.cluster.ray_head import describe, visible_gpus

PROBE_S = 100.0
_PYTHON_MIN = Version("3.11")
_ABSENT = "not installed here: the engine needs it"
_INSTALL = "where the engine is to run: pip install '.[engine]' in a checkout, or `make` for the pinned versions"


def check_packages(settings: Settings) -> Finding:
    """Python and every package, against what this version asks for."""
    python = Version(platform.python_version())
    if python < _PYTHON_MIN:
        return Finding("fail", f"Python {python}, {_PYTHON_MIN} is the oldest that works", "install a newer Python")
    needed, wrong = [*_requirements(""), *_requirements("server")], []
    for requirement in needed:
        installed = _installed(requirement.name)
        if installed is None or not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} {installed or 'is missing'} ({requirement.specifier})")
    # What is not there of these is the other checks' affair.
    for requirement in (*_requirements("postgres"), *_requirements("page"), *_requirements("engine")):
        installed = _installed(requirement.name)
        if installed is not None and not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} {installed} ({requirement.specifier})")
    found = f"Python {python}, {len(needed)} packages"
    if wrong:
        return Finding("fail", f"{found}, of these do not fit: {', '.join(wrong)}", "install from constraints.txt")
    return Finding("ok", found)


def check_ray(settings: Settings) -> Finding:
    """Check that Ray can be imported, and whether one runs."""
    if find_spec("ray") is None:
        return Finding("warn", _ABSENT, _INSTALL)
    probed = _probe("ray")
    address = describe(settings.data_dir)
    answers = f"a head answers at {address}" if address else "no head runs now, the engine starts one"
    return probed if isinstance(probed, Finding) else Finding("ok", f"{probed['found']}; {answers}")


def check_ray_folder(settings: Settings) -> Finding:
    """Check that the folder that Ray works in is this user's alone."""
    folder = machine_folder(settings.data_dir)
    if (reason := folder_fault(folder)) is not None:
        return Finding("fail", f"{reason}: the engine does not start Ray there", f"remove it (`rm -r {folder}`)")
    if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
        return Finding("fail", f"{folder} cannot be written", f"chmod 700 {folder}")
    return Finding("ok", f"{folder} belongs to this user alone" if folder.exists() else f"{folder} is not there yet")


def check_gpu(settings: Settings) -> Finding:
    """Check the driver, and which of its GPUs the engine uses."""
    gpus, visible, wanted = _gpus(), visible_gpus(), settings.gpus
    found = "; ".join(gpus) or "no NVIDIA GPU, everything runs on the CPU"
    if wanted is not None and len(gpus) < wanted:
        advice = "set RETORT_GPUS to what there is, or mend the driver (in a container: `--gpus all`)"
        return Finding("fail", f"RETORT_GPUS is {wanted}, the driver shows {len(gpus)}", advice)
    if gpus and wanted == 0:
        found += "; RETORT_GPUS is 0, so everything runs on the CPU"
    elif gpus and visible is not None:
        found += f"; CUDA_VISIBLE_DEVICES leaves {len(visible)}: {','.join(visible) or 'none'}"
        if wanted is not None and len(visible) < wanted:
            advice = "set RETORT_GPUS to as many as CUDA_VISIBLE_DEVICES names, or unset one of them"
            return Finding("fail", f"{found}; RETORT_GPUS is {wanted}, so the engine does not start", advice)
    return Finding("ok", found)


def check_torch(settings: Settings) -> Finding:
    """Check that students can be trained, and on every GPU."""
    advice = "update the driver to what this torch needs, or install the torch that is built for this driver's CUDA"
    return _on_gpus(settings, "torch", advice, on_all=True)


def check_onnxruntime(settings: Settings) -> Finding:
    """Check that teachers can be run, and on a GPU if there is one."""
    advice = "install onnxruntime-gpu with the extras cuda and cudnn (not beside onnxruntime), or update the driver"
    return _on_gpus(settings, "onnxruntime", advice, on_all=False)


def _on_gpus(settings: Settings, module: str, advice: str, *, on_all: bool) -> Finding:
    if find_spec(module) is None:
        return Finding("warn", _ABSENT, _INSTALL)
    probed = _probe(module)
    if isinstance(probed, Finding):
        return probed
    shown = _gpus()
    wanted = _promised(settings, len(shown))
    if probed["gpus"] < (wanted if on_all else min(wanted, 1)):
        promise = f"the driver shows {'; '.join(shown)}" if settings.gpus is None else f"RETORT_GPUS is {wanted}"
        why = f": {probed['failure']}" if probed.get("failure") else ""
        return Finding("fail", f"{probed['found']}{why}; {promise}", advice)
    return Finding("ok", probed["found"])


def _promised(settings: Settings, shown: int) -> int:
    """GPUs that an engine here would hand out, of those that the driver shows."""
    if settings.gpus is not None:
        return settings.gpus
    visible = visible_gpus()
    return shown if visible is None else min(shown, len(visible))


def _probe(what: str) -> dict[str, Any] | Finding:
    """Run ``workers.tools.probe``; its finding, or its failure."""
    line, environment = probe_command(what)
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            out, err = process.communicate(timeout=PROBE_S - 5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            found = f"trying it took longer than {PROBE_S - 5:g} s"
            return Finding("fail", found, f"see where `{' '.join(line[1:])}` hangs: a driver, perhaps")
    if process.returncode:
        ended = f"signal {-process.returncode}" if process.returncode < 0 else f"exit status {process.returncode}"
        said = next((text for text in reversed(err.splitlines()) if text.strip()), ended)
        return Finding("fail", f"it does not work: {said.strip()}", f"`{' '.join(line[1:])}` shows more")
    told: dict[str, Any] = json.loads(out.splitlines()[-1])
    return told


def _gpus() -> Sequence[str]:
    """Name, driver and memory of every GPU that the driver shows."""
    if shutil.which("nvidia-smi") is None:
        return ()
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=15)
    return tuple(line.strip() for line in done.stdout.splitlines()) if done.returncode == 0 else ()


def _requirements(extra: str) -> Iterator[Requirement]:
    """Requirements of Retort on this machine: those without an extra, or those that one adds."""
    for text in importlib.metadata.requires("retort") or []:
        requirement = Requirement(text)
        marker = requirement.marker
        plain = marker is None or marker.evaluate({"extra": ""})
        # An extra names another one as an extra of Retort itself.
        if requirement.name != "retort" and (
            plain if not extra else (not plain and marker is not None and marker.evaluate({"extra": extra}))
        ):
            yield requirement


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
