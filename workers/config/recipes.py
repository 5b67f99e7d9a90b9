"""Recipes of a job by name: training options, views and parameters of methods that stand for what a client leaves out.

``RECIPES`` holds the values. ``workers.config.draft`` fills them into a job once, when it is posted; the job keeps the
values, so a recipe that changes here changes no job that is stored.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from workers.data.kinds.registry import KINDS
from workers.errors import UnknownName
from workers.spec import AtMost, Spec


def _cosine(*, epochs: int, warmup_epochs: float) -> Mapping[str, Any]:
    """Training options of this project's own recipes: SGD, and half a cosine after a warm-up."""
    return {
        "epochs": epochs,
        "batch_size": 64,
        "optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
        "schedule": {"kind": "cosine", "final": 0.0},
        "warmup_epochs": warmup_epochs,
    }


# Of a recipe:
#   title, source: for people, and where its values come from.
#   training, views: as in a job. ``warmup_epochs`` is of the recipe's own ``epochs``, and is scaled with them.
#   reference_lr: a student that the catalog gives a learning rate takes that one (0.05, of mobile networks 0.01).
#   methods: parameters of every method, where it has them.
#   pairs: (method, teacher and student as "TEACHER STUDENT", parameters that its authors give for that pair).
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "none": {
        "title": "the default of each field; views are not augmented",
        "source": "",
        "training": {},
        "views": {},
    },
    "mdistiller-cifar100": {
        "title": "CIFAR-100 as the distillation papers train it; give views.count to see more views",
        "source": "megvii-research/mdistiller a08d46f; pairs: the same, JinYu1998/DTKD 9ebaa97, gizi1/NormKD 279371b",
        "training": {
            "epochs": 240,
            "batch_size": 64,
            "optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
            "schedule": {"kind": "step", "milestones": (0.625, 0.75, 0.875), "gamma": 0.1},
            "warmup_epochs": 0.0,
            "precision": "float32",
        },
        "views": {"augmentation": {"recipe": "crop_flip", "pad": 4, "flip": True}, "count": 10},
        "reference_lr": True,
        "pairs": (
            ("dkd", ("resnet56 resnet20", "resnet110 resnet32"), {"beta": 2.0}),
            (
                "dkd",
                ("vgg13 vgg8", "vgg13 mobilenet_v2", "wrn_40_2 wrn_16_2", "wrn_40_2 wrn_40_1"),
                {"beta": 6.0},
            ),
            (
                "dtkd",
                ("resnet56 resnet20", "resnet110 resnet32", "wrn_40_2 wrn_40_1"),
                {"alpha": 1.0, "beta": 0.5},
            ),
            ("dtkd", ("resnet50 mobilenet_v2",), {"alpha": 3.0, "beta": 2.0}),
            ("dtkd", ("wrn_40_2 shufflenet_v1",), {"alpha": 2.0, "beta": 0.5}),
            (
                "normkd_dkd",
                ("resnet32x4 resnet8x4", "wrn_40_2 wrn_16_2", "resnet32x4 shufflenet_v2", "wrn_40_2 shufflenet_v1"),
                {"alpha": 4.0, "beta": 5.0},
            ),
            ("normkd_dkd", ("resnet56 resnet20",), {"alpha": 7.0, "beta": 2.0}),
            ("normkd_dkd", ("vgg13 vgg8", "resnet50 mobilenet_v2"), {"alpha": 2.0, "beta": 7.0}),
            ("normkd_dkd", ("resnet110 resnet32",), {"alpha": 5.0, "beta": 4.0}),
            ("normkd_dkd", ("wrn_40_2 wrn_40_1", "vgg13 mobilenet_v2"), {"alpha": 3.0, "beta": 6.0}),
            ("normkd_dkd", ("resnet32x4 shufflenet_v1",), {"alpha": 0.5, "beta": 8.5}),
        ),
    },
    "mdistiller-imagenet": {
        "title": "ImageNet as the distillation papers train it, with their ImageNet parameters of the methods",
        "source": "megvii-research/mdistiller a08d46f",
        "training": {
            "epochs": 100,
            "batch_size": 512,
            "optimizer": {"kind": "sgd", "lr": 0.2, "momentum": 0.9, "weight_decay": 1e-4},
            "schedule": {"kind": "step", "milestones": (0.3, 0.6, 0.9), "gamma": 0.1},
            "warmup_epochs": 0.0,
        },
        "views": {"augmentation": {"recipe": "resized_crop", "scale": (0.08, 1.0), "flip": True}, "count": 4},
        "methods": {"family": "imagenet"},
    },
    "digits": {
        "title": "pictures of 8 x 8 pixels as they are",
        "source": "this project",
        "training": _cosine(epochs=30, warmup_epochs=1.5),
        "views": {"augmentation": {"recipe": "none"}, "count": 1},
        "reference_lr": True,
    },
    "mnist": {
        "title": "pictures that are not to be mirrored, moved by 2 pixels",
        "source": "this project",
        "training": _cosine(epochs=20, warmup_epochs=1.0),
        "views": {"augmentation": {"recipe": "crop_flip", "pad": 2, "flip": False}, "count": 4},
        "reference_lr": True,
    },
    "small-pictures": {
        "title": "pictures below 64 pixels a side, or of a size that only the files tell",
        "source": "this project; count: tests/benchmarks/README.md",
        "training": _cosine(epochs=30, warmup_epochs=1.5),
        "views": {"augmentation": {"recipe": "crop_flip", "pad": 4, "flip": True}, "count": 4},
        "reference_lr": True,
    },
    "large-pictures": {
        "title": "pictures of 64 pixels a side and more",
        "source": "this project",
        "training": _cosine(epochs=30, warmup_epochs=1.5),
        "views": {"augmentation": {"recipe": "resized_crop", "scale": (0.25, 1.0), "flip": True}, "count": 4},
        "reference_lr": True,
    },
}

