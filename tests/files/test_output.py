"""Where output goes: a file is replaced, a stream is written to, and nothing else that a user named is ever touched."""

import errno
import os
import re
import stat
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import inputs, mlp
from places import OLD, PIPE, REFUSED, REPLACED, Place, pretend, snapshot

import nntk
from nntk.files import matrix_file, storage
from nntk.files.output import Output, remove_partial_files, replacing, write_text
from nntk.files.paths import OutputPathError, file_to_replace, folder_to_write

TEXT = '{"new": 1}\n'


def kernel():
    """Build a small kernel."""
    return nntk.NonlocalNTK(mlp(3, 4, 1), samples=4)


def save(path):
    """Write tensors."""
    nntk.save(path, kernel(), {"K": torch.ones(2)})


def write_kernel(path):
    """Write a matrix."""
    return nntk.write_kernel(path, kernel(), inputs(5, 3), tile=2)


FILE_WRITERS = {
    "write_text": lambda path: write_text(path, TEXT),
    "save": save,
    "write_kernel": write_kernel,
    "replacing": lambda path: replacing(path).__enter__(),
}
"""Writers that need a real file."""


@pytest.mark.parametrize("kind", REPLACED)
@pytest.mark.parametrize("write", [write_text, lambda path, text: Output.at(path).write(text)])
def test_a_text_replaces_the_file_that_a_path_leads_to(tmp_path, monkeypatch, kind, write):
    """Links stay links, and nothing is left beside the file."""
    place = Place(kind, tmp_path, monkeypatch)
    write(place.path, TEXT)
    assert place.text() == TEXT


@pytest.mark.parametrize("kind", REPLACED)
def test_saved_tensors_replace_the_file_that_a_path_leads_to(tmp_path, monkeypatch, kind):
    """And come back by either name."""
    place = Place(kind, tmp_path, monkeypatch)
    save(place.path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", Path.read_bytes)
        assert place.text() == place.target.read_bytes()
    for path in (place.path, place.target):
        assert torch.equal(nntk.load(path, kernel())["K"], torch.ones(2))


@pytest.mark.parametrize("kind", REPLACED)
def test_a_matrix_is_written_where_a_path_leads_to(tmp_path, monkeypatch, kind):
    """A matrix that was begun by one name goes on by the other: its journal is beside the file, not beside the link."""
    place = Place(kind, tmp_path, monkeypatch)
    place.target.unlink(missing_ok=True)
    links = {name: value for name, value in snapshot(place.folder).items() if value[0] == stat.S_IFLNK}
    first = np.array(write_kernel(place.path))
    again = nntk.write_kernel(place.target, kernel(), inputs(5, 3), tile=2, progress=lambda *_: pytest.fail("again"))
    assert np.array_equal(first, again)
    assert sorted(path.name for path in place.target.parent.iterdir() if path.is_file() and not path.is_symlink()) == [
        place.target.name,
        f"{place.target.name}.progress",
    ]
    after = snapshot(place.folder)
    assert {name: value for name, value in after.items() if value[0] == stat.S_IFLNK} == links


@pytest.mark.parametrize("kind", [*REFUSED, PIPE])
@pytest.mark.parametrize("writer", FILE_WRITERS)
def test_a_writer_of_files_refuses_all_else_before_any_work(tmp_path, monkeypatch, kind, writer):
    """In one sentence with the path; a pipe is refused by its name, and nobody waits for its reader."""
    place = Place(kind, tmp_path, monkeypatch)
    for module in (storage, matrix_file):
        monkeypatch.setattr(module, "fingerprint", lambda kernel: pytest.fail("work before the check"))
    with pytest.raises(OutputPathError) as caught:
        FILE_WRITERS[writer](place.path)
    message, argument = str(caught.value), "path" if writer in ("save", "write_kernel") else "the output"
    assert message.startswith(f"{argument} must be a regular file or a new path") and "\n" not in message
    assert repr(str(place.path)) in message and place.is_unchanged()
    assert "which is a pipe" in message if kind == PIPE else "pipe" not in message


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("folder", "which is a folder"),
        ("socket", "which is a socket"),
        ("block device", "which is a block device"),
        ("read-only folder", "whose folder '{folder}' is read-only"),
        ("read-only file", "which is read-only"),
        ("file for a folder", "whose folder '{folder}/file' is a file"),
        ("link into no folder", "which is a link into '{folder}/absent', a folder that does not exist"),
        ("under a link to no folder", "where '{folder}/link' is a link to a folder that does not exist"),
        ("link to itself", "which cannot be used: Too many levels of symbolic links"),
    ],
)
def test_an_output_says_why_it_cannot_be(tmp_path, monkeypatch, kind, reason):
    """The message names the argument, the path, the reason and what is allowed."""
    place = Place(kind, tmp_path, monkeypatch)
    with pytest.raises(OutputPathError) as caught:
        Output.at(place.path, "argument --json:")
    assert str(caught.value) == (
        "argument --json: must be a file, a new path, a pipe, a terminal, or - for standard output; "
        f"got {str(place.path)!r}, {reason.format(folder=place.folder)}"
    )
    assert place.is_unchanged()


