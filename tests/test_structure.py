"""What holds for the source as a whole: who imports whom, and what nobody does."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "segapp"
MODULES = {
    ".".join(("segapp", *p.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): p
    for p in sorted(ROOT.rglob("*.py"))
}
# A module imports only modules above it. `engines.torch` and `report.training` stand where what
# they need does; other modules of a package stand where the package does.
ORDER = [
    *(
        "errors",
        "ranks",
        "parsing",
        "settings",
        "policies",
        "contradictions",
        "config",
        "reference",
        "variants",
    ),
    *("finding", "modality", "declared", "files", "locks", "progress", "scan", "ahead"),
    *("formats.source", "formats.listing", "formats"),
    *("layout", "cases", "selection", "resample", "spread", "preprocess", "shapes", "fingerprint"),
    *(
        "likeness",
        "novelty",
        "metrics",
        "quality",
        "calibration",
        "boundary",
        "intervals",
        "check",
        "evidence",
        "leakage",
        "verdicts",
        "checkpoint",
    ),
    *("card", "exported", "inherit", "patches", "decide", "plan", "estimate", "tiles", "engines"),
    "predict",
    *("report", "report.overlay", "report.findings", "report.board", "report.sheet", "doctor"),
    *("report.page", "report.scans", "report.timeline", "report.training"),
    *(
        "report.comparison",
        "report.comparison_picture",
        "rows",
        "outcomes",
        "earlier",
        "naming",
        "intake",
        "shares",
        "merging",
    ),
    *("batch", "measure"),
    *(
        "seen",
        "figures",
        "exchange",
        "judgement",
        "report.pictures",
        "report.plots",
        "report.evaluation",
        "report.run",
        "report.reading",
        "takeaway",
        "agreement",
        "corrections",
        "further",
        "evaluate",
        "suspicion",
        "dispute",
        "report.pairs",
        "suspects",
        "operations",
        "augment",
        "mix",
        "decoder",
        "model",
        "weights",
        "engines.torch",
        "losses",
        "optim",
    ),
    *(
        "pace",
        "data",
        "machine",
        "together",
        "launch",
        "step",
        "resume",
        "history",
        "validation",
        "verify",
        "assemble",
    ),
    "safeguards",
    *("closing", "kfold"),
    *("quantize", "export", "rangetest", "train", "trial", "compare", "report.pruning", "prune"),
    "web",
    *("cli_start", "cli_batch", "cli_text", "cli_models", "cli"),
]
# Lazy or for types only: importing the module does not import these.
LATER = {("segapp.engines", "segapp.engines.torch"), ("segapp.report.training", "segapp.data")}
LATER |= {("segapp.engines", f"segapp.engines.{name}") for name in ("openvino", "onnx", "shared")}
LATER |= {("segapp.report.pruning", "segapp.prune")}
LATER |= {("segapp.formats", "segapp.formats.dicom")}
LATER |= {("segapp.formats.listing", "segapp.formats.dicom")}
OWNERS = {
    # what trains or runs networks: decoder and weights are parts of model, mix of augment, optim,
    # step and assemble of train, cut off where a file got long
    "torch": {"decoder", "model", "losses", "data", "optim", "step", "resume", "train"}
    | {"engines.torch", "mix", "weights", "assemble", "export", "prune", "together"},
    "openvino": {"engines.openvino", "export"},
    "onnxruntime": {"engines.onnx"},
    "onnx": {"export"},
    "nncf": {"quantize"},
    "torch_pruning": {"prune"},
    "albumentations": {"augment"},
    **{name: {"web"} for name in ("gradio", "fastapi", "starlette", "uvicorn")},
    **{"bcrypt": {"web.users"}, "python_multipart": {"web.limits"}},
    **{name: {"formats"} for name in ("nibabel", "tifffile", "imagecodecs", "nrrd", "pydicom")},
    "highdicom": {"formats.dicomseg"},
    "segmentation_models_pytorch": {"decoder", "model", "weights"},
    "accelerate": {"step"},
}
MAX_LINES = 330


def imports(path, top_only=False):
    """Full names of what a file imports, also inside functions unless `top_only`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in whole)


def place(module):
    """Position in ORDER; of a package's module that is not listed, the package's."""
    name = module.removeprefix("segapp.")
    return ORDER.index(name if name in ORDER else name.split(".")[0])


@pytest.mark.parametrize("module", [m for m in MODULES if m != "segapp"])
def test_a_module_imports_only_modules_above_it(module):
    for other in imports(MODULES[module]):
        if other == "segapp" or not other.startswith("segapp") or (module, other) in LATER:
            continue
        same_package = place(other) == place(module) and module.count(".") == 2
        assert place(other) < place(module) or same_package, f"{module} imports {other}"


