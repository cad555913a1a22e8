"""Sources of images: each gives the names and pixels that the files themselves give."""

import io
import os
import pickle
import shutil
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from u2seg.pseudo_labels.image_source import DirectorySource, ListSource, TarSource, open_source
from u2seg.utils.files import UnsafeNameError
from u2seg.utils.image_io import ImageReadError, content_digest, list_images, read_image_rgb

NAMES = ["a-b/x.png", "a.png", "a/x.png", "a/y/z.png", "b.png"]


@pytest.fixture
def photos(tmp_path):
    """Five images in a tree whose names sort otherwise than its directories."""
    root = tmp_path / "photos"
    rng = np.random.default_rng(0)
    for name in NAMES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (6, 5, 3), np.uint8)).save(root / name)
    return root


def write_tar(path, members):
    """Writes a tar of (name, bytes) members."""
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))


def assert_reads_as_files(source, name, path):
    np.testing.assert_array_equal(source.read(name), read_image_rgb(path))
    assert source.digest(name) == content_digest(path)


def test_a_directory_is_listed_in_the_order_of_whole_names(photos):
    (photos / ".hidden.png").touch()
    (photos / "notes.txt").touch()
    os.symlink(photos / "a", photos / "z")  # seen already
    found = list(DirectorySource(photos).names())
    assert found == list_images(photos) == sorted(NAMES) == NAMES
    assert_reads_as_files(DirectorySource(photos), "a/x.png", photos / "a" / "x.png")


def test_one_image_is_a_source_of_one(photos):
    source = open_source(photos / "a/y/z.png")
    assert list(source.names()) == ["z.png"]
    assert_reads_as_files(source, "z.png", photos / "a/y/z.png")


def test_lists_keep_their_order_and_are_read_beside_themselves_or_below_a_root(photos, tmp_path):
    chosen = ["b.png", "a/x.png", "a.png"]
    (photos / "list.txt").write_text("# note\n./b.png\n\na/x.png\n  # more\n  a.png\n")
    pq.write_table(pa.table({"label": [1, 2, 3], "path": chosen}), tmp_path / "list.parquet")
    for source in (ListSource(photos / "list.txt"), ListSource(tmp_path / "list.parquet", photos)):
        assert list(source.names()) == chosen
        assert_reads_as_files(source, "b.png", photos / "b.png")


def test_wrong_lists_are_refused(photos, tmp_path):
    (photos / "list.txt").write_text("a.png\n../secret.png\n")
    with pytest.raises(UnsafeNameError, match="secret"):
        list(open_source(photos / "list.txt").names())
    pq.write_table(pa.table({"label": [1], "url": ["x"]}), tmp_path / "list.parquet")
    with pytest.raises(
        ValueError, match=r"columns label, url; expected the images' names in one called file_name, path"
    ):
        list(open_source(tmp_path / "list.parquet").names())
    with pytest.raises(FileNotFoundError, match=r"none\.txt is not there"):
        list(open_source(photos / "none.txt").names())
    with pytest.raises(ValueError, match="only tar shards"):
        open_source("memory://photos/list.txt")


def test_tar_shards_give_the_images_among_their_members(photos, tmp_path):
    first = [(name, (photos / name).read_bytes()) for name in ("b.png", "a/x.png")]
    write_tar(tmp_path / "s-08.tar", [("./b.json", b"{}"), *first, ("a/.x.png", b"hidden"), ("empty.png", b"")])
    write_tar(tmp_path / "s-09.tar", [("./b.png", b"no image")])
    for place in ("s-{08..09}.tar", "s-*.tar"):
        source = open_source(f"{tmp_path}/{place}")
        assert list(source.names()) == ["s-08.tar/b.png", "s-08.tar/a/x.png", "s-08.tar/empty.png", "s-09.tar/b.png"]
        for name in ("b.png", "a/x.png"):
            assert_reads_as_files(source, f"s-08.tar/{name}", photos / name)
    with pytest.raises(ImageReadError, match=r"empty \(0 bytes\)"):
        source.read("s-08.tar/empty.png")
    with pytest.raises(ImageReadError, match="cannot identify image file in memory"):
        source.read("s-09.tar/b.png")
    assert pickle.loads(pickle.dumps(source)).read("s-08.tar/b.png").shape == (6, 5, 3)