NONE = "none"


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class RecipeSpec(Spec):
    """A recipe by name; a bare name in JSON is accepted for it.

    Attributes:
        name: one of ``RECIPES``.
        teacher_network: architecture of the teacher, such as ``resnet56``; methods then get the parameters that their
            authors give for this teacher and the job's student.
        chosen_by: ``client``, or ``dataset`` where the job names none; said by the service.
        filled: what it has filled in, as paths such as ``training.epochs``; said by the service, None before.
    """

    name: Annotated[str, Field(min_length=1, max_length=64)]
    teacher_network: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(
        None, exclude_if=lambda given: given is None
    )
    chosen_by: Literal["client", "dataset"] = "client"
    filled: Annotated[tuple[Annotated[str, Field(max_length=100)], ...], AtMost(1000)] | None = Field(
        None, exclude_if=lambda given: given is None
    )

    @model_validator(mode="after")
    def _exists(self) -> Self:
        if self.name not in RECIPES:
            raise UnknownName("recipe", self.name, RECIPES)
        if self.teacher_network is not None and self.teacher_network not in (known := teacher_networks(self.name)):
            raise UnknownName(f"teacher network of recipe {self.name!r}", self.teacher_network, known)
        return self


Recipe = Annotated[RecipeSpec, BeforeValidator(_named, json_schema_input_type=RecipeSpec | str)]


def teacher_networks(recipe: str) -> tuple[str, ...]:
    """Teachers for which the authors of some method give parameters, in the recipe's order."""
    pairs = (pair for _, pairs, _ in RECIPES[recipe].get("pairs", ()) for pair in pairs)
    return tuple(dict.fromkeys(pair.split()[0] for pair in pairs))


def pair_parameters(recipe: str, method: str, teacher_network: str, student: str) -> dict[str, float]:
    """Parameters that a method's authors give for this pair; empty where they give none."""
    wanted = f"{teacher_network} {student}"
    found = (given for name, pairs, given in RECIPES[recipe].get("pairs", ()) if name == method and wanted in pairs)
    return dict(next(found, {}))


def describe() -> list[dict[str, Any]]:
    """Every recipe as plain JSON, with the dataset kinds whose jobs take it where they name none."""
    kinds = {name: [kind for kind, cls in KINDS.items() if cls.recipes.get(kind) == name] for name in RECIPES}
    return [
        {
            "name": name,
            "title": recipe["title"],
            "source": recipe["source"],
            "default_of": kinds[name],
            "training": recipe["training"],
            "views": recipe["views"],
            "reference_lr": recipe.get("reference_lr", False),
            "methods": recipe.get("methods", {}),
            "pairs": [
                {"method": method, "pairs": list(pairs), "parameters": given}
                for method, pairs, given in recipe.get("pairs", ())
            ],
        }
        for name, recipe in RECIPES.items()
    ]