def test_what_is_imported_later_is_not_at_the_top():
    for module, other in LATER:
        assert other not in set(imports(MODULES[module], top_only=True))


@pytest.mark.parametrize("package", OWNERS)
def test_packages_have_owners(package):
    owners = set()
    for module, path in MODULES.items():
        if package in {name.split(".")[0] for name in imports(path)}:
            name = module.removeprefix("segapp.")
            owned = OWNERS[package] & {name, name.split(".")[0]}
            assert owned, f"{module} imports {package}"
            owners |= owned
    assert owners == OWNERS[package], "an owner does not use it"


@pytest.mark.parametrize("module", MODULES)
def test_no_file_is_long(module):
    lines = MODULES[module].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_LINES
    assert max(map(len, lines), default=0) <= 100


@pytest.mark.parametrize("module", MODULES)
def test_nothing_runs_code_it_was_given_or_hides_an_error(module):
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    broad = {"Exception", "BaseException"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else ""
            assert called not in {"eval", "exec"}
            keywords = {k.arg: k.value for k in node.keywords}
            shell = keywords.get("shell")
            assert not (isinstance(shell, ast.Constant) and shell.value)
            names = [a.id for a in node.args if isinstance(a, ast.Name)]
            if called == "suppress":
                assert not broad & set(names)
            # torch.load unpickles unless it is told to read weights only
            if isinstance(node.func, ast.Attribute) and ast.unparse(node.func) == "torch.load":
                only = keywords.get("weights_only")
                assert isinstance(only, ast.Constant)
                assert only.value is True
            if isinstance(node.func, ast.Attribute):  # see SECURITY.md
                called = ast.unparse(node.func)
                assert called not in {"torch.jit.script", "torch.jit.load", "torch.export.load"}
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, "a bare except"
            caught = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}
            if broad & caught:
                assert not all(isinstance(n, ast.Pass | ast.Continue) for n in node.body)
    roots = {name.split(".")[0] for name in imports(MODULES[module])}
    assert not roots & {"pickle", "dill", "joblib", "shelve", "marshal"}


def run(code, *args):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        cwd=ROOT.parent,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


WITHOUT_TORCH = """
import sys
from importlib import import_module
from pathlib import Path

BLOCKED = {"torch", "torchvision", "accelerate", "albumentations", "gradio"}
BLOCKED |= {"segmentation_models_pytorch", "timm", "openvino", "nncf", "onnx", "onnxruntime"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
for name in sys.argv[2].split():
    import_module(f"segapp.{name}")

import nibabel as nib
import numpy as np
from PIL import Image
from segapp.batch import list_inputs, predict_batch
from segapp.cases import find_cases
from segapp.evaluate import evaluate_cases, write_evaluation
from segapp.predict import Predictor
from segapp.preprocess import Preprocessing
from segapp.scan import make_classes

class Threshold:
    batch_size, calls_at_once, precision = 2, 2, "fp32"
    def __call__(self, batch):
        return np.concatenate([0 * batch, batch - 100], axis=1)

root = Path(sys.argv[1])
pixels = np.arange(240, dtype=np.uint8).reshape(12, 20)
for part, array in (("images", pixels), ("masks", (pixels > 100) * np.uint8(255))):
    (root / part).mkdir()
    Image.fromarray(array).save(root / part / "a.png")
    nib.save(nib.Nifti1Image(np.stack([array] * 3, 2), np.eye(4)), root / part / "b.nii.gz")
classes = make_classes(["background", "lesion"], [0, 255])
prep = Preprocessing(channels=1, normalisation="imagenet", shift=(0,), scale=(1,))
predictor = Predictor(Threshold(), prep, classes)
outcomes = []
predict_batch(
    *(predictor, list_inputs([root / "images"]), root / "out"),
    overlay=True,
    on_outcome=outcomes.append,
)
assert [o.status for o in outcomes] == ["ok", "ok"], outcomes
evaluation = evaluate_cases(predictor, find_cases(root).cases, None)
print(write_evaluation(evaluation, "all", root / "out")["miou"])
assert not BLOCKED & set(sys.modules)
"""


def test_prediction_and_evaluation_need_no_torch(tmp_path):
    names = ORDER[: ORDER.index("evaluate") + 1]
    assert run(WITHOUT_TORCH, tmp_path, " ".join(names)) == "1.0\n"
    written = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert written == [
        *("a.png", "a_overlay.png", "b.nii.gz", "b_overlay.png", "cases.csv"),
        *("predictions.csv", "summary.json"),
    ]
