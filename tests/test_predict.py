from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from batches import outcomes_of
from PIL import Image

from segapp.batch import list_inputs
from segapp.checkpoint import Architecture, DataRecord, ModelInfo, read_info, save_model
from segapp.engines import load_engine
from segapp.errors import ConfigError, ModelFileError, ScanError
from segapp.files import sha256
from segapp.formats import read_scan
from segapp.likeness import TrainingRange
from segapp.predict import Predictor, most_probable
from segapp.preprocess import Preprocessing, to_slices
from segapp.scan import Scan, make_classes

BRAIN = Path(__file__).parents[1] / "data" / "brain" / "t1.nii.gz"
CLASSES = make_classes(["background", "grey", "bright"], [0, 100, 255])
RAW = {"normalisation": "imagenet", "shift": (0.0,), "scale": (1.0,)}  # stored units


def load(path) -> Any:
    return nib.load(path)


class BrightnessEngine:
    """Class 0 around 0, class 1 around 100, class 2 around 200, and it knows how it was called."""

    def __init__(self, batch_size=2, calls_at_once=1):
        self.batch_size = batch_size
        self.calls_at_once = calls_at_once
        self.precision = "fp32"
        self.shapes = []

    def __call__(self, batch):
        self.shapes.append(batch.shape)
        assert batch.dtype == np.float32
        away = batch[:, :1] - np.array([0, 100, 200], np.float32).reshape(1, 3, 1, 1)
        return -((away / 25) ** 2)


def brightness(batch_size=2, calls_at_once=1, **preprocessing):
    prep = Preprocessing(channels=1, **{**RAW, **preprocessing})
    return Predictor(BrightnessEngine(batch_size, calls_at_once), prep, CLASSES)


def by_brightness(voxels):
    """What the engine makes of a voxel."""
    return np.digitize(voxels, [50, 150], right=True).astype(np.uint8)


def turn(image, order, signs):
    """The same image, stored in another axis order and direction."""
    return image.as_reoriented(list(zip(order, signs, strict=True)))


ORIENTATIONS = [(o, s) for o in permutations(range(3)) for s in product((1, -1), repeat=3)]


def make_volume(shape=(9, 8, 5), seed=0):
    rng = np.random.default_rng(seed)
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    affine[:3, 3] = (-7, 11, 3)
    return nib.Nifti1Image(rng.integers(0, 255, shape).astype(np.uint8), affine)


@pytest.fixture(scope="module")
def torch_model(tmp_path_factory):
    """A run folder with a small network of random weights that tells the brain's parts apart."""
    import torch

    from segapp.model import build_network

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads of small networks wait for each other on a busy machine
    torch.manual_seed(0)
    shape = {"in_channels": 1, "classes": 3, "residual": True, "encoder_depth": 3}
    network = build_network("unet", "resnet18", **shape)
    image = np.asarray(load(BRAIN).dataobj)[40:104, 60:124, 60:68].astype(np.float32)
    batch = torch.from_numpy(((image - image.mean()) / image.std()).transpose(2, 0, 1)[:, None])
    network.train()
    with torch.no_grad():
        for _ in range(5):  # batch statistics of real input: labels of every class
            network(batch)
    run = tmp_path_factory.mktemp("run")
    info = ModelInfo(
        architecture=Architecture(name="unet", encoder="resnet18", **shape),
        preprocessing=Preprocessing(channels=1, over="slice", nonzero=True),
        classes=CLASSES,
        settings={},
        metrics={},
        starting_weights="none",
        data=DataRecord(root="none"),
    )
    weights = {name: t.numpy() for name, t in network.state_dict().items()}
    save_model(run / "model.safetensors", weights, info)
    yield run
    torch.set_num_threads(threads)


def brain_crop():
    """40 × 48 × 4 voxels on an oblique grid with thick slices."""
    crop = np.asarray(load(BRAIN).dataobj)[50:90, 70:118, 60:64]
    turned = np.diag([1.0, 1.2, 3.0, 1.0])
    a, b = 0.2, 0.35
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    turned[:3, :3] = about_z @ about_x @ turned[:3, :3]
    turned[:3, 3] = (-31.5, 12.25, 40)
    return nib.Nifti1Image(crop, turned)


def physical(path_or_image):
    """Voxels in nibabel's canonical order, and their place."""
    image = load(path_or_image) if isinstance(path_or_image, Path) else path_or_image
    image = nib.as_closest_canonical(image)
    return np.asarray(image.dataobj), image.affine


