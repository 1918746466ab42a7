"""A folder of pictures: which files are taken, what is named, the cache, the share for testing."""

import errno
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import cifar_jax
from cifar_jax.data import cache, datasets, folder, photos
from cifar_jax.data.class_folders import find_tree
from cifar_jax.data.sources import find_place
from cifar_jax.errors import UserError
from cifar_jax.evaluation import evaluate
from cifar_jax.reports import predict
from cifar_jax.runs.signals import Signals
from cifar_jax.training import check, loop
from tests import tiny


def write(path, seed=0, size=(12, 9), mode="RGB", **options):
    """Writes a picture of noise; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = len(Image.new(mode, (1, 1)).getbands())
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], bands), np.uint8)
    Image.fromarray(noise[..., 0] if bands == 1 else noise, mode).save(path, **options)
    return path


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder of two classes of ten and five different pictures, and a cache beside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number in range(15):
        name = "cat" if number < 10 else "dog"
        write(tmp_path / "pets" / name / f"{number}.png", number)
    return tmp_path / "pets"


def open_folder(path, **options):
    given = {"path": str(path), "image_size": 8, **options}
    return folder.open_folder(folder.Options(**given))


def names_in(tree):
    return {split: [file for file, _ in own] for split, own in tree.splits.items()}


def test_as_many_threads_decode_as_a_container_may_use(root, monkeypatch):
    counts, pool = [], folder.ThreadPoolExecutor

    def start(count):
        counts.append(count)
        return pool(count)

    monkeypatch.setattr(folder, "ThreadPoolExecutor", start)
    monkeypatch.setattr(folder.limits, "num_cores", lambda: 3)
    open_folder(root)
    assert counts == [3]


@pytest.mark.parametrize("place", ["", "train"])
def test_other_files_outside_the_classes_are_counted_too(root, place):
    if place:
        for name in ("cat", "dog"):
            (root / place).mkdir(exist_ok=True)
            (root / name).rename(root / place / name)
    (root / place / "IMG_1.HEIC").touch()
    (root / "notes.txt").touch()
    (root / "cat.svg").touch()
    line = find_tree(str(root)).remarks[-1]
    words = "not pictures by their names, and passed over: .heic (1), .svg (1), .txt (1)"
    if ".heic" in photos.extensions():
        words = "not pictures by their names, and passed over: .svg (1), .txt (1)"
    assert line.startswith(words)


def test_classes_are_folders_and_everything_else_is_named(root):
    write(root / "cat" / "kittens" / "deep.JPG")
    write(root / "ant" / "first.bmp")
    (root / ".git").mkdir()
    write(root / "cat" / ".hidden.png")
    (root / "cat" / "notes.txt").touch()
    (root / "dog" / "unnamed").touch()
    (root / "empty").mkdir()
    write(root / "loose.png")
    (root / "cat" / "again").symlink_to(root / "cat")  # a circle
    tree = find_tree(str(root))
    assert tree.class_names == ("ant", "cat", "dog")
    cats = [f"cat/{number}.png" for number in range(10)]
    dogs = [f"dog/{number}.png" for number in range(10, 15)]
    files = [*cats[:2], *dogs, *cats[2:], "cat/kittens/deep.JPG", "ant/first.bmp"]
    assert names_in(tree) == {"train": files}
    assert [label for _, label in tree.splits["train"]] == [1, 1, 2, 2, 2, 2, 2, *[1] * 9, 0]
    assert tree.remarks == (
        "in no class's folder, and passed over: loose.png",
        "not pictures by their names, and passed over: .txt (1), no extension (1)",
        "the class 'empty' holds no pictures and is left out",
    )


@pytest.mark.parametrize("train", ["train", "Train", "training"])
@pytest.mark.parametrize("held", ["val", "valid", "validation"])
def test_folders_of_splits(tmp_path, train, held):
    for number, split in enumerate((train, held, "test")):
        write(tmp_path / split / "b" / f"{number}.png")
        write(tmp_path / split / ("a" if split != held else "c") / "x.png")
    write(tmp_path / "spare" / "y.png")
    write(tmp_path / train / "z.png")
    if train == "train":  # pictures beside the classes are allowed if there are only splits
        shutil.rmtree(tmp_path / "spare")
    else:
        (tmp_path / train / "z.png").unlink()
    tree = find_tree(str(tmp_path))
    assert names_in(tree) == {
        "train": [f"{train}/b/0.png", f"{train}/a/x.png"],
        "validation": [f"{held}/b/1.png", f"{held}/c/x.png"],
        "test": ["test/b/2.png", "test/a/x.png"],
    }
    assert tree.class_names == ("a", "b", "c")
    if train == "train":
        words = "in no class's folder, and passed over: train/z.png"
    else:
        words = "the folder 'spare' is not that of a split and is passed over"
    assert tree.remarks == (words,)


def test_no_folder_is_entered_twice(root):
    """Links between the folders of a class: each picture counts once, by its shortest path."""
    for number in range(6):
        write(root / "cat" / f"in{number}" / "x.png", number)
    for number in range(6):
        for other in range(6):
            (root / "cat" / f"in{number}" / f"to{other}").symlink_to(root / "cat" / f"in{other}")
    inner = [file for file, _ in find_tree(str(root)).splits["train"] if "/in" in file]
    assert sorted(inner) == [f"cat/in{number}/x.png" for number in range(6)]


def test_a_class_may_be_called_train(root):
    write(root / "train" / "engine.png")
    write(root / "train" / "steam" / "1.png")
    assert find_tree(str(root)).class_names == ("cat", "dog", "train")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "holds training pictures of 0 classes: it must be PATH/CLASS/"),
        (["1.png", "2.png"], "holds training pictures of 0 classes: it must be PATH/CLASS/"),
        (["cat/1.png"], r"holds training pictures of 1 class \(cat\): it must be PATH/CLASS"),
        (["train/cat/1.png", "test/dog/1.png"], r"of 2 classes \(cat, dog\): it must"),
        (["test/cat/1.png", "val/dog/1.png"], "has test, val but no train: put the classes into"),
        (["cat/1.png", "dog/1.png", "test/cat/2.png"], "has test but no train"),
        (["train/cat/1.png", "val/cat/1.png", "valid/cat/1.png"], "two folders for one split"),
    ],
)
def test_a_folder_without_two_classes_is_refused(tmp_path, files, message):
    for file in files:
        write(tmp_path / file)
    with pytest.raises(UserError, match=message) as caught:
        find_tree(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_path_that_is_none_is_refused(tmp_path):
    for path, message in (
        (None, "data.path is not set"),
        ("", "data.path is not set"),
        (str(tmp_path / "x"), "does not exist"),
        (__file__, "is not a folder"),
    ):
        with pytest.raises(UserError, match=message):
            find_tree(path)


KINDS = {
    "grey.png": {"mode": "L"},
    "alpha.png": {"mode": "RGBA"},
    "wide.jpg": {"size": (40, 10), "quality": 60},
    "tall.webp": {"size": (7, 31), "lossless": True},
    "turned.jpg": {"exif": None},
    "small.gif": {"size": (3, 2), "mode": "L"},
    "print.tif": {"mode": "CMYK"},
}


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_are_what_predict_makes_of_the_files(root, channels):
    exif = Image.Exif()
    exif[0x0112] = 6
    for seed, (name, options) in enumerate(KINDS.items()):
        write(root / "cat" / name, seed, **options | ({"exif": exif} if "exif" in options else {}))
    splits, _ = open_folder(root, channels=channels)
    left = {split: list(zip(one.images, one.labels, strict=True)) for split, one in splits.items()}
    found = {image.tobytes(): label for own in left.values() for image, label in own}
    shape = (8, 8, channels)
    for path in sorted(root.glob("*/*.*")):
        expected = photos.fit(photos.read_picture(str(path), channels), shape)
        assert found[expected.tobytes()] == (path.parent.name == "dog")
    assert sum(map(len, left.values())) == 15 + len(KINDS)


def test_the_share_for_testing_is_stratified_and_follows_the_seed_and_the_content(root):
    splits, lines = open_folder(root)
    assert np.bincount(splits["test"].labels).tolist() == [2, 1]
    assert np.bincount(splits["train"].labels).tolist() == [8, 4]
    assert (
        "no folder for testing: 3 of 15 pictures are it (data.test_fraction 0.2, seed 0)" in lines
    )
    pixels = splits["train"].images / 255  # those for testing do not count
    np.testing.assert_allclose(splits["test"].mean, pixels.mean((0, 1, 2)), rtol=1e-12)

    def drawn(**options):
        return {image.tobytes() for image in open_folder(root, **options)[0]["test"].images}

    first = drawn()
    assert drawn() == first
    assert len({frozenset(drawn(seed=seed)) for seed in range(5)}) > 1
    assert len(drawn(test_fraction=0.5)) == 5 + 2
    assert len(drawn(test_fraction=0.01)) == 1 + 1
    for path in list(root.glob("cat/*.png")):
        path.rename(path.with_name(f"renamed-{9 - int(path.stem)}.png"))
    assert drawn() == first


def test_equal_pictures_stay_together_and_every_class_keeps_one(root):
    for number in range(8):
        shutil.copy(root / "dog" / "10.png", root / "dog" / f"copy-{number}.png")
    write(root / "ant" / "only.png", 99)
    for seed in range(5):
        splits, lines = open_folder(root, seed=seed, test_fraction=0.5)
        content = [{image.tobytes() for image in splits[x].images} for x in ("train", "test")]
        assert not content[0] & content[1]
        assert (splits["train"].labels == 0).sum() == 1
        assert "the class 'ant' has no pictures in test" in lines


def test_a_folder_of_which_nothing_can_be_held_out_is_refused(root):
    for number in range(15):
        write(root / ("cat" if number < 10 else "dog") / f"{number}.png", int(number < 10))
    with pytest.raises(UserError, match="no class has two different pictures, so none can be held"):
        open_folder(root)


def test_counts_sizes_and_what_looks_wrong_are_named(root):
    for number in range(3):
        write(root / "test" / "cat" / f"{number}.png", 50 + number, size=(30 + number, 20))
    os.mkdir(root / "train")
    for name in ("cat", "dog"):
        (root / name).rename(root / "train" / name)
    shutil.copy(root / "train" / "cat" / "4.png", root / "test" / "cat" / "seen.png")
    shutil.copy(root / "train" / "cat" / "5.png", root / "train" / "dog" / "both.png")
    splits, lines = open_folder(root)
    assert lines == [
        "class  train  test  sizes in pixels\n"
        "-----------------------------------\n"
        "cat       10     4  12x9 to 32x20\n"
        "dog        6     0  12x9",
        "the class 'dog' has no pictures in test",
        "1 equal images are in two splits: train/cat/4.png = test/cat/seen.png",
        "1 equal images are in two classes: train/cat/5.png = train/dog/both.png",
    ]
    assert splits["test"].mean == cache.channel_statistics(splits["train"].images)[0]


def test_broken_files_are_named_and_counted(root):
    (root / "cat" / "3.png").write_bytes(b"no picture")
    (root / "dog" / "12.png").write_bytes((root / "dog" / "12.png").read_bytes()[:60])
    (root / "dog" / "gone.png").symlink_to("nowhere")
    for _ in range(2):  # decoded, and from the cache
        splits, lines = open_folder(root, max_broken=3)
        assert sum(len(one.labels) for one in splits.values()) == 13
        broken = [line for line in lines if str(root) in line]
        assert [line.partition(" ")[0] for line in broken] == [
            str(root / name) for name in ("dog/12.png", "cat/3.png", "dog/gone.png")
        ]
        assert "3 broken pictures are left out" in lines
    advice = "more than 2 pictures are broken: remove the broken pictures, or let data.max_broken"
    for _ in range(2):
        with pytest.raises(UserError, match=advice) as caught:
            open_folder(root, max_broken=2)
        assert len(str(caught.value).splitlines()) == 4
        shutil.rmtree(root.parent / "cache", ignore_errors=True)
    for path in root.glob("*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the 16 pictures for train can be read: .* empty"):
        open_folder(root, max_broken=99)


def test_pictures_are_decoded_once_and_changes_are_noticed(root, monkeypatch):
    decoded = []
    read = photos.read_in_thread
    monkeypatch.setattr(
        photos, "read_in_thread", lambda path, *rest: decoded.append(path) or read(path, *rest)
    )

    def count():
        decoded.clear()
        splits, _ = open_folder(root)
        return len(decoded), sum(len(one.labels) for one in splits.values())

    assert (count(), count()) == ((15, 15), (0, 15))
    write(root / "cat" / "new.png", 30)
    assert (count(), count()) == ((16, 16), (0, 16))
    (root / "cat" / "0.png").unlink()
    assert count() == (15, 15)
    times = os.stat(root / "cat" / "1.png")
    write(root / "cat" / "1.png", 31)
    os.utime(root / "cat" / "1.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert count() == (15, 15)
    (root / "dog").rename(root / "wolf")
    assert count() == (15, 15)
    assert not [name for name in os.listdir(root) if name not in ("cat", "wolf")]
    (stored,) = (root.parent / "cache" / "cifar_jax").iterdir()
    assert sorted(path.suffix for path in stored.iterdir()) == [".json", ".npy", ".npy"]


def make_config(root, **fields):
    return tiny.config(
        data__name="folder", data__path=str(root), data__image_size=8, batch_size=4, **fields
    )


def test_a_run_sees_the_folder_by_its_config(root):
    write(root / "dog" / "grey.png", 40, mode="L")
    config = make_config(root, data__channels=1, data__test_fraction=0.4, seed=3)
    config.data.validation_examples = 2
    dataset = datasets.load_for(config)
    options = folder.Options(str(root), 8, 1, test_fraction=0.4, seed=3)
    splits, lines = folder.open_folder(options)
    np.testing.assert_array_equal(dataset.splits["test"].images, splits["test"].images)
    assert {name: len(split.labels) for name, split in dataset.splits.items()} == {
        "train": 8, "validation": 2, "test": 4 + 2
    }  # fmt: skip
    assert dataset.remarks == tuple(lines)
    config.data.seed = 4
    other = datasets.load_for(config).splits["test"].images
    assert other.tobytes() != splits["test"].images.tobytes()


def test_the_folder_for_validation_is_used_unless_images_are_held_out(root):
    (root.parent / "set").mkdir()
    root = root.rename(root.parent / "set" / "train")
    write(root.parent / "valid" / "cat" / "v.png", 70)
    config = make_config(root.parent)
    config.data.validation_examples = 0
    assert len(datasets.load_for(config).splits["validation"].labels) == 1
    config.data.validation_examples = 3
    assert len(datasets.load_for(config).splits["validation"].labels) == 3


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"data__path": "x"}, "the folder of pictures .*/x does not exist"),
        ({"data__path": None}, "data.path is not set: name your folder, --config.data.path=PATH"),
        ({"data__name": "digits"}, "data.path is set but data.name is 'digits': set --config.data"),
        ({"data__image_size": 0}, "data.image_size is 0 but must be greater than 0"),
        ({"data__image_size": 2000}, "data.image_size is 2000 but must be at most 1024"),
        ({"data__channels": 2}, "data.channels is 2 but must be 1, 3 or 4"),
        ({"data__test_fraction": 0.0}, "data.test_fraction is 0.0 but must be greater than 0"),
        ({"data__test_fraction": 1.0}, "data.test_fraction is 1.0 but must be less than 1"),
        ({"data__max_broken": -1}, "data.max_broken is -1 but must not be negative"),
    ],
)
def test_a_wrong_config_is_refused_before_anything_is_decoded(root, monkeypatch, fields, line):
    monkeypatch.setattr(folder, "open_folder", None)
    config = make_config(root)
    config.data.validation_examples, config.batch_size = 0, 2
    check.check_config(config)
    with config.unlocked():
        for name, value in fields.items():
            config.data[name.removeprefix("data__")] = value
    with pytest.raises(UserError, match=rf"^{line}[^\n]*$"):
        check.check_config(config)


@pytest.mark.parametrize(("size", "channels"), [(16, None), (None, 3), (40, 4)])
def test_other_sets_can_be_brought_to_a_size_and_to_channels(size, channels):
    own = datasets.load_dataset("digits")
    fields = {"data__image_size": size, "data__channels": channels}
    dataset = datasets.load_for(tiny.config(data__validation_examples=0, **fields))
    shape = (size or 32, size or 32, channels or 1)
    for split in ("train", "test"):
        images = dataset.splits[split].images
        picture = Image.fromarray(own.splits[split].images[7, ..., 0])
        assert images.shape[1:] == shape
        np.testing.assert_array_equal(images[7], photos.fit(picture, shape))
    assert dataset.mean == cache.channel_statistics(dataset.splits["train"].images)[0]


def test_a_folder_is_trained_evaluated_and_predicted_alike(root, tmp_path, capsys):
    config = make_config(root, data__validation_examples=0, num_epochs=1.0)
    run = tmp_path / "run"
    run.mkdir()
    assert loop.train_model(config, run, Signals()) == 0
    out = capsys.readouterr().out
    assert "cat        8     2  12x9\n" in out
    assert "no folder for testing: 3 of 15 pictures are it (data.test_fraction 0.2, seed 0)" in out
    whole = root.rename(tmp_path / "moved")  # by another path: also what is evaluated
    scores = evaluate.evaluate_model(run, data_dir=str(whole))
    with pytest.raises(UserError, match="does not exist"):
        evaluate.evaluate_model(run)
    loaded = datasets.load_run_data("folder", find_place(config, given=str(whole)))
    images, labels, origin = loaded.splits["test"]
    for file, image in zip(origin["file"], images, strict=True):
        picture = photos.fit(photos.read_picture(str(whole / file)), (8, 8, 3))
        np.testing.assert_array_equal(picture, image)
    right = (cifar_jax.load(run).predict(images).argmax(1) == labels).sum()
    assert scores.accuracy == right / 3
    assert predict.predict_pictures(run, [str(whole)]) == 0
    rows = (run / "predictions/predictions.csv").read_text().splitlines()[1:]
    by_file = {row.split(",")[0]: row.split(",")[2] for row in rows}
    for image, label in zip(images, labels, strict=True):
        file = next(
            file
            for file in by_file
            if (photos.fit(photos.read_picture(file), (8, 8, 3)) == image).all()
        )
        expected = ("cat", "dog")[cifar_jax.load(run).predict(image[None]).argmax()]
        assert (by_file[file], file.split("/")[-2]) == (expected, ("cat", "dog")[label])


@pytest.mark.parametrize("place", ["cat", "cat/kittens"])
def test_a_folder_that_cannot_be_read_is_an_error_and_not_left_out(root, monkeypatch, place):
    write(root / "cat" / "kittens" / "deep.png", 99)
    scan = os.scandir

    def fail(folder):
        if os.fspath(folder) == str(root / place):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), os.fspath(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(UserError, match=rf"{place} cannot be read: Stale file handle"):
        find_tree(str(root))
