"""The recipe in ``workers.methods.catalog``: one function, one dict entry and one config class make a method."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

# What a reader of the recipe would add, and nothing more: (file, the line it goes before or after, the text).
POLICY_FILE = '''
"""Temperature from the spread of the teacher's logits."""

from typing import Literal

from workers.methods.policies.base import Policy, PolicyBatch, Statistics, Temperatures
from workers.spec import Temperature


class Halfway(Policy):
    """A temperature from the spread of the teacher's logits."""

    title = "spread"
    formula = "T = (max z_t - min z_t) / divisor"
    paper = "none"
    statistics = ("max", "min")

    kind: Literal["halfway"] = "halfway"
    divisor: Temperature = 2.0


def halfway(student: Statistics, teacher: Statistics, config: Halfway, batch: PolicyBatch) -> Temperatures:
    """The spread of the teacher's logits over a divisor, weight T^2."""
    tau_B1 = (teacher["max"] - teacher["min"]) / config.divisor
    return Temperatures(tau_B1, tau_B1, tau_B1 * tau_B1)
'''
LOSS_FUNCTION = '''
def reverse(
    student: Logits, teacher: Logits, y_B: Tensor, temperatures: Temperatures, config: Reverse
) -> LossResult:
    """KL(student || teacher)."""
    log_p_BC, log_q_BC = teacher.softened(temperatures.teacher), student.softened(temperatures.student)
    return LossResult({"reverse": LossPart(1.0, divergence(log_q_BC, log_p_BC), temperatures.weight)})


'''
LOSS_CLASS = '''
class Reverse(Loss):
    """The divergence the other way round."""

    title = "reverse KL"
    formula = "W KL(q || p)"
    paper = "none"
    parts = ("reverse",)

    kind: Literal["reverse"] = "reverse"


'''
PRESET_CLASS = '''
class HalfwayKD(Preset):
    """Both of them."""

    title = "half way"
    paper = "none"
    formula = "CE + T^2 KL(q || p)"

    preset: Literal["halfway_kd"] = "halfway_kd"

    def _terms(self) -> tuple[Term, ...]:
        return (Term(policy=Halfway(), loss=Reverse()),)


'''
USE = """
import json, torch
from workers.objective.statistics import row_statistics
from workers.methods.catalog import describe, describe_losses, describe_policies, parse_method
from workers.methods.catalog import MethodChoice
from workers.objective.objective import objective
from pydantic import TypeAdapter

custom = {"preset": "custom", "terms": [{"policy": {"kind": "halfway", "divisor": 3}, "loss": "reverse"}]}
z = torch.randn(4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
student, teacher = z.clone().requires_grad_(), 2 * z.flip(0)
totals = []
for method in (custom, "halfway_kd"):
    expanded = TypeAdapter(MethodChoice).validate_json(json.dumps(method)).expand()
    result = objective(expanded, student, torch.arange(4), epoch=1, teacher_logits_BC=teacher,
                       teacher_statistics=row_statistics(teacher))
    totals.append(float(result.total - result.terms["ce"]))
spread = (teacher.amax(1) - teacher.amin(1)).unsqueeze(1)
wanted = []
for divisor in (3, 2):
    tau = spread / divisor
    p, q = (teacher / tau).log_softmax(1), (student / tau).log_softmax(1)
    wanted.append(float((tau.squeeze(1) ** 2 * (q.exp() * (q - p)).sum(1)).mean()))
print(json.dumps({
    "totals": totals,
    "wanted": wanted,
    "policies": [entry["kind"] for entry in describe_policies()],
    "losses": [entry["kind"] for entry in describe_losses()],
    "presets": [entry["id"] for entry in describe()],
}))
"""


def _insert(path: Path, before: str, text: str) -> None:
    content = path.read_text()
    assert content.count(before) == 1, (path, before)
    path.write_text(content.replace(before, text.lstrip("\n") + before))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the methods need, with one policy, one loss and one preset added as the recipe says."""
    for layer in ("store", "workers"):
        shutil.copytree(ROOT / layer, tmp_path / layer, ignore=shutil.ignore_patterns("__pycache__"))
    methods, objective = tmp_path / "workers" / "methods", tmp_path / "workers" / "objective"
    (methods / "policies" / "halfway.py").write_text(POLICY_FILE)
    _insert(methods / "policies" / "catalog.py", "    (Fixed, fixed),\n", "    (Halfway, halfway),\n")
    _insert(
        methods / "policies" / "catalog.py",
        "from workers.methods.policies.fixed",
        "from workers.methods.policies.halfway import Halfway, halfway\n",
    )
    _insert(objective / "distillation.py", "def dkd(", LOSS_FUNCTION)
    _insert(objective / "distillation.py", '    "kl": kl,\n', '    "reverse": reverse,\n')
    _insert(
        objective / "distillation.py",
        "from workers.objective.rank_correlation",
        "from workers.methods.losses import Reverse\n",
    )
    _insert(methods / "losses.py", "class Dkd(Loss)", LOSS_CLASS)
    _insert(methods / "papers" / "temperatures.py", "class KD(Preset)", PRESET_CLASS)
    _insert(
        methods / "papers" / "temperatures.py",
        "from workers.methods.policies.fixed",
        "from workers.methods.policies.halfway import Halfway\n",
    )
    _insert(methods / "papers" / "temperatures.py", "from workers.spec", "from workers.methods.losses import Reverse\n")
    return tmp_path


def test_recipe_following_the_recipe_adds_a_policy_a_loss_and_a_preset(tree: Path) -> None:
    done = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, cwd=tree, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["totals"] == pytest.approx(said["wanted"], rel=1e-12)
    assert "halfway" in said["policies"]
    assert "reverse" in said["losses"]
    assert "halfway_kd" in said["presets"]