@pytest.mark.parametrize("path", ["", "absent/"])
def test_a_path_without_a_name_is_no_output(tmp_path, monkeypatch, path):
    """Empty, or a folder that is not there."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputPathError, match="which names no file"):
        Output.at(path)


def test_a_pipe_gets_the_text_and_stays_a_pipe(tmp_path, monkeypatch):
    """Its reader gets all of it, then the end."""
    place = Place(PIPE, tmp_path, monkeypatch)
    output, text = Output.at(place.path), TEXT * 20000
    place.read()
    output.write(text)
    assert place.text() == text


def test_a_terminal_is_written_to_and_never_replaced(tmp_path, monkeypatch):
    """A file stands in for it: it stays the same one, and what it has beyond the text is not cut."""
    path = tmp_path / "terminal"
    path.write_text("x" * 20)
    before = path.stat().st_ino
    pretend(monkeypatch, path, stat.S_IFCHR)
    Output.at(path).write(TEXT)
    assert path.stat().st_ino == before and path.read_text() == TEXT + "x" * (20 - len(TEXT))
    with pytest.raises(OutputPathError, match="which is a terminal or another character device"):
        file_to_replace(path)
    assert snapshot(tmp_path).keys() == {"terminal"}


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system names no descriptors")
def test_an_open_descriptor_is_written_to(tmp_path):
    """By the name that the system has for it, through a link: the file behind it is not replaced."""
    (tmp_path / "log").write_text("begin\n")
    (tmp_path / "place").mkdir()
    with open(tmp_path / "log", "a") as log, open(tmp_path / "log") as read_only:
        for file, name in ((log, "out"), (read_only, "in")):
            (tmp_path / "place" / name).symlink_to(f"/proc/self/fd/{file.fileno()}")
        Output.at(tmp_path / "place" / "out").write(TEXT)
        assert (tmp_path / "log").read_text() == "begin\n" + TEXT and os.path.samefile(tmp_path / "log", log.fileno())
        with pytest.raises(OutputPathError, match="which is open for reading only"):
            Output.at(tmp_path / "place" / "in")
        with pytest.raises(OutputPathError, match="which is an open stream"):
            save(tmp_path / "place" / "out")
    with pytest.raises(OutputPathError, match="which cannot be used: Bad file descriptor"):
        Output.at(tmp_path / "place" / "out")
    assert sorted(path.name for path in (tmp_path / "place").iterdir()) == ["in", "out"]


def test_standard_output_is_known_by_what_it_is_open_for(tmp_path, monkeypatch):
    """A file that the shell redirects to is written through its descriptor, and not replaced."""
    path = tmp_path / "redirected.json"
    with open(path, "a") as redirected, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", redirected)
        for name in (path, "-"):
            output = Output.at(name)
            assert output.is_standard
            output.write(TEXT)
        assert not Output.at(tmp_path / "other.json").is_standard
        assert os.path.samefile(path, redirected.fileno())
    assert path.read_text() == 2 * TEXT
    monkeypatch.setattr("sys.stdout", None)
    with pytest.raises(OutputPathError, match="standard output is closed"):
        Output.at("-")


def test_standard_output_without_a_descriptor_is_written_to(capsys):
    """As in a notebook."""
    output = Output.at("-")
    assert output.is_standard and output.descriptor is None
    output.write(TEXT)
    assert capsys.readouterr().out == TEXT


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_the_mode_of_a_replaced_file_is_kept(tmp_path, mode):
    """Also of what save writes; a new file has that of any new file."""
    for write in (save, lambda path: write_text(path, TEXT)):
        path = tmp_path / "file"
        path.write_text(OLD)
        path.chmod(mode)
        write(path)
        assert stat.S_IMODE(path.stat().st_mode) == mode
    before = os.umask(0o027)
    try:
        for number, write in enumerate((save, lambda path: write_text(path, TEXT), write_kernel)):
            write(tmp_path / f"new-{number}")
            assert stat.S_IMODE((tmp_path / f"new-{number}").stat().st_mode) == 0o640
    finally:
        os.umask(before)


def test_the_owner_of_a_replaced_file_is_kept_where_the_system_permits(tmp_path, monkeypatch):
    """What only root may do is asked for, and its refusal is no error."""
    path, asked = tmp_path / "file", []
    path.write_text(OLD)

    def chown(name, user, group):
        asked.append((user, group))
        raise PermissionError

    monkeypatch.setattr(os, "chown", chown)
    write_text(path, TEXT)
    assert path.read_text() == TEXT and asked == [(-1, path.stat().st_gid), (path.stat().st_uid, -1)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_root_keeps_the_owner(tmp_path):
    """User and group."""
    path = tmp_path / "file"
    path.write_text(OLD)
    os.chown(path, 4321, 1234)
    write_text(path, TEXT)
    assert (path.stat().st_uid, path.stat().st_gid) == (4321, 1234)


def test_a_long_name_can_be_replaced(tmp_path):
    """The file beside it has a shorter one."""
    path = tmp_path / ("é" * 127)
    for text in (OLD, TEXT):
        write_text(path, text)
    assert [file.name for file in tmp_path.iterdir()] == [path.name] and path.read_text() == TEXT


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    """Files of a user that are named in a like way stay."""
    names = ("k.npy", "k.npy.tmp", "k.npy.backup.tmp", "other.npy.0123abcd.tmp")
    for name in (*names, "k.npy.0123abcd.tmp"):
        (tmp_path / name).touch()
    remove_partial_files(tmp_path / "k.npy")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


@pytest.fixture
def full_disk(monkeypatch, tmp_path):
    """A disk that is full when a file is put on it, and a folder for temporary files on another one."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))

    def fsync(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    return tmp_path / "temporary"


def test_a_text_that_cannot_be_written_is_kept(tmp_path, monkeypatch, full_disk):
    """One sentence says where; the old file is as it was, and nothing is left beside it."""
    place = Place("regular", tmp_path, monkeypatch)
    with pytest.raises(OutputPathError) as caught:
        Output.at(place.path).write(TEXT)
    (kept,) = full_disk.iterdir()
    assert str(caught.value) == (
        f"{str(place.path)!r} could not be written (No space left on device); what was computed is kept in {kept}"
    )
    assert kept.read_text() == TEXT and place.is_unchanged()


def test_a_text_without_any_place_is_printed(tmp_path, monkeypatch, full_disk, capsys):
    """On standard error."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(OutputPathError, match="what was computed is printed above"):
        Output.at(tmp_path / "out.json").write(TEXT)
    assert TEXT in capsys.readouterr().err


def test_a_path_that_changed_during_the_work_is_not_replaced(tmp_path, monkeypatch):
    """What has the name at the end counts: a folder is refused, a pipe is written to."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = tmp_path / "out.json"
    first, second = Output.at(path), Output.at(path)
    path.mkdir()
    with pytest.raises(OutputPathError, match=r"which is a folder\); what was computed is kept in"):
        first.write(TEXT)
    path.rmdir()
    place = Place(PIPE, tmp_path, monkeypatch)
    path.symlink_to(place.path)
    place.read()
    second.write(TEXT)
    assert place.text() == TEXT and path.is_symlink()


def test_a_user_who_waits_for_no_reader_keeps_the_text(tmp_path, monkeypatch, capsys):
    """Ctrl-C at a pipe that nobody reads."""
    place = Place(PIPE, tmp_path, monkeypatch)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("nntk.files.output._write_all", interrupted)
        place.read()
        Output.at(place.path).write(TEXT)
    kept = re.search(r"kept in (\S+)", capsys.readouterr().err)[1]
    assert Path(kept).read_text() == TEXT


def test_a_reader_who_is_gone_wants_no_text(monkeypatch, tmp_path):
    """The error of the pipe stays what it is, and nothing is kept."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        Output("pipe", writer).write(TEXT)
    os.close(writer)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["", ".", "new", "new/er"])
def test_a_folder_is_there_or_can_be_made(tmp_path, monkeypatch, path):
    """Nothing is made by asking."""
    monkeypatch.chdir(tmp_path)
    assert folder_to_write(path) == Path(path) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["regular", "socket", PIPE, "file for a folder", "link into no folder"])
def test_what_is_no_folder_is_refused(tmp_path, monkeypatch, kind):
    """With its kind."""
    place = Place(kind, tmp_path, monkeypatch)
    with pytest.raises(OutputPathError, match=r"^argument --output: must be a folder that can be written, or a path"):
        folder_to_write(place.path, "argument --output:")
    assert place.is_unchanged()
