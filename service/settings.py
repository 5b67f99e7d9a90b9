"""Settings of the processes: API, engine, CLI. One frozen model, read from ``RETORT_*``, units in the names.

What a *job* wants is no setting; it stands in the job's own JSON (``workers.config.job``).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from workers.texts import nearest_name

MiB = 1 << 20
GiB = 1 << 30

SizeBytes = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]
Days = Annotated[float, Field(ge=0, allow_inf_nan=False)]

# What Python's sqlite3 takes beside the file's name; with ``uri`` SQLite itself takes more.
_SQLITE_PARAMETERS = {"timeout", "detect_types", "isolation_level", "check_same_thread", "cached_statements"}

PREFIX = "RETORT_"
# What others than ``Settings`` read: the command line where the service is, and ``workers.cluster.head_folder`` whose
# Ray it is.
OTHER_VARIABLES = frozenset({"URL", "RAY_FOLDER"})


class Settings(BaseSettings):
    """Settings of the processes of a service: paths and limits.

    Attributes:
        data_dir: everything that the service writes lies below it.
        data_root: datasets that jobs name lie below it, and nothing outside it can be named.
        database_url: SQLAlchemy URL, in which ``?`` and ``%`` of a file's name are ``%3F`` and ``%25``; None is SQLite
            inside ``data_dir``.
        host, port: where the API listens; a host that is not loopback needs an API key.
        api_key_file: its first line is a key with scope admin, beside those that ``retort keys`` makes.
        forwarded_allow_ips: addresses or networks of proxies, separated by commas, whose ``X-Forwarded-For`` names the
            caller; None believes nobody.
        teacher_max_bytes: the largest teacher that is accepted, its weights included. One of 2 GiB or more has to come
            with its weights beside the ONNX file.
        logits_max_bytes: the largest file of logits that is imported, and the most bytes of its rows as float32.
        student_file_max_bytes: the largest file of a student's weights that is accepted.
        body_max_bytes: the largest body of every other request.
        caches_max_bytes: of all caches together; older ones are evicted for a job's new ones. 0 is no quota.
        jobs_max_age_days, jobs_max_count, jobs_max_bytes: jobs that ended longer ago, beyond so many that have ended,
            or while the files of all jobs are larger, are deleted, the oldest first; see
            ``service.db.deletions.retention``. 0 keeps all.
        decoded_max_bytes: of all decoded datasets together; the least recently used go that no live job needs. 0 is no
            quota.
        events_max_age_days: events of jobs that have ended longer ago are compacted. 0 leaves them.
        disk_floor_bytes: with less than this free, uploads and jobs are refused, and the engine begins nothing new.
        key_live_jobs_max: jobs of one API key (or of all callers without keys) that have not ended.
        job_runs_max, job_epochs_max: runs of one job, and epochs of each.
        requests_per_s: of one key, or of one address without keys, in the long run; 0 is no limit.
        requests_burst: how many of them may come at once.
        open_requests_max, streams_max, uploads_max: requests, and of them event streams and uploads, that one key or
            address may have open. None is a quarter of ``connections_max``.
        connections_max: of all callers together; None is 10,000. It is never more than there are files for, see
            ``service.api.connections``.
        address_connections_max: of one address (a /64 of IPv6), but for the proxies of ``forwarded_allow_ips``; None is
            half of ``connections_max``.
        head_timeout_s: a connection that has brought no whole head of a request in so long is closed.
        body_stall_s: a body that brings no byte in so long is given up; one that is no upload, also when it falls by so
            much behind 16 KiB/s.
        upload_stall_s: an upload that brings less than a MiB in so long is given up.
        send_stall_s: a connection whose client takes less than 64 KiB of what waits for it in so long is closed.
        inspect_timeout_s: how long the subprocess that inspects an ONNX file may take, and then the one that tries it;
            the latter, and those that put files together, have another second for each 64 MiB.
        import_timeout_s: how long importing logits may take once they have come, decoding the dataset included.
        event_poll_s: how often an event stream looks for new rows.
        keep_alive_s: after so long without an event a stream sends a comment.
        heartbeat_max_age_s: an engine that has been silent for longer counts as gone.
        cpus, gpus: what the engine may use; None is all that it finds.
        run_cpus: CPU cores of one process of a run; None is one, and on GPUs the cores divided among the runs.
        gpu_share: the part of a GPU that one run takes (0.25 puts four runs on each); None chooses it from the
            machine, see ``service.engine.capacity``.
        confine_on_gpu: teachers on GPUs run within a filter of system calls and file-system rules, where CUDA works
            within them. False leaves those out, for a driver that does not take them: with teachers that you trust.
        trackers: addresses of experiment trackers, separated by spaces (``mlflow:http://127.0.0.1:5000``); ``retort
            serve`` follows all jobs for each in a process of its own, see ``service.trackers``. None tells nobody.
        trackers_project: the trackers' project or experiment.
        trackers_stall_s: a call of a tracker that takes so long, such as the upload of one file, ends the process that
            follows for it, and the next one makes the call again.
        page: whether the API serves the web page, at ``/``; it needs the extra ``page``.
        webhook_hosts: hosts that webhooks may be sent to, separated by spaces: ``hooks.example.org`` is
            ``https://hooks.example.org:443``, and ``http://10.0.0.5:8000`` that alone; None refuses webhooks.
        webhook_networks: networks, separated by spaces, of addresses that are not public and that these hosts may have
            even so (``10.0.0.0/8``); an address among the hosts needs none. None allows public addresses alone.
        webhook_secret_file: its lines are the secrets that webhooks are signed with; None is ``webhook_secret`` in
            ``data_dir``, which is made when it is needed first.
        checkpoint_s: a run writes a checkpoint after each epoch, and within one after so many seconds.
    """

    # An empty variable is none: Compose passes on what is not set as empty.
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid", hide_input_in_errors=True
    )

    data_dir: Path = Path("retort-data")
    data_root: Path = Path("data")
    database_url: str | None = None
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8765
    api_key_file: Path | None = None
    forwarded_allow_ips: str | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    teacher_max_bytes: SizeBytes = GiB
    logits_max_bytes: SizeBytes = 4 * GiB
    student_file_max_bytes: SizeBytes = GiB
    body_max_bytes: SizeBytes = MiB
    caches_max_bytes: SizeBytes = 0
    jobs_max_age_days: Days = 0.0
    jobs_max_count: Annotated[int, Field(ge=0)] = 0
    jobs_max_bytes: SizeBytes = 0
    decoded_max_bytes: SizeBytes = 0
    events_max_age_days: Days = 0.0
    disk_floor_bytes: SizeBytes = GiB
    key_live_jobs_max: Count = 1000
    job_runs_max: Count = 1000
    job_epochs_max: Count = 10_000
    requests_per_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 200.0
    requests_burst: Count = 1000
    open_requests_max: Count | None = None
    streams_max: Count = 100
    uploads_max: Count = 4
    connections_max: Count | None = None
    address_connections_max: Count | None = None

    head_timeout_s: Seconds = 20.0
    body_stall_s: Seconds = 20.0
    send_stall_s: Seconds = 60.0
    upload_stall_s: Seconds = 60.0
    inspect_timeout_s: Seconds = 60.0
    import_timeout_s: Seconds = 3600.0
    event_poll_s: Seconds = 0.3
    keep_alive_s: Seconds = 15.0
    heartbeat_max_age_s: Seconds = 30.0

    cpus: Annotated[float, Field(gt=0)] | None = None
    gpus: Annotated[int, Field(ge=0)] | None = None
    run_cpus: Annotated[float, Field(gt=0)] | None = None
    gpu_share: Annotated[float, Field(ge=0.01, le=1)] | None = None
    confine_on_gpu: bool = True
    trackers: str | None = None
    trackers_project: Annotated[str, Field(min_length=1, max_length=128)] = "retort"
    trackers_stall_s: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 300.0
    page: bool = True
    webhook_hosts: str | None = None
    webhook_networks: str | None = None
    webhook_secret_file: Path | None = None
    checkpoint_s: Seconds = 60.0

    @field_validator("data_dir")
    @classmethod
    def _check_data_dir(cls, data_dir: Path) -> Path:
        # Ray and the database take names as UTF-8; what is none has surrogates here.
        if re.search("[\ud800-\udfff]", str(data_dir.resolve())):
            raise ValueError(f"the folder's name {str(data_dir)!r} is not valid UTF-8: use another folder")
        return data_dir

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, given: str | None) -> str | None:
        """Refuse an SQLite file whose name would end at its own ``?``: another file would be made and used."""
        try:
            url = None if given is None else make_url(given)
        except ArgumentError:
            return given  # whoever connects says what is wrong with it
        if url is None or url.get_backend_name() != "sqlite" or "uri" in url.query:
            return given
        after = (given or "").partition("?")[2]
        if after and not (url.query and url.query.keys() <= _SQLITE_PARAMETERS):
            raise ValueError(
                f"{after!r} after the '?' is no parameter of SQLite's ({', '.join(sorted(_SQLITE_PARAMETERS))}), and "
                f"the file would be {url.database!r}: write a '?' of a file's name as %3F"
            )
        return given

    @property
    def database(self) -> str:
        """The URL of the database in use."""
        if self.database_url:
            return self.database_url
        file = str(self.data_dir.resolve() / "retort.sqlite3")
        return URL.create("sqlite", database=file).render_as_string(hide_password=False)

    @property
    def teachers_dir(self) -> Path:
        """``<sha256>.onnx``, one file per teacher; one of 2 GiB or more is a tar archive, see ``onnx.large_file``."""
        return self.data_dir.resolve() / "teachers"

    @property
    def student_files_dir(self) -> Path:
        """``<sha256>.safetensors``, one file per uploaded file of a student."""
        return self.data_dir.resolve() / "student-files"

    @property
    def smoke_dir(self) -> Path:
        """Markers of the teachers that have passed their smoke run."""
        return self.data_dir.resolve() / "smoke"

    @property
    def caches_dir(self) -> Path:
        """One Zarr group per cache, by key."""
        return self.data_dir.resolve() / "caches"

    @property
    def datasets_dir(self) -> Path:
        """Decoded datasets, by fingerprint."""
        return self.data_dir.resolve() / "datasets"

    @property
    def trackers_dir(self) -> Path:
        """Position of each tracker, and what its package keeps on this disk."""
        return self.data_dir.resolve() / "trackers"

    @property
    def page_secret_path(self) -> Path:
        """Secret that signs the sessions of the page."""
        return self.data_dir.resolve() / "page_secret"

    @property
    def webhook_secret_path(self) -> Path:
        """The file with the secrets of webhooks."""
        return self.webhook_secret_file or self.data_dir.resolve() / "webhook_secret"

    @property
    def exports_dir(self) -> Path:
        """Caches that were exported within the last hour."""
        return self.data_dir.resolve() / "exports"

    @property
    def jobs_dir(self) -> Path:
        """``<job>/<run>/a<attempt>/``: what the attempts of runs write."""
        return self.data_dir.resolve() / "jobs"

    def teacher_path(self, sha256: str) -> Path:
        """Path of the teacher with this digest (64 hex digits)."""
        return self.teachers_dir / f"{sha256}.onnx"

    def student_file_path(self, sha256: str) -> Path:
        """Path of the uploaded file of a student with this digest (64 hex digits)."""
        return self.student_files_dir / f"{sha256}.safetensors"

    @property
    def folder_names(self) -> dict[str, str]:
        """Names that clients read in place of the server's absolute paths, by path, see ``texts.without_folders``."""
        names = {self.data_dir.resolve(): "the data directory", self.data_root.resolve(): "the data root"}
        # One may lie in the other.
        return {str(path): names[path] for path in sorted(names, key=lambda path: -len(path.parts))}

    def make_folders(self) -> None:
        """Create the folders below ``data_dir``; existing ones are left alone."""
        for folder in (
            *(self.teachers_dir, self.student_files_dir),
            *(self.caches_dir, self.datasets_dir, self.jobs_dir),
        ):
            folder.mkdir(parents=True, exist_ok=True)


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """A sentence for each ``RETORT_*`` variable that nothing reads, with the name that is probably meant.

    They are no errors: a later version may know them.
    """
    known = sorted({name.upper() for name in Settings.model_fields} | OTHER_VARIABLES)
    sentences = []
    for name in sorted(environment):
        # As pydantic reads them: in either case.
        rest = name.upper().removeprefix(PREFIX)
        if rest == name.upper() or rest in known:
            continue
        nearest = nearest_name(rest, known)
        advice = f"did you mean {PREFIX}{nearest}?" if nearest else "`service/settings.py` lists the others"
        sentences.append(f"the variable {name} is none of Retort's and has no effect: {advice}")
    return sentences
