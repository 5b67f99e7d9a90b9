"""Build the fake CUDA libraries from ``csrc`` and the headers of the CUDA packages that torch brings."""

import fcntl
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

SOURCES = Path(__file__).with_name("csrc")
RUNTIME, DRIVER = "libfakecuda.so", "libcuda.so.1"

_SITE = Path(sysconfig.get_paths()["purelib"])
_HEADERS = [
    # Triton's, for the compiler's own headers that the others include; the order decides.
    _SITE / folder / "include"
    for folder in ("nvidia/cu13", "nvidia/cudnn", "triton/backends/nvidia")
]
_REPLACED = [
    _SITE / library
    for library in (
        "nvidia/cu13/lib/libcudart.so.13",
        "nvidia/cu13/lib/libcublas.so.13",
        "nvidia/cu13/lib/libcublasLt.so.13",
        "nvidia/cudnn/lib/libcudnn.so.9",
    )
]
_RUNTIME_SOURCES = ("counters", "device", "memory", "streams", "kernels", "libraries")
_RUNTIME_NAME = re.compile(r"(__cuda|cuda|cublas|cudnn)[A-Z]")

# Functions of cuBLAS and cuDNN that stand for work on the device; each takes a handle first.
_WORK = re.compile(
    r"cublas.*(Gemm|gemm|Gemv|gemv|dot|Matmul$)"
    r"|cudnn(Convolution(Forward|Backward|Bias)|BatchNormalization(Forward|Backward)|Pooling(Forward|Backward)|BackendExecute)"
)
_NOT_WORK = re.compile("Create|Desc|Workspace|Set|Get|Algo")
# Functions of the runtime whose success would be a lie: work that is not done or counted, memory that is not there.
_REFUSED = re.compile(
    r"cuda(Malloc|Memcpy|Memset|Launch|GraphAdd|GraphConditional|GraphExec|Ipc|Import|Library|\w*ToGraph)"
)

_COMPILE = ["gcc", "-std=gnu11", "-O1", "-fPIC", "-fvisibility=hidden"]
# What CUDA's headers declare otherwise; another compiler's other warnings are no reason to do without the tests.
_COMPILE += [f"-Werror={mistake}" for mistake in ("implicit-function-declaration", "incompatible-pointer-types")]


def why_not() -> str | None:
    """What the fake cannot be built for lack of, or None."""
    missing = [program for program in ("gcc", "nm") if shutil.which(program) is None]
    missing += [str(path.relative_to(_SITE)) for path in [*_HEADERS, *_REPLACED] if not path.exists()]
    return f"the fake CUDA device needs {', '.join(missing)}" if missing else None


def build(folder: Path) -> Path:
    """Build the libraries into ``folder``, unless another process has done so; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # The driver is made last.
        if not (folder / DRIVER).exists():
            _build_runtime(folder)
            _build_driver(folder)
    return folder


def _build_runtime(folder: Path) -> None:
    objects = [_compile(SOURCES / f"{name}.c", folder) for name in _RUNTIME_SOURCES]
    names = {name for library in _REPLACED for name in _symbols(library, "--dynamic") if _RUNTIME_NAME.match(name)}
    lines = [
        "struct Tally { const char *name; long launched, captured; _Bool is_listed; };",
        "int fake_cuda_library_call(struct Tally *tally, void *handle);",
        "int fake_cuda_other_call(const char *name);",
    ]
    for name in sorted(names.difference(*map(_symbols, objects))):
        lines.append(f'__attribute__((visibility("default"))) int {name}(void *handle) {{ {_body(name)} }}')
    rest = folder / "runtime_rest.c"
    rest.write_text("\n".join(lines) + "\n")
    _link(folder / RUNTIME, [*objects, _compile(rest, folder)])


def _body(name: str) -> str:
    if _WORK.match(name) and not _NOT_WORK.search(name):
        return f'static struct Tally tally = {{.name = "{name}"}}; return fake_cuda_library_call(&tally, handle);'
    if _REFUSED.match(name):
        return "return 801; /* cudaErrorNotSupported */"
    return f'return fake_cuda_other_call("{name}");'


def _build_driver(folder: Path) -> None:
    own = _compile(SOURCES / "driver.c", folder)
    header = (_HEADERS[0] / "cuda.h").read_text(errors="replace")
    names = set(re.findall(r"\b(cu[A-Z]\w+)\s*\(", header))
    names |= {f"{name}{version}" for name in names for version in ("_v2", "_v3")}
    lines = [
        f'__attribute__((visibility("default"))) int {name}(void) {{ return 0; }}' for name in names - _symbols(own)
    ]
    rest = folder / "driver_rest.c"
    rest.write_text("\n".join(sorted(lines)) + "\n")
    _link(folder / DRIVER, [own, _compile(rest, folder)])


def _symbols(library: Path, *options: str) -> set[str]:
    lines = _run(["nm", *options, "--defined-only", str(library)]).splitlines()
    return {line.split()[-1].partition("@")[0] for line in lines if line}


def _compile(source: Path, folder: Path) -> Path:
    target = folder / f"{source.stem}.o"
    include = [f"-I{path}" for path in _HEADERS]
    _run([*_COMPILE, *include, "-c", str(source), "-o", str(target)])
    return target


def _link(target: Path, objects: list[Path]) -> None:
    partial = target.with_suffix(".partial")
    _run(["gcc", "-shared", *map(str, objects), "-o", str(partial), "-lpthread", "-ldl"])
    partial.rename(target)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr}")
    return done.stdout