# The path itself, on an engine made of NumPy


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize(("batch_size", "calls_at_once"), [(1, 1), (2, 1), (7, 1), (1, 3), (2, 2)])
def test_labels_lie_on_the_scans_own_grid(axis, batch_size, calls_at_once):
    predictor = brightness(batch_size, calls_at_once, slice_axis=axis)
    image = make_volume()
    for order, signs in ORIENTATIONS[::5]:
        turned = turn(image, order, signs)
        voxels = np.asarray(turned.dataobj)
        scan = Scan(voxels[None], turned.affine, Path("a.nii"), ("said by the reader",))
        found = predictor(scan)
        assert np.array_equal(found.labels, by_brightness(voxels))
        assert found.labels.dtype == np.uint8
        assert found.scan is scan
        assert found.classes == CLASSES
        assert found.warnings == ("said by the reader",)
    assert isinstance(predictor.engine, BrightnessEngine)
    batches = {shape[0] for shape in predictor.engine.shapes}
    assert max(batches) <= batch_size
    sizes = {shape[1:] for shape in predictor.engine.shapes}
    assert sizes == {(1, 64, 64)}, "and is padded to two strides"


def test_confidence_is_the_probability_of_the_chosen_class():
    voxels = np.full((1, 4, 5, 3), 100, np.uint8)
    found = brightness()(Scan(voxels, np.eye(4), Path("a.nii")))
    assert found.confidence is not None
    assert found.confidence.dtype == np.float16
    assert found.confidence.shape == (4, 5, 3)
    expected = 1 / (1 + 2 * np.exp(-16))  # the two neighbours are 100 / 25 = 4 away
    np.testing.assert_allclose(found.confidence, expected, rtol=1e-3)


@pytest.mark.parametrize("classes", [1, 2, 4, 255])
def test_the_most_probable_class_is_numpys(classes):
    rng = np.random.default_rng(classes)
    p = rng.integers(0, 6, (2, classes, 16, 17)).astype(np.float32)  # equals are common
    labels, best = most_probable(p)
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, p.argmax(1))
    assert np.array_equal(best, p.max(1))
    p[1, -1, 3, 4] = np.nan
    assert np.isnan(most_probable(p)[1][1, 3, 4])


def test_slabs_of_probabilities_come_in_order():
    image = make_volume((6, 7, 5))
    voxels = np.asarray(image.dataobj)
    seen = []

    def note(done, total, slab):
        np.testing.assert_allclose(slab.sum(axis=1), 1, rtol=1e-5)
        assert slab.dtype == np.float32
        seen.append((done, total, slab.argmax(axis=1)))

    found = brightness()(Scan(voxels[None], image.affine, Path("a")), on_slab=note)
    assert [s[:2] for s in seen] == [(2, 5), (4, 5), (5, 5)]
    slices = to_slices(found.labels[None], image.affine, "axial")[:, 0]
    assert np.array_equal(np.concatenate([s[2] for s in seen]), slices)


def test_temperature_changes_confidence_and_no_label():
    image = make_volume()
    scan = Scan(np.asarray(image.dataobj)[None], image.affine, Path("a.nii"))
    cold = brightness()
    warm = Predictor(cold.engine, cold.preprocessing, CLASSES, temperature=3.0)
    a, b = cold(scan), warm(scan)
    assert np.array_equal(a.labels, b.labels)
    assert a.confidence is not None
    assert b.confidence is not None
    assert (b.confidence <= a.confidence).all()
    assert b.confidence.mean() < a.confidence.mean()


class LeaningEngine(BrightnessEngine):
    """Its first class grows towards the last column and row, so that a flip changes the result."""

    def __call__(self, batch):
        column = np.linspace(-2, 2, batch.shape[3], dtype=np.float32)
        row = np.linspace(-1, 1, batch.shape[2], dtype=np.float32)[:, None]
        return super().__call__(batch) + np.float32([1, 0, 0]).reshape(1, 3, 1, 1) * (column + row)


