"""Pictures of datasets and views of caches over HTTP: the pixels that were decoded, and nothing beyond the rows."""

import io
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from service.db.ids import new_id
from service.db.models import DatasetRecord
from store import CacheWriter
from tests.support.service_helpers import Api
from tests.support.store_cases import make_spec
from workers.augmentation.apply import apply, make_views
from workers.augmentation.draw import draw, pictures_of
from workers.config.cached_augmentation import describe_augmentation
from workers.config.mixing import Mixup
from workers.config.operations import RandAugment, SecondView
from workers.config.teacher import Preprocessing
from workers.config.views import CropFlip, ResizedCrop
from workers.data.kinds.digits import DigitsDataset
from workers.data.kinds.folder import FolderDataset
from workers.data.preparation.holdout_spec import Holdout
from workers.data.preparation.prepare import prepare
from workers.data.preparation.prepared import Dataset
from workers.teacher.cached_views import CachedViews
from workers.teacher.preprocess import fit_views

pytest_plugins = ["tests.support.service_fixtures"]


def decode(api: Api, spec: DigitsDataset | FolderDataset, split: str = "test") -> Dataset:
    """A split as a job would decode it."""
    return prepare(spec, split, api.settings.data_root, api.settings.datasets_dir)  # type: ignore[arg-type]


def register(api: Api, spec: DigitsDataset | FolderDataset) -> str:
    """Id of a dataset under a new name."""
    row = DatasetRecord(id=new_id("ds"), name=new_id("ds"), spec=spec.model_dump(mode="json"), classes=10)
    return api.queries.add_dataset(row)[0].id


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content), formats=["PNG"]))


def test_pictures_are_listed_by_class_with_links_to_the_pixels_that_were_decoded(shared_api: Api) -> None:
    client, spec = shared_api.client, DigitsDataset(train_per_class=3)
    test, dataset = decode(shared_api, spec), register(shared_api, spec)
    path = f"/v1/datasets/{dataset}"
    splits = client.get(f"{path}/splits").json()["data"]
    assert [(split["split"], split["fingerprint"]) for split in splits] == [("test", test.fingerprint)]
    assert [found["samples"] for found in splits[0]["classes"]] == np.bincount(test.labels_N).tolist()
    rows, after = [], None
    while True:
        query = {"class": "3", "limit": "20", "split": "test"} | ({} if after is None else {"after": after})
        page = client.get(f"{path}/pictures", params=query).json()
        rows += page["data"]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert [row["row"] for row in rows] == np.flatnonzero(test.labels_N == 3).tolist()
    assert {(row["label"], row["class_name"]) for row in rows} == {(3, "3")}
    answer = client.get(rows[-1]["picture"])
    assert answer.headers["content-type"] == "image/png"
    np.testing.assert_array_equal(pixels(answer.content), test.take(slice(None))[rows[-1]["row"], ..., 0])
    # By its content it may be kept for good; by an id only as long as its ETag holds.
    assert "immutable" in answer.headers["cache-control"]
    by_id = client.get(f"{path}/pictures/test/{rows[-1]['row']}.png", headers={"If-None-Match": answer.headers["etag"]})
    assert (by_id.status_code, by_id.headers["cache-control"]) == (304, "private, no-cache")


def test_pictures_beyond_the_split_or_of_nothing_decoded_are_refused(shared_api: Api) -> None:
    client, test = shared_api.client, decode(shared_api, DigitsDataset())
    path = f"/v1/datasets/{test.fingerprint}/pictures"
    assert client.get(f"{path}/test/354.png").status_code == 200
    assert "there are 355" in client.get(f"{path}/test/355.png").json()["detail"]
    for wrong in (f"{path}/test/355.png", f"{path}/train/0.png", f"/v1/datasets/{'0' * 64}/pictures/test/0.png"):
        assert client.get(wrong).status_code == 404, wrong
    assert client.get(f"{path}/test/-1.png").status_code == 422
    other = register(shared_api, FolderDataset(path="nowhere"))
    refused = client.get(f"/v1/datasets/{other}/pictures")
    assert (refused.status_code, "has not been decoded yet" in refused.json()["detail"]) == (409, True)


