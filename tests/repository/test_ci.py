"""CI script: the trackers' Python is made where it is missing, and again when pyproject.toml has changed."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Installs nothing: it leaves the files that the real one would.
PYTHON = """#!/bin/sh
case "$2" in
venv) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
pip) echo installed >>../installs && touch "$(dirname "$0")/retort" ;;
esac
"""


def test_ci_installs_trackers_again_once_pyproject_is_newer(tmp_path: Path) -> None:
    commands, project = tmp_path / "commands", tmp_path / "project"
    commands.mkdir()
    (project / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci/run", project / ".ci/run")
    for name, script in {"python": PYTHON, "make": "#!/bin/sh\n", "npm": "#!/bin/sh\n", "id": "#!/bin/sh\n"}.items():
        (commands / name).write_text(script)
        (commands / name).chmod(0o755)
    environment = {"PATH": f"{commands}:{os.environ['PATH']}", "PYTHON": str(commands / "python")}

    def installs_after(age_s: float) -> int:
        """How often the trackers have been installed, after a run with a pyproject.toml that is so much older."""
        retort = project / ".venv/trackers/bin/retort"
        (project / "pyproject.toml").touch()
        if retort.exists():
            changed_at = retort.stat().st_mtime - age_s
            os.utime(project / "pyproject.toml", (changed_at, changed_at))
        subprocess.run([project / ".ci/run"], env=environment, check=True, timeout=60)
        return len((tmp_path / "installs").read_text().splitlines())

    assert [installs_after(age_s) for age_s in (0.0, 10.0, -10.0)] == [1, 1, 2]
