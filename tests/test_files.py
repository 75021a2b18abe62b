"""Files that are there whole or not at all."""

import hashlib
import os

import pytest

from common import files


def test_a_file_is_the_old_one_or_the_whole_new_one(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file.json"
    files.write_file(path, "old")

    def disk_full(number):
        assert path.read_text() == "old"                    # the new one is not yet in its place
        raise OSError("disk full")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", disk_full)
        with pytest.raises(OSError, match="disk full"):
            files.write_file(path, "new")
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]
    with path.open() as reader:                             # who has it open still reads the old one
        files.write_file(path, b"n\xc3\xa9w")
        assert reader.read() == "old" and path.read_text(encoding="utf-8") == "n\u00e9w"


def test_a_directory_takes_its_place_only_when_the_block_ends_well(tmp_path):
    place = tmp_path / "run"
    with files.whole_dir(place) as aside:
        (aside / "a").write_text("1")
        assert not place.exists()
    with pytest.raises(KeyError), files.whole_dir(place) as aside:
        (aside / "a").write_text("2")
        raise KeyError
    assert (place / "a").read_text() == "1" and list(tmp_path.iterdir()) == [place]
    with files.whole_dir(place) as aside:
        (aside / "b").write_text("3")
    assert [file.name for file in place.iterdir()] == ["b"] and list(tmp_path.iterdir()) == [place]


def test_a_directory_that_cannot_take_its_place_leaves_the_old_one(tmp_path):
    """Stopped between the two renames: the old one is put back."""
    place = tmp_path / "run"
    place.mkdir()
    with pytest.raises(OSError), files.whole_dir(place) as aside:
        aside.rmdir()                                       # so that the second rename has nothing to move
    assert list(tmp_path.iterdir()) == [place]


def test_the_hash_of_a_file_is_that_of_all_its_bytes(tmp_path):
    contents = os.urandom(3 * 2**20 + 5)                    # more than is read at once
    for part in (b"", contents[:10], contents):
        (tmp_path / "file").write_bytes(part)
        assert files.sha256(tmp_path / "file") == hashlib.sha256(part).hexdigest()


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="cannot write to --out=.*file: "):
        files.check_writable(tmp_path / "file")
    files.check_writable(tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())