def test_wrong_tars_are_refused_by_name(tmp_path):
    write_tar(tmp_path / "twice.tar", [("a.png", b"1"), ("a.png", b"2")])
    with pytest.raises(ValueError, match=r"twice\.tar holds two members named 'a\.png'"):
        list(TarSource(f"{tmp_path}/twice.tar").names())
    write_tar(tmp_path / "out.tar", [("../a.png", b"1")])
    with pytest.raises(UnsafeNameError, match=r"out\.tar"):
        list(TarSource(f"{tmp_path}/out.tar").names())
    (tmp_path / "bad.tar").write_bytes(b"not a tar" * 100)
    with pytest.raises(ValueError, match=r"bad\.tar is not a readable tar shard"):
        list(TarSource(f"{tmp_path}/bad.tar").names())
    with pytest.raises(FileNotFoundError, match=r"shard .*s-1\.tar is not there"):
        list(TarSource(f"{tmp_path}/s-{{1..2}}.tar").names())
    with pytest.raises(FileNotFoundError, match="no tar shard matches"):
        list(TarSource(f"{tmp_path}/none-*.tar").names())


def test_tars_by_url_are_read_through_a_copy_that_goes_away(photos, tmp_path, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    copies = tmp_path / "copies"
    copies.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(copies))
    write_tar(tmp_path / "s.tar", [("b.png", (photos / "b.png").read_bytes())])
    memory = fsspec.filesystem("memory")
    for name in ("s-0.tar", "s-1.tar"):
        memory.put_file(str(tmp_path / "s.tar"), f"/photos/{name}")
    for place in ("memory://photos/s-{0..1}.tar", "memory://photos/s-*.tar"):
        source = TarSource(place)
        assert list(source.names()) == ["s-0.tar/b.png", "s-1.tar/b.png"]
        assert_reads_as_files(source, "s-0.tar/b.png", photos / "b.png")
        assert len(list(copies.iterdir())) == 1, "one tar at a time"
    del source
    assert not list(copies.iterdir())
    with pytest.raises(FileNotFoundError, match="memory://photos/x.tar is not there"):
        list(TarSource("memory://photos/x.tar").names())


def test_a_network_that_fails_ends_the_run_and_makes_no_image_unreadable(photos, tmp_path, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    write_tar(tmp_path / "s.tar", [("b.png", (photos / "b.png").read_bytes())])
    memory = fsspec.filesystem("memory")
    memory.put_file(str(tmp_path / "s.tar"), "/lost/s.tar")

    def cut(self, *args, **others):
        raise TimeoutError("timed out")

    with (
        monkeypatch.context() as patch,
        pytest.raises(ConnectionError, match=r"lost/s\.tar could not be copied: timed out"),
    ):
        patch.setattr(type(memory), "get_file", cut)
        TarSource("memory://lost/s.tar").read("s.tar/b.png")
    # HTTP's file system says so of a server that does not answer.
    with monkeypatch.context() as patch, pytest.raises(FileNotFoundError, match="its server does not answer"):
        patch.setattr(type(memory), "exists", lambda self, path: False)
        TarSource("memory://lost/s.tar").read("s.tar/b.png")
    assert TarSource("memory://lost/s.tar").read("s.tar/b.png").ndim == 3


def test_a_tar_that_went_away_is_a_reason_for_its_images(photos, tmp_path):
    write_tar(tmp_path / "s.tar", [("b.png", (photos / "b.png").read_bytes())])
    source = TarSource(f"{tmp_path}/s.tar")
    shutil.move(tmp_path / "s.tar", tmp_path / "t.tar")
    with pytest.raises(ImageReadError, match="its tar shard is not readable"):
        source.read("s.tar/b.png")