@pytest.mark.parametrize(
    ("flips", "axes"),
    [
        ((), [()]),
        (("horizontal",), [(), (3,)]),
        (("vertical",), [(), (2,)]),
        (("horizontal", "vertical"), [(), (2,), (3,), (2, 3)]),
    ],
)
def test_flips_average_probabilities(flips, axes):
    """The mean over the flipped slices of what one engine call gives for each, flipped back."""
    prep = Preprocessing(channels=1, **RAW)
    volume = Scan(np.random.default_rng(0).uniform(0, 200, (1, 64, 96, 3)), None, Path("v"))
    predictor = Predictor(LeaningEngine(), prep, CLASSES, temperature=2.0, flips=flips)
    prepared = prep.prepare(volume)
    expected = 0
    for view in axes:
        logits = LeaningEngine()(np.flip(prepared.network_input(0, 3), view)) / 2
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        expected = expected + np.flip(p, view) / len(axes)
    slabs = np.concatenate([slab for _, slab in predictor.probabilities(prepared)])
    np.testing.assert_allclose(slabs, expected, atol=2e-6)
    np.testing.assert_allclose(slabs.sum(1), 1, atol=1e-5)
    shapes = [(2, 1, 96, 64)] * len(axes) + [(1, 1, 96, 64)] * len(axes)
    assert predictor.engine.shapes == shapes  # type: ignore[attr-defined]


class BrokenEngine(BrightnessEngine):
    def __call__(self, batch):
        return super().__call__(batch) * np.nan


def test_a_result_that_is_no_number_is_an_error():
    predictor = brightness()
    predictor.engine = BrokenEngine()
    with pytest.raises(ScanError, match=r"a\.nii: the network's result is not finite"):
        predictor(Scan(np.zeros((1, 4, 4, 3), np.uint8), np.eye(4), Path("a.nii")))


def test_a_scan_unlike_the_training_scans_is_told_if_the_model_file_knows(torch_model):
    known = TrainingRange(
        dtypes=("uint8",),
        pixel_mm=(1, 1),
        slice_mm=None,
        thickest=(),
        intensities=((0, 255),),
        narrowest=(100,),
        highest_low=(0,),
    )
    info = read_info(torch_model)
    scan = Scan(np.full((1, 4, 4, 3), 7, np.uint8), np.diag([3, 3, 3, 1]), Path("a"), ("reader",))
    told = []
    for training in (None, known):
        predictor = brightness()
        predictor.info = info.model_copy(update={"training": training})
        told.append(predictor(scan).warnings)
    pixels = "pixels of 3 mm; the training scans had 1 mm"
    assert told == [("reader",), ("reader", pixels)]


def test_other_channels_are_the_scans_error():
    with pytest.raises(ScanError, match=r"has 2 channel\(s\)"):
        brightness()(Scan(np.zeros((2, 4, 4, 1), np.uint8), None, Path("a.png")))


# The whole way, from files to files, through a torch network


def test_all_48_axis_orders_give_the_same_physical_labels(tmp_path, torch_model):
    image = brain_crop()
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    for n, (order, signs) in enumerate(ORIENTATIONS):
        for suffix in (".nii",) if n % 6 else (".nii.gz", ".nii"):
            nib.save(
                turn(image, order, signs), scans / f"v{n:02}{suffix.replace('.', '_')}{suffix}"
            )
    predictor = Predictor.load(torch_model, "cpu")
    outcomes = outcomes_of(predictor, list_inputs([scans]), out)
    assert {o.status for o in outcomes} == {"ok"}
    assert len(outcomes) == 48 + 8
    expected = None
    for outcome in outcomes:
        given, written = load(outcome.file), load(outcome.output)
        assert outcome.output is not None
        assert outcome.output.name == outcome.file.name
        assert np.array_equal(written.affine, given.affine)
        assert written.shape == given.shape
        labels, affine = physical(outcome.output)
        if expected is None:
            expected = (labels, affine)
            assert set(np.unique(labels)) == {0, 100, 255}, "the values of the training masks"
            assert min(np.unique(labels, return_counts=True)[1]) > 100
        assert np.array_equal(labels, expected[0])
        np.testing.assert_allclose(affine, expected[1], atol=1e-4)


@pytest.mark.parametrize("axis", ["coronal", "sagittal"])
def test_some_axis_orders_for_other_slices(torch_model, axis):
    loaded = Predictor.load(torch_model, "cpu")
    prep = loaded.preprocessing.model_copy(update={"slice_axis": axis, "over": "scan"})
    predictor = Predictor(loaded.engine, prep, loaded.classes)
    results = set()
    for order, signs in ORIENTATIONS[::13]:
        turned = turn(brain_crop().slicer[:9, :10], order, signs)
        found = predictor(Scan(np.asarray(turned.dataobj)[None], turned.affine, Path("a.nii")))
        labels, _ = physical(nib.Nifti1Image(found.labels, turned.affine))
        results.add(labels.tobytes())
    assert len(results) == 1


