"""``retort doctor``: looks at all that the service needs, and says what to do.

A check is a function of the settings that returns a ``Finding``. All run side by side, and each has a time limit, for
what is looked at may hang: a dead network file system, a database behind a firewall, a driver. Nothing is changed but
for a file that is written and removed again. The engine's packages are tried in processes of their own, and need not
be there.
"""

from collections.abc import Mapping

from service.doctor import installation, machine, packages
from service.doctor.finding import Check, Finding, run_checks
from service.settings import Settings

CHECKS = (
    Check("packages", packages.check_packages),
    Check("data dir", machine.check_data_dir),
    Check("disk", machine.check_disk),
    Check("temp dir", machine.check_temp),
    Check("shared memory", machine.check_shared_memory),
    Check("memory", machine.check_memory),
    Check("cores", machine.check_cores),
    Check("open files", machine.check_files),
    Check("database", installation.check_database),
    Check("migrations", installation.check_migrations),
    Check("files", installation.check_files),
    Check("data root", installation.check_data_root),
    Check("keys", installation.check_keys),
    Check("port", installation.check_port),
    Check("engine", installation.check_engine),
    Check("ray folder", packages.check_ray_folder),
    Check("ray", packages.check_ray, packages.PROBE_S),
    Check("gpu", packages.check_gpu),
    Check("torch", packages.check_torch, packages.PROBE_S),
    Check("onnxruntime", packages.check_onnxruntime, packages.PROBE_S),
)


def diagnose(settings: Settings) -> Mapping[str, Finding]:
    """Diagnose: the finding of every check, by its name."""
    return run_checks(CHECKS, settings)
