"""Where results go: links, FIFOs, devices and what may not be written to."""

import errno
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hyperkern.files import OutputError, append, as_json, check_outputs, obstacle, write_files

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no FIFOs, and links for some")
NEW = b"new" * 50_000  # more than a pipe holds


def everything_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_are_replaced_together_or_not_at_all(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"old")
    with pytest.raises(TypeError):
        write_files({a: NEW, b: None})  # type: ignore[dict-item]
    with pytest.raises(OutputError, match=r"absent is no folder"):
        write_files({a: NEW, tmp_path / "absent" / "b": NEW})
    assert everything_in(tmp_path) == {"a": b"old"}
    write_files({a: NEW, b: NEW})
    assert everything_in(tmp_path) == {"a": NEW, "b": NEW}


def test_a_file_that_is_there_stays_whole_while_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with (tmp_path / "a").open("rb") as before:
        write_files({tmp_path / "a": NEW})
        assert before.read() == b"old"


@pytest.mark.parametrize("content", [b"old", None], ids=["to a file", "to nothing yet"])
def test_a_link_is_written_through(content: bytes | None, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    target, link, link_to_it = tmp_path / "folder" / "target", tmp_path / "link", tmp_path / "another"
    link.symlink_to(Path("folder") / "target")
    link_to_it.symlink_to("link")
    if content is not None:
        target.write_bytes(content)
    assert obstacle(link_to_it) is None
    write_files({link_to_it: NEW})
    assert link.is_symlink()
    assert link_to_it.is_symlink()
    assert everything_in(target.parent) == {"target": NEW}


def test_a_fifo_is_written_to(tmp_path: Path) -> None:
    fifo, link, file = tmp_path / "fifo", tmp_path / "link", tmp_path / "file"
    os.mkfifo(fifo)
    link.symlink_to(fifo)
    for path in (fifo, link):
        found: list[bytes] = []
        reader = threading.Thread(target=lambda found=found: found.append(fifo.read_bytes()), daemon=True)
        reader.start()
        assert obstacle(path) is None
        write_files({path: NEW, file: b"first"})
        reader.join(60)
        assert found == [NEW]
        assert file.read_bytes() == b"first"
        assert stat.S_ISFIFO(path.stat().st_mode)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_reader_that_goes_away_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    fifo, file = tmp_path / "fifo", tmp_path / "file"
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: fifo.open("rb").close(), daemon=True)
    reader.start()
    with pytest.raises(OutputError, match=rf"{fifo} cannot be written \(Broken pipe\)"):
        write_files({fifo: NEW, file: NEW})
    reader.join(60)
    assert file.read_bytes() == NEW
    assert len(list(tmp_path.iterdir())) == 2


def test_a_device_is_written_to(tmp_path: Path) -> None:
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        device.open("wb").close()
    except OSError:
        pytest.skip("a device cannot be made or opened here")
    assert obstacle(device) is None
    write_files({device: NEW})
    assert stat.S_ISCHR(device.stat().st_mode)
    assert list(tmp_path.iterdir()) == [device]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc")
def test_an_open_pipe_is_written_to_by_its_number() -> None:
    reading, writing = os.pipe()
    write_files({Path(f"/proc/self/fd/{writing}"): b"new"})
    os.close(writing)
    with open(reading, "rb") as pipe:
        assert pipe.read() == b"new"


def test_mode_and_other_names_are_kept(tmp_path: Path) -> None:
    file, alone = tmp_path / "file", tmp_path / "alone"
    file.write_bytes(b"old")
    alone.write_bytes(b"old")
    alone.chmod(0o640)
    (tmp_path / "other name").hardlink_to(file)
    write_files({file: NEW, alone: NEW})
    assert everything_in(tmp_path) == {"file": NEW, "alone": NEW, "other name": NEW}
    assert alone.stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a file away")
def test_the_owner_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old")
    os.chown(file, 1, -1)
    write_files({file: NEW})
    assert (file.read_bytes(), file.stat().st_uid) == (NEW, 1)


def test_a_read_only_file_is_refused(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"old")
    file.chmod(0o444)
    link.symlink_to(file)
    for path in (file, link):
        assert obstacle(path) == "is read-only"
        with pytest.raises(OutputError, match=rf"{path} is read-only"):
            write_files({path: NEW})
    assert everything_in(tmp_path) == {"file": b"old", "link": b"old"}