def test_alone_or_among_others_a_file_gets_the_same_bytes(tmp_path, torch_model):
    scans = tmp_path / "scans"
    scans.mkdir()
    nib.save(brain_crop(), scans / "volume.nii.gz")
    nib.save(make_volume((50, 33, 5)), scans / "noise.nii")
    picture = np.asarray(load(BRAIN).dataobj)[:, :, 70]
    for n, (width, height) in enumerate([(64, 64), (80, 50), (31, 90), (17, 5), (90, 31)]):
        Image.fromarray(picture[:width, :height].T).save(scans / f"p{n}.png")
    files = sorted(scans.iterdir())

    def digests(order, out):
        outcomes = outcomes_of(Predictor.load(torch_model, "cpu"), list_inputs(order), out)
        assert {o.status for o in outcomes} == {"ok"}
        return {o.file.name: sha256(out / o.file.name) for o in outcomes}

    together = digests(files, tmp_path / "together")
    backwards = digests(files[::-1], tmp_path / "backwards")
    alone = {}
    for file in files:
        alone |= digests([file], tmp_path / "alone")
    assert together == backwards == alone
    assert len(together) == 7


def test_a_slice_gets_the_same_labels_wherever_it_stands_in_a_batch(torch_model):
    engine = Predictor.load(torch_model, "cpu").engine
    engine.batch_size = 4  # as on a GPU
    rng = np.random.default_rng(0)
    one = rng.normal(size=(1, 1, 64, 96)).astype(np.float32)
    expected = engine(one)[0]
    for count in (1, 3, 4):  # a smaller batch is filled up
        for position in range(count):
            batch = rng.normal(size=(count, 1, 64, 96)).astype(np.float32)
            batch[position] = one[0]
            logits = engine(batch)
            assert logits.dtype == np.float32
            assert logits.shape == (count, 3, 64, 96)
            assert np.array_equal(logits[position], expected)


def test_png_slices_and_their_volume_get_the_same_labels(tmp_path, torch_model):
    predictor = Predictor.load(torch_model, "cpu")  # its normalisation is of each slice
    image = brain_crop()
    nib.save(turn(image, (2, 0, 1), (1, -1, 1)), tmp_path / "volume.nii.gz")
    scan = read_scan(tmp_path / "volume.nii.gz")
    volume = to_slices(predictor(scan).labels[None], scan.affine, "axial")[:, 0]
    for k, picture in enumerate(to_slices(scan.voxels, scan.affine, "axial")[:, 0]):
        path = tmp_path / f"{k}.png"
        Image.fromarray(np.ascontiguousarray(picture)).save(path)
        assert np.array_equal(predictor(read_scan(path)).labels[:, :, 0].T, volume[k])


def test_the_model_file_says_everything(torch_model):
    predictor = Predictor.load(torch_model / "model.safetensors", "cpu")
    assert predictor.info is not None
    assert predictor.preprocessing == predictor.info.preprocessing
    assert predictor.classes == CLASSES
    assert predictor.temperature == 1


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "", "meta"])
def test_a_device_that_can_not_be_used(torch_model, device):
    with pytest.raises(ConfigError, match=r"--device .*: not available here"):
        Predictor.load(torch_model, device)


def test_weights_of_another_network(tmp_path, torch_model):
    from segapp.checkpoint import read_weights

    info, weights = read_info(torch_model), read_weights(torch_model)
    other = info.architecture.model_copy(update={"residual": False})
    path = tmp_path / "model.safetensors"
    save_model(path, weights, info.model_copy(update={"architecture": other}))
    with pytest.raises(ModelFileError, match="do not fit the network it describes"):
        load_engine(path, read_info(path), "cpu")


def test_fewer_slices_go_through_at_once_where_they_are_large():
    predictor = brightness(4)
    for side, together in ((512, 4), (600, 2), (1024, 1), (1500, 1)):
        predictor.engine.shapes.clear()
        predictor(Scan(np.zeros((1, side, side, 5), np.uint8), None, Path("x.tif")))
        assert max(shape[0] for shape in predictor.engine.shapes) == together
