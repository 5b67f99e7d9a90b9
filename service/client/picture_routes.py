# Generated from asynchronous/picture_routes.py by python -m tests.repository.documents: change it there.
"""Routes of pictures, galleries, temperatures and curves, a method of the client each."""

from collections.abc import Iterator, Sequence
from urllib.parse import urlencode

from service.client import documents
from service.client.connection import ServiceConnection
from service.client.transport import LONG_S, path_part


class PictureRoutes:
    """Methods of the client about what pages show of datasets, caches, jobs and runs."""

    _connection: ServiceConnection

    def splits(self, dataset: str) -> list[documents.Split]:
        """List the decoded splits of a dataset (id, or fingerprint of a split), the pictures of each class counted."""
        page = self._connection.json("GET", f"/v1/datasets/{path_part(dataset)}/splits")
        return [documents.Split(split) for split in page["data"]]

    def pictures(
        self, dataset: str, *, split: str | None = None, label: int | None = None
    ) -> Iterator[documents.PictureRow]:
        """List the pictures of a split, of one class or of all: row, label, class_name, picture (a link)."""
        wanted = {"split": split, "class": None if label is None else str(label)}
        params = {name: value for name, value in wanted.items() if value is not None}
        return self._connection.pages(f"/v1/datasets/{path_part(dataset)}/pictures", documents.PictureRow, params)

    def picture(self, link: str) -> bytes:
        """Get the PNG behind a link of a document.

        Raises:
            ValueError: the link is no path of the API.
        """
        if not link.startswith("/v1/"):
            raise ValueError(f"{link!r} is no link to a picture: it has to begin with /v1/")
        response = self._connection.done("GET", link)
        return response.content

    def gallery(
        self,
        run_id: str,
        by: str,
        *,
        split: str = "test",
        limit: int = 24,
        view: int = 0,
        term: int = 0,
        epoch: int | None = None,
    ) -> documents.Gallery:
        """Get the rows of a split that a run is worth looking at for, with both networks' logits.

        Args:
            by: ``highest_temperature``, ``lowest_temperature``, ``disagreement`` or ``teacher_mistakes``.
            split: of the run's dataset.
            limit: rows.
            view: of the cache.
            term: of a method with several, from 0.
            epoch: that policies may read; None for the last that the run has trained.
        """
        params = {"by": by, "split": split, "limit": str(limit), "view": str(view), "term": str(term)}
        params |= {} if epoch is None else {"epoch": str(epoch)}
        path = f"/v1/runs/{path_part(run_id)}/gallery"
        return self._connection.typed("GET", path, documents.Gallery, params=params, timeout=LONG_S)

    def temperatures(self, job_id: str, *, kind: str = "paper", epoch: int | None = None) -> documents.JobTemperatures:
        """Get the temperatures of a job's methods and runs as histograms over common bins."""
        params = {"kind": kind} | ({} if epoch is None else {"epoch": str(epoch)})
        path = f"/v1/jobs/{path_part(job_id)}/temperatures"
        return self._connection.typed("GET", path, documents.JobTemperatures, params=params, timeout=LONG_S)

    def curves(self, job_id: str, *, after: int = 0, metrics: Sequence[str] = ()) -> documents.JobCurves:
        """Get the metrics of all runs of a job as columns, of epochs after ``last_id`` of an earlier answer."""
        query = urlencode([("after", after), *(("metric", name) for name in metrics)])
        return self._connection.typed("GET", f"/v1/jobs/{path_part(job_id)}/curves?{query}", documents.JobCurves)

    def cache_statistics(self, key: str, *, view: int = 0, bins: int = 32) -> documents.CacheStatistics:
        """Get the histograms of a cache's statistics on one view."""
        params = {"view": str(view), "bins": str(bins)}
        path = f"/v1/caches/{path_part(key)}/statistics"
        return self._connection.typed("GET", path, documents.CacheStatistics, params=params, timeout=LONG_S)