def test_what_cannot_be_written_to_is_refused_and_left_alone(tmp_path: Path) -> None:
    listening = socket.socket(socket.AF_UNIX)
    here = os.open(".", os.O_RDONLY)
    os.chdir(tmp_path)  # the name of a socket is short
    try:
        listening.bind("socket")
    finally:
        os.fchdir(here)
        os.close(here)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "lost").symlink_to(tmp_path / "absent" / "file")
    before = sorted(tmp_path.iterdir())
    for name, reason in (
        ("socket", "is a socket"),
        ("loop", "cannot be written to ("),
        ("lost", "cannot be written to (No such file or directory)"),
        ("absent/file", f"{tmp_path / 'absent'} is no folder"),
        (".", "is a folder"),
    ):
        assert (obstacle(tmp_path / name) or "nothing").startswith(reason)
        with pytest.raises(OutputError, match=r"cannot be|is a|is no"):
            write_files({tmp_path / name: NEW})
    listening.close()
    assert sorted(tmp_path.iterdir()) == before


def unwritable_folder(tmp_path: Path) -> Path:
    """One that root cannot write to either."""
    if os.geteuid() == 0:
        return Path("/proc/self/task")
    folder = tmp_path / "unwritable"
    folder.mkdir(mode=0o555)
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="root may write to every folder")
def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    assert (obstacle(unwritable_folder(tmp_path) / "a") or "nothing").startswith("cannot be written to (")


def test_an_input_or_another_output_is_no_output(tmp_path: Path) -> None:
    file, link, name, new = (tmp_path / each for each in ("file", "link", "name", "new"))
    file.write_bytes(b"old")
    link.symlink_to(file)
    name.hardlink_to(file)
    check_outputs({"json": new, "plot": None}, [file])
    for path in (file, link, name, tmp_path / "." / "file"):
        with pytest.raises(OutputError, match=rf"argument --json: is read too, got '{path}'"):
            check_outputs({"json": path}, [new, file])
        with pytest.raises(OutputError, match=rf"argument --csv: another result goes there too, got '{path}'"):
            check_outputs({"json": file, "csv": path})
    with pytest.raises(OutputError, match="argument --csv: another result goes there too"):
        check_outputs({"json": new, "csv": new})
    assert not new.exists()


def test_a_mount_point_is_written_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(os, "replace", busy)
    write_files({tmp_path / "a": NEW})
    assert everything_in(tmp_path) == {"a": NEW}


def test_a_group_and_attributes_are_kept(tmp_path: Path) -> None:
    a = tmp_path / "a"
    a.write_bytes(b"old")
    try:
        os.chown(a, -1, os.getegid() + 1)
        os.setxattr(a, "user.of", b"mine")
    except (AttributeError, OSError):
        pytest.skip("needs the right to change the group of a file, and attributes")
    write_files({a: NEW})
    assert a.read_bytes() == NEW
    assert a.stat().st_gid == os.getegid() + 1
    assert os.getxattr(a, "user.of") == b"mine"


@pytest.mark.skipif(not os.path.exists("/proc/self/fd/1"), reason="needs names for open files")
def test_what_is_printed_stays_beside_it(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, hyperkern.files as files;"
        "print('before', flush=True); files.write_files({pathlib.Path('/proc/self/fd/1'): b'result '}); print('after')"
    )
    with (tmp_path / "log").open("wb") as log:
        subprocess.run([sys.executable, "-c", code], stdout=log, check=True)
    assert (tmp_path / "log").read_text() == "before\nresult after\n"


def test_lines_are_added_whole_or_not_at_all(tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    append(lines, [{"name": "µ \udcff"}])  # of a file name that is no text, an escape
    with pytest.raises(ValueError, match="not JSON compliant"):
        append(lines, [{"ms": 1.0}, {"ms": float("nan")}])
    found = lines.read_bytes().splitlines()
    assert [json.loads(line) for line in found] == [{"name": "µ \udcff"}, {"ms": 1.0}]
    assert as_json({"ms": 1.0}) == b'{\n "ms": 1.0\n}\n'
