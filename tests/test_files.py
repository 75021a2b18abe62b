"""Files that are there whole or not at all."""

import hashlib
import json
import os
import subprocess
import sys

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
    with files.whole_dir(place, ["a"]) as aside:
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
        assert files.sha256(tmp_path / "file", 7) == hashlib.sha256(part[:7]).hexdigest()


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="cannot write to --out=.*file: "):
        files.check_writable(tmp_path / "file")
    files.check_writable(tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())


def test_what_somebody_put_beside_the_files_of_a_directory_stays(tmp_path):
    place = tmp_path / "run"
    with files.whole_dir(place) as aside:
        (aside / "weights").write_text("1")
        (aside / "adapter").mkdir()
        (aside / "adapter/change").write_text("1")
    (place / "adapter/notes.txt").write_text("mine")
    (place / "link").symlink_to(tmp_path)
    with files.whole_dir(place, ["weights", "adapter/change"]) as aside:
        (aside / "other").write_text("2")
    assert files.files_in(place) == ["adapter/notes.txt", "link", "other"]
    assert (place / "adapter/notes.txt").read_text() == "mine" and (place / "link").readlink() == tmp_path


def test_all_files_of_a_directory_have_the_mode_that_the_umask_gives(tmp_path):
    with files.whole_dir(tmp_path / "run") as aside:
        (aside / "weights").touch(0o600)
        files.write_file(aside / "config", "")
    (tmp_path / "plain").touch()
    assert {(tmp_path / file).stat().st_mode for file in ("run/weights", "run/config")} == {
        (tmp_path / "plain").stat().st_mode}


@pytest.fixture
def dead():
    """The number of a process that has ended, and when it started."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = files.started(process.pid)
    process.communicate(b"\n")
    return process.pid, start


def scratch_of(path, pid, start, end, place=None):
    return path.with_name(f".{path.name}.{place or files.place()}-{pid}-{start}-0123abcd.{end}")


def test_a_start_clears_away_what_dead_processes_left_and_nothing_else(tmp_path, dead):
    mine = [files.scratch(tmp_path / "run", "tmp"), files.scratch(tmp_path / "run", "old")]
    foreign = [tmp_path / name for name in (".notes.tmp", ".run.1234.tmp", "x.old", ".git")]
    elsewhere = scratch_of(tmp_path / "run", 1, 0, "tmp", place="0" * 8)
    reborn = scratch_of(tmp_path / "run", os.getpid(), files.started(os.getpid()) + 1, "tmp")    # our number, not us
    left = [scratch_of(tmp_path / "run", *dead, "tmp"), reborn]
    for folder in (*mine, *foreign, elsewhere, *left):
        folder.mkdir()
        (folder / "file").write_text("")
    scratch_of(tmp_path / "report.json", *dead, "tmp").write_text("half")
    files.check_writable(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([*mine, *foreign, elsewhere])
    assert all((folder / "file").exists() for folder in tmp_path.iterdir())


@pytest.mark.parametrize("there", [False, True])
def test_a_kill_between_the_two_renames_leaves_a_run_that_the_next_start_finds(tmp_path, dead, there):
    for end in ("old", "tmp"):
        scratch_of(tmp_path / "run", *dead, end).mkdir()
        (scratch_of(tmp_path / "run", *dead, end) / "run.json").write_text(end)
    if there:                                               # killed after them
        scratch_of(tmp_path / "run", *dead, "tmp").rename(tmp_path / "run")
    files.check_writable(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run/run.json").read_text() == ("tmp" if there else "old")


def test_a_file_that_is_written_again_clears_away_what_a_killed_try_left_beside_it(tmp_path, dead):
    left, living = (scratch_of(tmp_path / "data/facts.json", *process, "tmp")
                    for process in (dead, (os.getpid(), files.started(os.getpid()))))
    left.parent.mkdir()
    for half in (left, living):
        half.write_text("half")
    files.write_file(tmp_path / "data/facts.json", "{}")
    assert sorted(path.name for path in left.parent.iterdir()) == sorted([living.name, "facts.json"])


def test_a_process_of_the_same_number_as_a_dead_one_writes_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 7)
    names = {files.scratch(tmp_path / "run", "tmp").name for _ in range(50)}
    assert len(names) == 50 and all(files.SCRATCH.fullmatch(name) for name in names)
    for name in names:
        (tmp_path / name).mkdir()
    with files.whole_dir(tmp_path / "run") as aside:
        (aside / "a").write_text("1")
    assert (tmp_path / "run/a").read_text() == "1"


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(number):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device: .*report.json"):
        files.write_file(tmp_path / "report.json", "x")


def test_json_that_is_written_is_strict():
    value = {"a": [1, float("nan"), (2.5, float("inf"))], "b": {"c": -float("inf"), "d": None, "e": "nan"}}
    text = files.strict_json(value)
    assert json.loads(text, parse_constant=pytest.fail) == {"a": [1, None, [2.5, None]],
                                                             "b": {"c": None, "d": None, "e": "nan"}}
    assert files.strict_json({"x": [0.1, 1e-300]}) == json.dumps({"x": [0.1, 1e-300]}, indent=1) + "\n"