def test_pictures_that_stay_files_are_decoded_and_shrunk(shared_api: Api) -> None:
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = shared_api.settings.data_root / "large" / split / name
            folder.mkdir(parents=True)
            Image.fromarray(generator.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(folder / "1.jpg")
    test = decode(shared_api, FolderDataset(path="large", storage="files"))
    path = f"/v1/datasets/{test.fingerprint}/pictures/test/1.png"
    np.testing.assert_array_equal(pixels(shared_api.client.get(path).content), test.take(slice(1, 2))[0])
    assert pixels(shared_api.client.get(path, params={"side": "30"}).content).shape == (20, 30, 3)
    (shared_api.settings.data_root / "large/test/dog/1.jpg").write_bytes(b"other")
    changed = shared_api.client.get(path)
    assert (changed.status_code, changed.json()["type"]) == (422, "urn:retort:problem:invalid-dataset")


def test_pictures_without_pillow_name_the_extra(shared_api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    test = decode(shared_api, DigitsDataset())
    monkeypatch.setitem(sys.modules, "PIL", None)
    refused = shared_api.client.get(f"/v1/datasets/{test.fingerprint}/pictures/test/0.png")
    assert (refused.status_code, refused.json()["type"]) == (501, "urn:retort:problem:not-installed")
    assert "pip install 'retort[page]'" in refused.json()["detail"]


@pytest.mark.parametrize("recipe", [CropFlip(pad=2), ResizedCrop(size=(12, 9))], ids=str)
def test_views_are_those_that_the_networks_were_given(shared_api: Api, recipe: CropFlip | ResizedCrop) -> None:
    train = decode(shared_api, DigitsDataset(train_per_class=2), "train")
    spec = make_spec(
        dataset_fingerprint=train.fingerprint,
        samples=20,
        views=3,
        augmentation=recipe.model_dump(mode="json"),
        augmentation_seed=5,
        preprocessing={"size": [12, 9]},
    )
    CacheWriter(shared_api.settings.caches_dir, spec)
    path = f"/v1/caches/{spec.key}/views/7.png"
    wanted = make_views_of(train, recipe, 7)
    shown = shared_api.client.get(path, params={"view": "2", "network": "student"})
    if isinstance(recipe, ResizedCrop):
        own = make_views_of(train, ResizedCrop(size=None), 7)
        np.testing.assert_array_equal(pixels(shown.content), own)
        teacher = shared_api.client.get(path, params={"view": "2"})
        np.testing.assert_array_equal(pixels(teacher.content), wanted)
        sized = shared_api.client.get(path, params={"view": "2", "network": "student", "size": "12x9"})
        assert sized.content == teacher.content
    else:
        np.testing.assert_array_equal(pixels(shown.content), wanted)
        assert pixels(shared_api.client.get(path, params={"view": "2"}).content).shape == (12, 9)
        refused = shared_api.client.get(path, params={"network": "student", "size": "12x9"})
        assert (refused.status_code, "crop_flip" in json.dumps(refused.json())) == (409, True)
    assert "immutable" in shown.headers["cache-control"]
    assert shared_api.client.get(path, params={"view": "3"}).status_code == 404


def test_a_view_of_a_teacher_that_crops_is_shown_as_it_was_given(shared_api: Api) -> None:
    train = decode(shared_api, DigitsDataset(train_per_class=2), "train")
    given = Preprocessing(
        size=(12, 9), resize=(15, 14), interpolation="bicubic", channels="gray", mean=(0.0,), std=(1.0,)
    )
    recipe = CropFlip(pad=2, rand_augment=RandAugment())
    spec = make_spec(
        dataset_fingerprint=train.fingerprint,
        samples=20,
        augmentation=recipe.model_dump(mode="json"),
        preprocessing=given.model_dump(mode="json"),
    )
    CacheWriter(shared_api.settings.caches_dir, spec)
    shown = pixels(shared_api.client.get(f"/v1/caches/{spec.key}/views/7.png").content)
    drawn = draw(recipe, spec.augmentation_seed, 0, np.array([7]), height=8, width=8)
    expected = fit_views(torch.from_numpy(train.take(slice(7, 8))), recipe, drawn, given)[0].numpy()
    np.testing.assert_array_equal(shown.reshape(12, 9, -1), expected)


@pytest.mark.parametrize("interpolation", [None, "bicubic"])
def test_a_mixed_view_is_shown_with_the_picture_that_it_is_mixed_with(
    shared_api: Api, interpolation: str | None
) -> None:
    train = decode(shared_api, DigitsDataset(train_per_class=2), "train")
    given = Preprocessing.model_validate(
        {"size": (12, 9), "interpolation": interpolation, "channels": "gray", "mean": (0.0,), "std": (1.0,)}
    )
    second = SecondView(rand_augment=RandAugment())
    recipe = ResizedCrop(size=(12, 9), mixup=Mixup(alpha=4.0), second_view=second)
    spec = make_spec(
        dataset_fingerprint=train.fingerprint,
        samples=20,
        views=2,
        augmentation=describe_augmentation(recipe, Holdout(holdout=0.5)),
        preprocessing=given.model_dump(mode="json"),
    )
    CacheWriter(shared_api.settings.caches_dir, spec)
    views = CachedViews.of(spec, train)
    for view in (0, 1):
        drawn = views.draw(view, np.array([7]), height=8, width=8)
        pictures = torch.from_numpy(train.take(pictures_of(np.array([7]), [drawn])))
        path = f"/v1/caches/{spec.key}/views/7.png?view={view}"
        of_teacher = fit_views(pictures, views.recipe_of(view), drawn, given)[0, ..., 0].numpy()
        np.testing.assert_array_equal(pixels(shared_api.client.get(path).content), of_teacher)
        of_student = apply(pictures, views.recipe_of(view), drawn)[0, ..., 0].numpy()
        shown = pixels(shared_api.client.get(f"{path}&network=student&size=12x9").content)
        np.testing.assert_array_equal(shown, of_student)


def make_views_of(train: Dataset, recipe: CropFlip | ResizedCrop, row: int) -> np.ndarray:
    """View 2 of a row with seed 5, as training makes it."""
    import torch

    images = torch.from_numpy(np.array(train.take(slice(row, row + 1))))
    return make_views(images, recipe, 5, 2, np.array([row])).numpy()[0, ..., 0]
